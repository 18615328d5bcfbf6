from pathlib import Path

import numpy as np
import pytest

from retrieval.codes import CodeTable
from retrieval.describer import Describer, numbered
from retrieval.errors import BundleTorn, InvalidInput
from retrieval.quantisers import RandomCodes, ResidualCodebooks
from retrieval.text import HashedText

ITEMS = [
    {"title": "red lamp"},
    {"title": "blue chair"},
    {"title": None, "price": 3.0},
    {"title": "red lamp"},
    {"title": "red lamp", "tags": ["x"]},
]


@pytest.fixture
def describer() -> Describer:
    rng = np.random.default_rng(0)
    text = HashedText(np.arange(64, dtype=np.int32), rng.standard_normal((64, 5)).astype(np.float32))
    books = rng.standard_normal((2, 9, 5)).astype(np.float32)
    still = np.zeros(5, dtype=np.float32)
    return Describer(text, ResidualCodebooks(books, still, still + 1), ("title", "tags"), dedup=4)


def table_of(codes: np.ndarray, describer: Describer) -> CodeTable:
    padding = np.full((1, codes.shape[1]), -1, dtype=np.int32)
    return CodeTable(np.concatenate([padding, codes]), describer.vocabulary)


class TestCodes:
    def test_twins_are_numbered_in_their_order_and_the_wordless_have_no_code(self, describer: Describer):
        codes = describer.codes_for(ITEMS)
        assert describer.vocabulary == (9, 9, 4)
        assert (codes[0, :2] == codes[3, :2]).all()
        assert [codes[0, 2], codes[3, 2]] == [0, 1]
        assert codes[2].tolist() == [-1, -1, -1]

    def test_new_items_are_appended_and_old_codes_stay(self, describer: Describer):
        table = table_of(describer.codes_for(ITEMS[:4]), describer)
        new = describer.codes_for([{"title": "red lamp"}, {"title": "red lamp"}], table)
        assert new[:, 2].tolist() == [2, 3]
        longer = table.extended(new)
        assert (longer.codes[: len(table.codes)] == table.codes).all()

    def test_one_by_one_is_the_same_as_together(self, describer: Describer):
        together = describer.codes_for(ITEMS)
        table = table_of(describer.codes_for([]), describer)
        for item in ITEMS:
            table = table.extended(describer.codes_for([item], table))
        assert (table.codes[1:] == together).all()

    def test_when_the_numbers_are_full_the_rest_share_the_last_leaf(self, describer: Describer):
        codes = describer.codes_for([{"title": "red lamp"}] * 6)
        assert codes[:, 2].tolist() == [0, 1, 2, 3, 3, 3]
        table = table_of(codes, describer)
        assert describer.codes_for([{"title": "red lamp"}], table)[:, 2].tolist() == [3]

    def test_without_dedup_twins_share_a_leaf(self, describer: Describer):
        codes = Describer(describer.text, describer.quantiser, ("title",)).codes_for(ITEMS)
        assert codes.shape == (5, 2)
        assert (codes[0] == codes[3]).all()

    def test_a_table_of_other_levels_is_refused(self, describer: Describer):
        table = CodeTable(np.full((1, 2), -1, dtype=np.int32), (4, 4))
        with pytest.raises(InvalidInput, match="this describer of"):
            describer.codes_for(ITEMS, table)

    def test_empty_in_empty_out(self, describer: Describer):
        assert describer.codes_for([]).shape == (0, 3)
        assert describer.codes_for([{"price": 1.0}]).tolist() == [[-1, -1, -1]]


class TestNumbered:
    def test_every_tuple_is_distinct_until_the_limit(self):
        rng = np.random.default_rng(1)
        codes = rng.integers(0, 3, (500, 2)).astype(np.int32)
        numbers = numbered(codes, 1000)
        seen: dict[tuple[int, ...], int] = {}
        for code, number in zip(map(tuple, codes.tolist()), numbers.tolist(), strict=True):
            assert number == seen.get(code, 0)
            seen[code] = number + 1


class TestOnDisk:
    def test_saved_and_loaded_it_gives_the_same_codes(self, describer: Describer, tmp_path: Path):
        describer.save(tmp_path / "describer")
        again = Describer.load(tmp_path / "describer")
        assert (again.codes_for(ITEMS) == describer.codes_for(ITEMS)).all()
        assert (again.vectors_for(ITEMS) == describer.vectors_for(ITEMS)).all()
        assert again.fields == describer.fields

    @pytest.mark.parametrize("gone", ["describer.json", "quantiser.npz", "text.npz", "text.json"])
    def test_a_missing_file_is_torn(self, describer: Describer, tmp_path: Path, gone: str):
        describer.save(tmp_path)
        (tmp_path / gone).unlink()
        with pytest.raises(BundleTorn):
            Describer.load(tmp_path)

    def test_a_describer_file_that_is_no_object_is_torn(self, describer: Describer, tmp_path: Path):
        describer.save(tmp_path)
        (tmp_path / "describer.json").write_text("[]")
        with pytest.raises(BundleTorn, match=r"describer\.json"):
            Describer.load(tmp_path)

    def test_random_codes_survive_too(self, describer: Describer, tmp_path: Path):
        control = Describer(describer.text, RandomCodes((9, 9), seed=4), ("title",), dedup=2)
        control.save(tmp_path)
        assert (Describer.load(tmp_path).codes_for(ITEMS) == control.codes_for(ITEMS)).all()
