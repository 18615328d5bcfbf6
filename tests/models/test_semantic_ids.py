import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy

from models.errors import InvalidOption
from models.progress import Progress
from models.registry import configure
from models.semantic_ids import SemanticIdConfig, SemanticIds, assign, assign_by, category_sharing, text_fields
from retrieval.catalog import Catalog
from retrieval.codes import CodeTable
from retrieval.describer import Describer
from retrieval.errors import BundleTorn, InvalidInput

SMALL = SemanticIdConfig(levels=2, codewords=8, text_width=8)
THINGS = {"lamp": "light", "chair": "seat", "shirt": "wear", "kettle": "cook"}


def shop(n: int = 80, **more: list) -> Catalog:
    rng = np.random.default_rng(0)
    things = [list(THINGS)[at % 4] for at in range(n)]
    titles = [
        f"{thing} {thing} {rng.choice(['red', 'blue', 'old', 'new'])} {at % 7}" for at, thing in enumerate(things)
    ]
    categories = [["shop", THINGS[thing]] for thing in things]
    attributes = {"title": titles, "categories": categories, "price": [1.0] * n, **more}
    return Catalog.build([f"i{at}" for at in range(n)], attributes=attributes)


@pytest.fixture(scope="module")
def ids() -> SemanticIds:
    return assign(shop(), SMALL, seed=1, progress=Progress())


class TestAssign:
    def test_every_item_with_text_has_its_own_code(self, ids: SemanticIds):
        assert ids.table.coded[1:].all()
        assert ids.report["items_sharing_a_leaf"] == 0
        assert len(np.unique(ids.table.codes[1:], axis=0)) == 80
        assert ids.table.vocabulary == (8, 8, 8)
        assert ids.vectors.shape == (81, 8)
        assert not ids.vectors[0].any()

    def test_the_describer_gives_the_very_codes_of_the_table(self, ids: SemanticIds, tmp_path: Path):
        ids.describer.save(tmp_path)
        served = Describer.load(tmp_path)
        catalog = shop()
        attributes = [catalog.attributes(row) for row in range(1, len(catalog) + 1)]
        assert (served.vectors_for(attributes) == ids.vectors[1:]).all()
        assert (served.codes_for(attributes) == ids.table.codes[1:]).all()

    def test_the_same_seed_gives_the_same_codes(self, ids: SemanticIds):
        assert (assign(shop(), SMALL, seed=1, progress=Progress()).table.codes == ids.table.codes).all()

    def test_the_report_can_stand_in_a_manifest(self, ids: SemanticIds):
        report = json.loads(json.dumps(ids.report, allow_nan=False))
        assert report["items"] == report["coded"] == 80
        assert report["usage"][:2] == [1.0, 1.0]
        assert 0 <= report["unique_before_dedup"] <= 1
        assert report["reconstruction"] == sorted(report["reconstruction"], reverse=True)
        assert report["category_sharing"]["same_first_code"] > 2 * report["category_sharing"]["random"]

    def test_items_without_text_are_left_uncoded(self):
        catalog = shop(4, title=["lamp", None, "lamp", ""], categories=[[], [], [], []])
        ids = assign(catalog, replace(SMALL, text_fields="title"), seed=1, progress=Progress())
        assert ids.table.coded.tolist() == [False, True, False, True, False]
        assert ids.report["coded"] == 2
        assert ids.table.codes[[1, 3], 2].tolist() == [0, 1]

    def test_random_codes_carry_no_meaning(self):
        config = replace(SMALL, quantiser="random")
        report = assign(shop(400), config, seed=1, progress=Progress()).report
        assert abs(report["category_sharing"]["same_first_code"] - report["category_sharing"]["random"]) < 0.15
        assert report["reconstruction"] == []

    def test_empty_text_is_refused(self):
        with pytest.raises(InvalidInput, match="no item of this catalog has any text in title"):
            assign(
                shop(3, title=[None] * 3, categories=[[]] * 3),
                replace(SMALL, text_fields="title"),
                seed=1,
                progress=Progress(),
            )

    def test_texts_without_any_word_are_refused(self):
        with pytest.raises(InvalidInput, match="finds nothing"):
            assign(shop(2, title=["...", "!"]), replace(SMALL, text_fields="title"), seed=1, progress=Progress())


class TestFields:
    def test_the_usual_fields_that_are_there_are_taken(self):
        assert text_fields(toy.catalog(), SemanticIdConfig()) == ("title", "categories")

    def test_the_order_of_the_caller_counts(self):
        assert text_fields(toy.catalog(), SemanticIdConfig(text_fields="price, title")) == ("price", "title")

    def test_a_field_that_is_not_there_is_refused(self):
        with pytest.raises(InvalidOption, match="plot: the catalog has title, categories, price"):
            text_fields(toy.catalog(), SemanticIdConfig(text_fields="title,plot"))

    def test_a_catalogue_without_text_is_refused(self):
        with pytest.raises(InvalidInput, match="no attribute at all"):
            text_fields(Catalog.build(["a"]), SemanticIdConfig())


