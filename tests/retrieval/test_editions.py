"""A catalog that moves: what is new is found, what is gone is not, and who began on an edition ends on it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
import toy_ranker
from toy_generative import UNCODED, codes, describer, texts, toy_generative

from retrieval.bundle import Bundle
from retrieval.editions import NewItem, with_items, without_items
from retrieval.errors import InvalidInput, UnknownItem
from retrieval.faiss_index import FaissIndex
from retrieval.features import Candidates, Category, Number, build
from retrieval.filters import NO_FILTER, Filter
from retrieval.index import GrownIndex
from retrieval.inputs import Request
from retrieval.likeness import Likeness
from retrieval.queries import Answer, Query
from retrieval.recommenders import Served, compose, load
from retrieval.sequences import EMPTY, History

NEW = NewItem("new", {"title": "Item 7", "categories": ["red", "all"]})
NEW_ONLY = Filter(new_only=True)


def recommended(served: Served, history: list[int], k: int = 5, chosen: Filter = NO_FILTER) -> Answer:
    read = Request(History.of_rows(history) if history else EMPTY)
    return served.recommender.recommend([Query(read, k, served.filters.eligible(chosen), np.array(history, int))])[0]


def ids(served: Served, answer: Answer) -> list[str]:
    return [served.catalog.ids[row] for row in answer.rows]


# --- new -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["generating", "generating_at_once"])
def test_a_new_item_is_generated_in_a_lane_of_its_own_at_once(kind: str, request: pytest.FixtureRequest) -> None:
    before: Served = request.getfixturevalue(kind)
    assert len(recommended(before, [3], chosen=NEW_ONLY)) == 0
    after = with_items(before, [NEW])
    answer = recommended(after, [3], chosen=NEW_ONLY)
    assert ids(after, answer) == ["new"]
    assert answer.source == "generated"
    everything = recommended(after, [3], 50)
    assert everything.sources[:18] == ("generated",) * 18
    at = everything.rows.tolist().index(21)
    assert answer.scores[0] == pytest.approx(everything.scores[at], abs=1e-5)


def test_a_new_item_gets_the_codes_of_its_text_and_a_number_of_its_own(generating: Served) -> None:
    after = with_items(generating, [NEW, NewItem("twin", NEW.attributes)])
    table = after.codes
    assert table is not None
    np.testing.assert_array_equal(table.codes[:21], codes().codes)
    first, second = table.codes[21:]
    assert first[:2].tolist() == second[:2].tolist() == describer().codes_for([NEW.attributes])[0, :2].tolist()
    numbers = table.codes[(table.codes[:, :2] == first[:2]).all(axis=1), 2]
    assert len(set(numbers.tolist())) == len(numbers)
    assert (len(after.catalog), after.trained, after.catalog.row("twin")) == (22, 20, 22)


def test_a_new_item_stands_where_its_nearest_texts_stand(generating: Served) -> None:
    after = with_items(generating, [NEW])
    own = describer().vectors_for([NEW.attributes])[0]
    known = np.delete(np.arange(1, 21), UNCODED - 1)  # nothing is known of that one's text
    nearest = known[np.argsort(-(texts()[known] @ own), kind="stable")[:5]]
    np.testing.assert_allclose(after.index.vectors[21], toy.vectors()[nearest].mean(axis=0), rtol=1e-6)
    answer = after.similar.similar(21, 20, after.filters.eligible(NO_FILTER), EMPTY.rows)
    assert len(answer) == 19
    back = after.similar.similar(int(answer.rows[0]), 19, after.filters.eligible(NO_FILTER), EMPTY.rows)
    assert 21 in back.rows
    (retrieved,) = after.dense.recommend(
        [Query(Request(History.of_rows([7])), 1, after.filters.eligible(NEW_ONLY), EMPTY.rows)]
    )
    assert (retrieved.rows.tolist(), retrieved.source) == ([21], "described")


def test_without_an_encoder_a_new_item_stands_where_its_text_does(tmp_path: Path) -> None:
    before = load(Bundle.open(toy_generative(tmp_path / "alone", dense=False)))
    after = with_items(before, [NEW])
    np.testing.assert_array_equal(after.index.vectors[21], describer().vectors_for([NEW.attributes])[0])
    assert ids(after, recommended(after, [3], chosen=NEW_ONLY)) == ["new"]


def test_histories_with_new_items_are_read_by_who_can(generating: Served) -> None:
    after = with_items(generating, [NEW])
    generated = recommended(after, [21], 4)
    assert generated.source == "generated"
    assert 21 not in generated.rows
    only_new = Request(History.of_rows([21]))
    encoder, generator = after.retrievers[1], after.retrievers[0]
    assert (generator.reads(only_new), encoder.reads(only_new)) == (True, False)
    mixed, old = (
        after.dense.recommend([Query(Request(History.of_rows(h)), 5, after.filters.eligible(NO_FILTER), EMPTY.rows)])[0]
        for h in ([3, 21], [3])
    )
    assert mixed.rows.tolist() == old.rows.tolist()


def test_an_item_of_which_nothing_is_known_is_found_by_filters_only(generating: Served) -> None:
    after = with_items(generating, [NewItem("bare", {"price": 3})])
    answer = recommended(after, [3], chosen=NEW_ONLY)
    assert (ids(after, answer), answer.source) == (["bare"], "retrieval")  # with a score of 0: it has no vector
    assert np.isneginf(after.rank(Request(History.of_rows([3])), np.array([21])))[0]
    described = with_items(after, [NewItem("bare", NEW.attributes)])
    assert recommended(described, [3], chosen=NEW_ONLY).source == "generated"
    assert described.index.vectors[21].any()


def test_a_trained_item_without_a_code_gets_one_when_its_text_comes(generating: Served) -> None:
    after = with_items(generating, [NewItem("i18", toy.catalog().attributes(UNCODED))])
    assert after.codes is not None
    assert after.codes.coded[UNCODED]
    assert UNCODED in recommended(after, [3], 19).rows[:18]
    np.testing.assert_array_equal(after.index.vectors[UNCODED], toy.vectors()[UNCODED])


def test_a_bundle_without_a_describer_takes_items_all_the_same(toy_bundle: Path) -> None:
    after = with_items(load(Bundle.open(toy_bundle)), [NEW, NewItem("hit", {"price": 2.5}, popularity=100)])
    assert ids(after, recommended(after, [], 2)) == ["hit", "i01"]
    assert sorted(ids(after, recommended(after, [3], chosen=NEW_ONLY))) == ["hit", "new"]
    assert ids(after, recommended(after, [3], chosen=Filter(new_only=True, any_categories=("red",)))) == ["new"]
    assert recommended(after, [3], chosen=NEW_ONLY).sources == ("described", "retrieval")  # a price says nothing


def test_without_texts_a_new_item_stands_where_items_with_its_words_stand(toy_bundle: Path) -> None:
    before = load(Bundle.open(toy_bundle))
    alike = [NewItem("seven", NEW.attributes), NewItem("red", {"categories": ["red"]}), NewItem("bare", {"price": 7})]
    after = with_items(before, [*alike, NewItem("odd", {"title": "Unheard", "colour": "of"})])
    seven, red, bare, odd = after.index.vectors[21:]
    # Nothing is rarer than the 7 of the title; then come the red ones, as the first of equals.
    np.testing.assert_allclose(seven, toy.vectors()[[7, 3, 6, 9, 12]].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(red, toy.vectors()[[3, 6, 9, 12, 15]].mean(axis=0), rtol=1e-6)
    assert not bare.any()
    assert not odd.any()
    answer = recommended(after, [7], 8)
    assert dict(zip(ids(after, answer), answer.sources, strict=True))["seven"] == "described"
    assert after.reasons.nearest(answer, np.array([7])).all()
    table = Likeness.of(before.bundle.catalog, before.bundle.item_vectors)
    again = with_items(after, [NewItem("seven", {"title": "Other"}), NewItem("bare", {"categories": ["red"]})])
    assert Likeness.of(again.bundle.catalog, again.bundle.item_vectors) is table, "made once for all editions"
    np.testing.assert_array_equal(again.index.vectors[21], seven)  # what was given stays
    np.testing.assert_array_equal(again.index.vectors[23], red)  # and what was lacking comes
    (similar,) = {after.similar.similar(21, 1, after.filters.eligible(NO_FILTER), EMPTY.rows).source}
    assert similar == "similar"


@pytest.mark.parametrize("times", [1, 3])
def test_new_vectors_stand_beside_an_approximate_index(generating: Served, times: int) -> None:
    index = FaissIndex.build(toy.vectors(), width=1)
    served = compose(
        generating.bundle, generating.engine, generating.catalog, index,
        codes=generating.codes, trie=generating.generative.trie, text_vectors=generating.text_vectors,
    )  # fmt: skip
    for n in range(times):
        served = with_items(served, [NewItem(f"new {n}", NEW.attributes)])
    assert isinstance(served.index, GrownIndex)
    assert served.index.base is index
    assert len(recommended(served, [UNCODED], 3 * times, NEW_ONLY)) == times


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The toy with a ranker, loaded, with fields of codes."""
    categories = (Category("id", toy.N, slots=3), Category("attribute:categories", 3, slots=2, width=2))
    numbers = (*toy_ranker.ranking().features.candidate_numbers[:2], Number("attribute:price", scale=toy.N))
    features = replace(toy_ranker.ranking().features, candidate_codes=categories, candidate_numbers=numbers)
    path = tmp_path_factory.mktemp("ranked") / "ranked"
    return load(Bundle.open(toy_ranker.write(path, ranking={"features": features, "candidates": 50})))


