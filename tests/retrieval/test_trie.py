"""The trie: the prefixes that exist, what a filter leaves of them, and its way to disk and back."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles_beam import dictionary, in_order, random_table

from retrieval import trie as tries
from retrieval.codes import CodeTable
from retrieval.errors import BundleTorn, InvalidInput
from retrieval.trie import ConstraintTrie


def walked(trie: ConstraintTrie, depth: int = 0, node: int = 0, *, mask: np.ndarray | None = None) -> Any:
    """A trie as `dictionary` would give it; with a mask only what its `Live` leaves open."""
    live = None if mask is None else trie.live(mask)

    def down(depth: int, node: int) -> Any:
        if depth == trie.levels:
            rows = trie.rows[trie.starts[depth][node] : trie.starts[depth][node + 1]].tolist()
            return rows if mask is None else [row for row in rows if mask[row]]
        below = {}
        for child in range(trie.first[depth][node], trie.first[depth][node + 1]):
            code = int(trie.labels[depth][child])
            if depth < len(trie.child):
                assert trie.child[depth][node, code] == child
            if live is None:
                is_open = True
            elif depth < len(trie.child):
                is_open = live.shut[depth][node, code] == 0
            else:
                is_open = live.open[depth - len(trie.child)][child]
            if is_open:
                below[code] = down(depth + 1, child)
        return below

    return down(depth, node)


class TestBuilding:
    @pytest.mark.parametrize("cells", [0, 30, 1 << 18])
    def test_it_equals_a_trie_of_dictionaries(self, cells, monkeypatch):
        monkeypatch.setattr(tries, "DENSE_CELLS", cells)
        rng = np.random.default_rng(cells)
        for _ in range(60):
            table = random_table(rng, items=int(rng.integers(1, 60)), levels=int(rng.integers(1, 5)), codewords=6)
            priority = rng.integers(0, 3, len(table) + 1).astype(float)
            trie = ConstraintTrie.build(table, priority=priority)
            order = in_order(table, priority)
            assert trie.rows.tolist() == order
            assert walked(trie) == dictionary(table, order)
            assert trie.rank[trie.rows].tolist() == list(range(len(trie)))

    def test_children_are_numbered_in_lexicographic_order(self):
        trie = ConstraintTrie.build(random_table(np.random.default_rng(3), items=200, levels=3, codewords=6))
        for depth in range(1, trie.levels + 1):
            prefixes = trie.prefixes(depth, np.arange(len(trie.labels[depth - 1]))).tolist()
            assert prefixes == sorted(prefixes)
            assert len({tuple(prefix) for prefix in prefixes}) == len(prefixes)

    def test_tuples_too_long_for_one_number_are_sorted_all_the_same(self):
        rng = np.random.default_rng(0)
        codes = rng.integers(0, 3, (100, 4)) << 18
        codes[0] = -1
        table = CodeTable(codes, (1 << 20,) * 4)
        assert ConstraintTrie.build(table).rows.tolist() == in_order(table)

    def test_in_a_leaf_priority_goes_first_and_then_the_row(self):
        table = CodeTable(np.array([[-1], [2], [2], [2], [0]]), (3,))
        assert ConstraintTrie.build(table).rows.tolist() == [4, 1, 2, 3]
        assert ConstraintTrie.build(table, priority=[0, 1, 5, 5, 0]).rows.tolist() == [4, 2, 3, 1]

    def test_a_catalogue_of_one(self):
        trie = ConstraintTrie.build(CodeTable(np.array([[-1, -1], [1, 0]]), (2, 2)))
        assert walked(trie) == {1: {0: [1]}}

    @pytest.mark.parametrize("items", [0, 3])
    def test_a_catalogue_without_codes_is_an_empty_trie(self, items):
        trie = ConstraintTrie.build(CodeTable(np.full((items + 1, 2), -1), (2, 2)))
        assert walked(trie) == {}
        assert len(trie) == trie.live(np.ones(items + 1, np.bool_)).count == 0

    def test_nobody_can_change_it(self):
        trie = ConstraintTrie.build(random_table(np.random.default_rng(3), items=20, levels=3, codewords=6))
        live = trie.live(np.ones(21, np.bool_))
        every = [trie.rows, trie.codes, trie.rank, *trie.starts, *trie.first, *trie.labels, *trie.child]
        for array in [*every, live.before, *live.shut, *live.open]:
            assert not array.flags.writeable
        assert trie.nbytes == sum(array.nbytes for array in every)
        assert live.nbytes > live.before.nbytes

    def test_a_priority_of_another_length_is_refused(self):
        with pytest.raises(InvalidInput, match="priority has shape"):
            ConstraintTrie.build(random_table(np.random.default_rng(3), items=5, levels=2, codewords=3), priority=[1.0])


class TestLive:
    @pytest.mark.parametrize("cells", [0, 30, 1 << 18])
    def test_what_a_filter_leaves_is_the_trie_of_what_it_allows(self, cells, monkeypatch):
        monkeypatch.setattr(tries, "DENSE_CELLS", cells)
        rng = np.random.default_rng(1)
        for share in (0.0, 0.05, 0.5, 1.0) * 10:
            table = random_table(rng, items=50, levels=int(rng.integers(1, 4)), codewords=5)
            trie = ConstraintTrie.build(table)
            mask = rng.random(51) < share
            allowed = [row for row in in_order(table) if mask[row]]
            assert walked(trie, mask=mask) == dictionary(table, allowed)
            assert trie.live(mask).count == len(allowed)

    def test_padding_and_items_without_a_code_are_never_live(self):
        trie = ConstraintTrie.build(CodeTable(np.array([[-1], [0], [-1]]), (1,)))
        assert trie.live(np.array([True, False, True])).count == 0

    def test_what_does_not_exist_is_shut(self):
        trie = ConstraintTrie.build(CodeTable(np.array([[-1], [1]]), (3,)))
        assert trie.live(np.ones(2, np.bool_)).shut[0].tolist() == [[-np.inf, 0.0, -np.inf]]

    def test_a_mask_of_another_length_is_refused(self):
        trie = ConstraintTrie.build(CodeTable(np.array([[-1], [1]]), (3,)))
        with pytest.raises(InvalidInput, match=r"mask has shape \(3,\); \(2,\) was expected"):
            trie.live(np.ones(3, np.bool_))


class TestDisk:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        table = random_table(np.random.default_rng(5), items=40, levels=3, codewords=4)
        ConstraintTrie.build(table, priority=np.arange(41.0), version=7).save(tmp_path / "trie.npz")
        return tmp_path / "trie.npz"

    def test_it_survives(self, saved):
        table = random_table(np.random.default_rng(5), items=40, levels=3, codewords=4)
        built, read = ConstraintTrie.build(table, priority=np.arange(41.0), version=7), ConstraintTrie.load(saved)
        assert (read.version, read.vocabulary, read.levels, read.size) == (7, table.vocabulary, 3, 41)
        for name, array in built.arrays().items():
            assert np.array_equal(read.arrays()[name], array)
        assert walked(read) == walked(built)

    @pytest.mark.parametrize("content", [b"", b"no trie", b"PK\x03\x04 half a zip"])
    def test_what_is_no_archive_is_refused(self, saved, content):
        saved.write_bytes(content)
        with pytest.raises(BundleTorn, match=r"trie\.npz is not a readable trie"):
            ConstraintTrie.load(saved)

    def test_a_missing_file_is_refused(self, tmp_path):
        with pytest.raises(BundleTorn, match=r"absent\.npz"):
            ConstraintTrie.load(tmp_path / "absent.npz")

    def test_a_file_cut_short_is_refused_wherever_it_ends(self, saved):
        whole = saved.read_bytes()
        for length in range(0, len(whole), 97):
            saved.write_bytes(whole[:length])
            with pytest.raises(BundleTorn):
                ConstraintTrie.load(saved)

    def test_a_flipped_bit_is_refused_or_harmless(self, saved):
        whole, before = saved.read_bytes(), ConstraintTrie.load(saved).arrays()
        for at in range(0, len(whole), 41):
            saved.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            try:
                after = ConstraintTrie.load(saved).arrays()
            except BundleTorn:
                continue
            # Some bytes of an archive mean nothing, such as a file's date.
            assert all(np.array_equal(after[name], array) for name, array in before.items())

    @pytest.mark.parametrize(
        "change",
        [
            {"rows": np.array([1, 1, 2])},
            {"rows": np.array([0, 1, 2])},
            {"rows": np.array([1, 2, 4])},
            {"rows": np.array([1, 2])},
            {"rows": np.array(["a", "b", "c"])},
            {"rows": np.array([{}, {}, {}])},
            {"codes": np.array([[1, 0], [0, 1], [1, 1]])},
            {"codes": np.array([[0, 1], [0, 0], [1, 1]])},
            {"codes": np.array([[0, 0], [0, 1], [1, 2]])},
            {"codes": np.array([[0, 0], [0, 1], [1, -1]])},
            {"codes": np.array([0, 0, 1])},
            {"vocabulary": np.array([2])},
            {"vocabulary": np.array([], dtype=np.int64)},
            {"size": np.array([4, 4])},
            {"size": None},
        ],
    )
    def test_an_archive_of_something_else_is_refused(self, saved, change):
        arrays = {
            "rows": np.array([3, 1, 2]),
            "codes": np.array([[0, 0], [0, 1], [1, 1]]),
            "vocabulary": np.array([2, 2]),
            "size": np.array(4),
            "version": np.array(0),
        }
        whole = io.BytesIO()
        np.savez(whole, **arrays)
        saved.write_bytes(whole.getvalue())
        assert len(ConstraintTrie.load(saved)) == 3, "unchanged it is a trie"
        torn = io.BytesIO()
        np.savez(torn, **{name: array for name, array in {**arrays, **change}.items() if array is not None})
        saved.write_bytes(torn.getvalue())
        with pytest.raises(BundleTorn):
            ConstraintTrie.load(saved)