class TestConfig:
    def test_options_are_set_from_the_command_line(self):
        config, left = configure(SemanticIdConfig(), {"levels": "4", "text": "tfidf", "dedup": "no", "d": "64"})
        assert (config.levels, config.dedup, left) == (4, False, {"d": "64"})

    @pytest.mark.parametrize("change", [{"levels": 0}, {"text_tokens": 1}])
    def test_options_out_of_range_are_refused(self, change: dict):
        with pytest.raises(InvalidOption, match="must be at least"):
            SemanticIdConfig(**change)

    @pytest.mark.parametrize("change", [{"text": "dreams"}, {"quantiser": "dreams"}])
    def test_an_unknown_name_is_refused(self, change: dict):
        with pytest.raises(InvalidOption, match="'dreams' is not known"):
            assign(toy.catalog(), replace(SMALL, **change), seed=1, progress=Progress())


class TestOnDisk:
    def test_loaded_they_are_the_same(self, ids: SemanticIds, tmp_path: Path):
        ids.save(tmp_path / "ids")
        again = SemanticIds.load(tmp_path / "ids")
        assert (again.table.codes == ids.table.codes).all()
        assert (again.vectors == ids.vectors).all()
        assert again.report == ids.report
        assert again.describer.vocabulary == ids.describer.vocabulary

    @pytest.mark.parametrize("name", ["codes.npz", "vectors.npy", "report.json", "describer/quantiser.npz"])
    def test_a_damaged_file_is_torn(self, ids: SemanticIds, tmp_path: Path, name: str):
        ids.save(tmp_path)
        (tmp_path / name).write_bytes(b"{")
        with pytest.raises(BundleTorn):
            SemanticIds.load(tmp_path)

    def test_files_of_two_assignments_are_torn(self, ids: SemanticIds, tmp_path: Path):
        ids.save(tmp_path)
        np.save(tmp_path / "vectors.npy", ids.vectors[:5])
        with pytest.raises(BundleTorn, match="do not belong together"):
            SemanticIds.load(tmp_path)


class TestAnotherCatalogue:
    def test_its_items_are_coded_by_what_was_learnt_before(self, ids: SemanticIds):
        other = assign_by(shop(8), ids.describer)
        assert other.table.vocabulary == ids.table.vocabulary
        assert (other.vectors == ids.vectors[:9]).all()
        assert (other.table.codes[:, :2] == ids.table.codes[:9, :2]).all()

    def test_one_without_text_is_refused(self, ids: SemanticIds):
        with pytest.raises(InvalidInput, match="no item of this catalog"):
            assign_by(Catalog.build(["a"]), ids.describer)


class TestCategorySharing:
    def test_pairs_of_one_code_are_compared_with_pairs_at_large(self):
        catalog = Catalog.build(list("abcd"), attributes={"category": ["x", "x", "y", "y"]})
        table = CodeTable(np.array([[-1], [0], [0], [1], [1]], dtype=np.int32), (2,))
        shares = category_sharing(catalog, table, seed=0)
        assert shares is not None
        assert shares["same_first_code"] == 1.0
        assert abs(shares["random"] - 1 / 3) < 0.02

    def test_what_more_than_half_of_the_items_carry_does_not_count(self):
        catalog = Catalog.build(list("abc"), attributes={"categories": [["all", "x"], ["all"], ["all", "y"]]})
        table = CodeTable(np.array([[-1], [0], [0], [0]], dtype=np.int32), (2,))
        shares = category_sharing(catalog, table, seed=0)
        assert shares == {"same_first_code": 0.0, "random": 0.0}

    def test_without_categories_or_pairs_there_is_nothing_to_say(self):
        table = CodeTable(np.array([[-1], [0], [1]], dtype=np.int32), (2,))
        assert category_sharing(Catalog.build(["a", "b"]), table, seed=0) is None
        assert category_sharing(Catalog.build(["a", "b"], attributes={"category": ["x", "x"]}), table, seed=0) is None


@pytest.mark.data
@pytest.mark.slow
def test_beauty_is_coded_well(shared_data: Callable[[str], Path]):
    from models.runs import Source, prepare, read

    log = read(Source("s3rec", [shared_data("amazon-beauty-2014")]), Progress())
    report = assign(prepare(log).catalog, SemanticIdConfig(), seed=1, progress=Progress()).report
    assert report["coded"] == 12_101
    assert min(report["usage"][:3]) > 0.8
    assert report["items_sharing_a_leaf"] == 0
    assert report["category_sharing"]["same_first_code"] > 2 * report["category_sharing"]["random"]