class TestRanked:
    """A ranker over a catalog that moves."""

    def test_a_new_item_has_hashed_codes_and_absent_numbers_in_the_next_edition(self, ranking: Served) -> None:
        after = with_items(ranking, [NewItem("new", {"categories": ["red", "green"]})])
        assert ranking.ranker is not None
        assert after.ranker is not None
        one = Candidates(Request(EMPTY), np.array([21, 3]), np.array([0.5, np.nan], np.float32))
        made = build(after.ranker.tables, [one], ["candidate_codes", "candidate_numbers"])
        new, old = made["candidate_codes"][0].tolist()
        assert 1 <= new[0] <= 3 < old[0]
        red, green = new[1:]
        assert (red, old[1]) == (5, 5)  # all, blue, red, behind two slots
        assert 1 <= green <= 2
        np.testing.assert_array_equal(made["candidate_numbers"][0, 0], np.array([0.5, 0, np.nan], np.float32))
        assert len(ranking.ranker.tables.codes) == 21

    def test_the_ranker_of_the_next_edition_ranks_it(self, ranking: Served) -> None:
        after = with_items(ranking, [NewItem("hit", {"price": 400.0}, popularity=400.0)])
        answer = recommended(after, [3], 3)
        assert (ids(after, answer)[0], answer.ranked) == ("hit", 19)
        clicked = 1 / (1 + np.exp(1 - 8))  # a score of 0, because it has no vector; numbers end at 8
        assert answer.tasks is not None
        assert answer.tasks[0].tolist() == pytest.approx([clicked, 1], abs=1e-5)
        assert 21 not in recommended(ranking, [3], 50).rows

    def test_other_attributes_are_other_features_and_the_old_edition_keeps_its_own(self, ranking: Served) -> None:
        asked = recommended(ranking, [3], 50)
        after = with_items(ranking, [NewItem("i05", {"price": 20.0})])
        row = after.catalog.row("i05")
        assert after.ranker is not None
        now = recommended(after, [3], 50)
        place, then = now.rows.tolist().index(row), asked.rows.tolist().index(row)
        assert now.tasks[place, 1] > asked.tasks[then, 1]
        assert recommended(ranking, [3], 50).tasks.tobytes() == asked.tasks.tobytes()


# --- changed and gone ------------------------------------------------------------------------------------


def test_attributes_change_and_codes_and_popularity_stay(generating: Served) -> None:
    changed = NewItem("i03", {"title": "Other", "categories": ["green"]}, popularity=1e9)
    after = with_items(generating, [changed])
    assert after.catalog.attributes(3) == {"title": "Other", "categories": ["green"]}
    assert after.catalog.popularity[3] == generating.catalog.popularity[3]
    np.testing.assert_array_equal(after.codes.codes, generating.codes.codes)
    assert ids(after, recommended(after, [5], chosen=Filter(any_categories=("green",)))) == ["i03"]
    assert generating.catalog.attributes(3)["title"] == "Item 3"
    assert after.index is generating.index


def test_an_item_that_is_taken_out_is_gone_and_comes_back_as_it_was(generating: Served) -> None:
    first = recommended(generating, [3], 1).rows[0]
    item_id = generating.catalog.ids[first]
    gone = without_items(generating, [item_id])
    assert first not in recommended(gone, [3], 50).rows
    assert first not in recommended(gone, [], 50).rows
    back = with_items(gone, [NewItem(item_id, gone.catalog.attributes(int(first)))])
    assert recommended(back, [3], 1).rows.tolist() == [first]
    assert back.catalog.attributes(int(first)) == generating.catalog.attributes(int(first))
    assert (gone.edition, back.edition) == (1, 2)


def test_a_new_item_that_is_taken_out_keeps_its_code(generating: Served) -> None:
    there = with_items(generating, [NEW])
    back = with_items(without_items(there, ["new"]), [NewItem("new", {"title": "Quite another", "price": 2})])
    np.testing.assert_array_equal(back.codes.codes, there.codes.codes)
    np.testing.assert_array_equal(back.index.vectors, there.index.vectors)


def test_an_item_may_be_new_and_out_of_stock(generating: Served) -> None:
    after = with_items(generating, [NewItem("new", NEW.attributes, available=False)])
    assert len(recommended(after, [3], chosen=NEW_ONLY)) == 0


def test_who_began_on_an_edition_ends_on_it(generating: Served) -> None:
    asked = Query(Request(History.of_rows([3])), 50, generating.filters.eligible(NO_FILTER), EMPTY.rows)
    (before,) = generating.recommender.recommend([asked])
    after = without_items(with_items(generating, [NEW]), ["i01"])
    (still,) = generating.recommender.recommend([asked])
    assert still.rows.tolist() == before.rows.tolist()
    assert (generating.edition, after.edition, after.generative.trie.version) == (0, 2, 2)
    assert after.engine is generating.engine
    assert len(generating.catalog) == 20


# --- what cannot be --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([NEW, NEW], "stands twice"),
        ([NewItem("")], "0 characters"),
        ([NewItem("x", {"price": "cheap"})], "'price' holds numbers in this catalog; 'cheap' is none"),
    ],
)
def test_a_change_that_cannot_be_changes_nothing(generating: Served, items: Any, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        with_items(generating, items)


def test_an_unknown_item_cannot_be_taken_out(generating: Served) -> None:
    with pytest.raises(UnknownItem, match="'nobody'"):
        without_items(generating, ["i01", "nobody"])


def test_no_change_is_an_edition_too(generating: Served) -> None:
    assert with_items(generating, []).edition == without_items(generating, []).edition == 1
