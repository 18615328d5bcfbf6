"""The compositions: what is encoded, what is grouped, what is filled, and the promise under thousands of requests."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy
from threadpoolctl import threadpool_info
from toy_generative import UNCODED, codes, toy_generative

from retrieval import bundle
from retrieval.bundle import Bundle
from retrieval.catalog import Catalog
from retrieval.codes import CodeTable
from retrieval.encoder import MeanEncoder
from retrieval.errors import BundleForeign, EmptyHistory
from retrieval.faiss_index import FaissIndex
from retrieval.filters import NO_FILTER, AttributeRule, Eligible, Filter, Filters
from retrieval.index import CandidateIndex, ExactIndex
from retrieval.inputs import Request
from retrieval.recommenders import Composed, Dense, Popular, Query, Served, compose, load
from retrieval.rules import NO_RULES, Cap, Pin, Rules
from retrieval.sequences import EMPTY, FloatArray, History
from retrieval.trie import ConstraintTrie

NONE = np.zeros(0, np.int64)
REQUESTS = int(os.environ.get("SEQUITUR_PROPERTY_REQUESTS", "1000"))


def query(history: Sequence[int], k: int, eligible: Eligible, exclude: Sequence[int] = ()) -> Query:
    return Query(Request(History.of_rows(history)), k, eligible, np.array(exclude, np.int64))


@pytest.fixture
def served(toy_bundle: Path) -> Served:
    return load(Bundle.open(toy_bundle))


@pytest.fixture
def anything(served: Served) -> Eligible:
    return served.filters.eligible(NO_FILTER)


# --- the toy bundle, whose answers are known -------------------------------------------------------------


def test_the_neighbours_of_the_last_item_come_first(served: Served, anything: Eligible) -> None:
    (answer,) = served.recommender.recommend([query([9], 4, anything, [9])])
    assert answer.rows.tolist() == [10, 8, 11, 7]  # equally far, the higher one has the longer vector
    assert answer.source == "retrieval"
    assert answer.sources == ("retrieval",) * 4


def test_empty_history_is_answered_from_the_popular_items(served: Served, anything: Eligible) -> None:
    (answer,) = served.recommender.recommend([Query(Request(EMPTY), 4, anything, np.array([2]))])
    assert answer.rows.tolist() == [1, 3, 4, 5]
    assert answer.scores.tolist() == [20, 18, 17, 16]
    assert answer.source == "popular"


def test_a_filter_and_a_history_hold_together(served: Served) -> None:
    red = served.filters.eligible(Filter(any_categories=("red",), attributes=(AttributeRule("price", ">", 5),)))
    (answer,) = served.recommender.recommend([query([9], 10, red, [9])])
    assert sorted(answer.rows.tolist()) == [6, 12, 15, 18]


def test_all_filtered(served: Served) -> None:
    nothing = served.filters.eligible(Filter(include_ids=()))
    for answer in served.recommender.recommend([query([3], 5, nothing), query([], 5, nothing)]):
        assert len(answer) == 0
        assert answer.source == ""


def test_everything_excluded(served: Served, anything: Eligible) -> None:
    everything = list(range(1, toy.N + 1))
    for answer in served.recommender.recommend(
        [query([3], 5, anything, everything), query([], 5, anything, everything)]
    ):
        assert len(answer) == 0


def test_fewer_items_than_k(served: Served, anything: Eligible) -> None:
    for answer in served.recommender.recommend([query([3], 500, anything, [3]), query([], 500, anything, [3])]):
        assert len(answer) == len(set(answer.rows.tolist())) == toy.N - 2


def test_an_empty_batch(served: Served) -> None:
    assert served.recommender.recommend([]) == []


def test_catalog_of_one() -> None:
    catalog = Catalog.build(["only"])
    vectors = np.array([[0, 0], [1, 2]], np.float32)
    composed = Composed(Dense(MeanEncoder(vectors), ExactIndex(vectors)), Popular(catalog))
    eligible = Filters(catalog).eligible(NO_FILTER)
    batch = [query([1], 20, eligible), query([], 20, eligible), query([1], 20, eligible, [1])]
    assert [answer.rows.tolist() for answer in composed.recommend(batch)] == [[1], [1], []]


def test_batched_answers_equal_single_answers(served: Served, anything: Eligible) -> None:
    rng = np.random.default_rng(0)
    red = served.filters.eligible(Filter(any_categories=("red",)))
    batch = [
        query(rng.integers(1, 21, rng.integers(0, 15)).tolist(), int(rng.integers(1, 25)), (anything, red)[n % 2], [n])
        for n in range(20)
    ]
    for one, together in zip(batch, served.recommender.recommend(batch), strict=True):
        (alone,) = served.recommender.recommend([one])
        assert alone.rows.tolist() == together.rows.tolist()
        assert alone.sources == together.sources
        # Encoders pad a batch to its longest history, and sums over padding round differently.
        np.testing.assert_allclose(alone.scores, together.scores, rtol=1e-5, atol=1e-6)


def test_loading_wires_everything_that_answers(served: Served) -> None:
    assert served.index.name == "exact"
    assert served.catalog is served.bundle.catalog
    assert served.recommender.name == "dense"


def test_loading_refuses_a_graph_of_another_width_than_the_vectors(tmp_path: Path) -> None:
    with bundle.writing(tmp_path / "odd") as directory:
        toy.catalog().save(directory / bundle.CATALOG)
        np.save(directory / bundle.ITEM_VECTORS, toy.vectors()[:, :3], allow_pickle=False)
        toy.graph(directory / "encoder.onnx", toy.vectors())
        bundle.seal(directory, toy.manifest())
    with pytest.raises(BundleForeign, match="width 4, the item vectors have 3"):
        load(Bundle.open(tmp_path / "odd"))


# --- what is filled --------------------------------------------------------------------------------------------------


class Short:
    """An index that breaks the promise: never more than two rows."""

    name = "short"

    def search(self, queries, k, eligible, exclude, _ahead=None):
        return ExactIndex(toy.vectors()).search(queries, np.minimum(k, 2), eligible, exclude)


def test_what_retrieval_leaves_open_is_filled_without_repeats(anything: Eligible) -> None:
    composed = Composed(Dense(MeanEncoder(toy.vectors()), Short()), Popular(toy.catalog()))
    (answer,) = composed.recommend([query([2], 5, anything, [2, 4])])
    assert answer.sources == ("retrieval", "retrieval", "popular", "popular", "popular")
    assert answer.rows.tolist() == [3, 1, 5, 6, 7]
    assert np.isfinite(answer.scores).all()


# --- popular --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_popular_is_the_sorted_list_without_what_is_barred(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 400))
    catalog = Catalog.build([str(i) for i in range(n)], popularity=rng.integers(0, 6, n))
    mask = rng.random(n + 1) < rng.random()
    mask[0] = False
    exclude, k = rng.integers(0, n + 1, rng.integers(0, 50)), int(rng.integers(1, 60))
    (answer,) = Popular(catalog).recommend([Query(Request(EMPTY), k, Eligible.of(mask), exclude)])
    left = sorted(set(np.flatnonzero(mask).tolist()) - set(exclude.tolist()))
    want = sorted(left, key=lambda row: (-catalog.popularity[row], row))[:k]
    assert answer.rows.tolist() == want
    assert answer.scores.tolist() == catalog.popularity[want].tolist()
    assert answer.sources == ("popular",) * len(want)


# --- ways down: generated, retrieved, popular ------------------------------------------------------------


def test_each_query_goes_to_the_best_that_can_read_it(generating: Served) -> None:
    everything = generating.filters.eligible(NO_FILTER)
    coded, uncoded, nobody = generating.recommender.recommend(
        [query([3], 4, everything), query([UNCODED], 4, everything), query([], 4, everything)]
    )
    assert (coded.source, uncoded.source, nobody.source) == ("generated", "retrieval", "popular")
    assert coded.exact is True
    assert (uncoded.exact, uncoded.steps) == (None, None)
    assert (generating.recommender.name, generating.dense.name) == ("generative", "dense")


def test_items_without_a_code_come_behind_the_generated_ones(generating: Served) -> None:
    everything = generating.filters.eligible(NO_FILTER)
    (answer,) = generating.recommender.recommend([query([3], 50, everything, [3])])
    assert answer.sources == ("generated",) * 17 + ("retrieval",)
    assert answer.rows[-1] == UNCODED
    assert answer.steps is not None
    assert answer.steps.shape == (18, 3)
    assert np.isnan(answer.steps).all(axis=1).tolist() == [False] * 17 + [True]


def test_a_generator_that_is_late_is_answered_for_by_the_encoder(generating: Served) -> None:
    everything = generating.filters.eligible(NO_FILTER)
    late = Query(Request(History.of_rows([9])), 4, everything, np.array([9]), in_time=lambda: False)
    on_time, answered = generating.recommender.recommend([query([9], 4, everything, [9]), late])
    assert on_time.source == "generated"
    assert answered.rows.tolist() == generating.dense.recommend([late])[0].rows.tolist()
    assert answered.sources == ("retrieval",) * 4


def test_without_an_encoder_the_generator_falls_back_on_what_is_popular(tmp_path: Path) -> None:
    served = load(Bundle.open(toy_generative(tmp_path / "alone", dense=False)))
    everything = served.filters.eligible(NO_FILTER)
    coded, uncoded = served.recommender.recommend([query([3], 4, everything), query([UNCODED], 4, everything)])
    assert (coded.source, uncoded.source, served.dense.name) == ("generated", "popular", "popular")
    assert served.retrievers == (served.generative,)
    assert served.text_vectors is served.bundle.text_vectors


def test_a_hybrid_bundle_merges_both(tmp_path: Path) -> None:
    served = load(Bundle.open(toy_generative(tmp_path / "hybrid", generation={"candidates": "hybrid"})))
    everything = served.filters.eligible(NO_FILTER)
    (answer,) = served.recommender.recommend([query([9], 6, everything, [9])])
    assert served.recommender.name == "hybrid"
    assert set(answer.sources) == {"generated", "retrieval"}
    assert (np.diff(answer.scores) <= 0).all()


def test_ranking_is_done_by_the_best_that_can_read_it(generating: Served, served: Served) -> None:
    rows = np.array([5, 0, UNCODED, 5])
    coded = Request(History.of_rows([3]))
    np.testing.assert_array_equal(generating.rank(coded, rows), generating.generative.rank([coded], [rows])[0])
    uncoded = Request(History.of_rows([UNCODED]))
    np.testing.assert_array_equal(generating.rank(uncoded, rows), served.rank(uncoded, rows))
    assert np.isneginf(served.rank(coded, rows)).tolist() == [False, True, False, False]
    with pytest.raises(EmptyHistory, match="rank by popularity"):
        generating.rank(Request(EMPTY), rows)


def test_a_hybrid_bundle_without_an_encoder_is_refused(tmp_path: Path) -> None:
    bundle_path = toy_generative(tmp_path / "half", dense=False, generation={"candidates": "hybrid"})
    with pytest.raises(BundleForeign, match="hybrid candidates and the bundle has no encoder"):
        load(Bundle.open(bundle_path))


def test_a_trie_of_other_codes_is_refused(tmp_path: Path) -> None:
    path = toy_generative(tmp_path / "odd")
    manifest = Bundle.open(path).manifest
    other = codes().codes.copy()
    other[1] = other[2]
    ConstraintTrie.build(CodeTable(other, codes().vocabulary)).save(path / bundle.TRIE)
    (path / bundle.MANIFEST).unlink()
    bundle.seal(path, manifest)
    with pytest.raises(BundleForeign, match="made from other codes"):
        load(Bundle.open(path))


# --- the promise -----------------------------------------------------------------------------------------

N, D = 3_000, 16


@pytest.fixture(scope="module")
def world() -> tuple[Catalog, FloatArray]:
    """Three thousand items in clusters, one in ten out of stock."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(40, D))[rng.integers(0, 40, N)] + rng.normal(scale=0.5, size=(N, D))
    catalog = Catalog.build(
        [f"item {n}" for n in range(N)],
        popularity=np.floor(rng.pareto(1, N) * 10),
        available=rng.random(N) > 0.1,
        attributes={
            "price": [None if rng.random() < 0.1 else float(rng.integers(1, 100)) for _ in range(N)],
            "categories": [[f"c{c}" for c in rng.integers(0, 30, rng.integers(0, 4))] for _ in range(N)],
        },
    )
    return catalog, np.concatenate([np.zeros((1, D)), points]).astype(np.float32)


def random_filter(rng: np.random.Generator) -> Filter:
    def categories(chance: float) -> tuple[str, ...]:
        return tuple(f"c{c}" for c in rng.integers(0, 32, rng.integers(1, 4))) if rng.random() < chance else ()

    rules = (AttributeRule("price", str(rng.choice(["<", ">=", "!="])), int(rng.integers(1, 100))),)
    include = tuple(f"item {n}" for n in rng.integers(0, N + 50, rng.integers(0, 400)))
    return Filter(
        include_ids=include if rng.random() < 0.1 else None,
        any_categories=categories(0.4),
        no_categories=categories(0.3),
        attributes=rules if rng.random() < 0.4 else (),
    )


def permitted(catalog: Catalog, chosen: Filter) -> set[int]:
    """The filter, item by item, in plain Python."""
    included = None if chosen.include_ids is None else set(chosen.include_ids)
    out = set()
    for row in range(1, len(catalog) + 1):
        known = catalog.attributes(row)
        categories, price = set(known.get("categories", ())), known.get("price")
        fits = all(
            price != rule.value
            if rule.op == "!="
            else price is not None and (price < rule.value if rule.op == "<" else price >= rule.value)
            for rule in chosen.attributes
        )
        if (
            fits
            and catalog.available[row]
            and (included is None or catalog.ids[row] in included)
            and (not chosen.any_categories or categories & set(chosen.any_categories))
            and not categories & set(chosen.no_categories)
        ):
            out.add(row)
    return out


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_no_request_gets_an_ineligible_a_repeated_or_a_missing_item(
    world: tuple[Catalog, FloatArray], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SEQUITUR_PROPERTY_REQUESTS random requests, half through each index, in batches that share filters."""
    catalog, vectors = world
    rng = np.random.default_rng(1)
    index: CandidateIndex = ExactIndex(vectors) if kind == "exact" else FaissIndex.build(vectors, width=4)
    approximate = []
    if isinstance(index, FaissIndex):
        nominate = index._nominate
        monkeypatch.setattr(index, "_nominate", lambda *asked: approximate.append(len(asked[0])) or nominate(*asked))
    composed, filters = Composed(Dense(MeanEncoder(vectors), index), Popular(catalog)), Filters(catalog)
    answered = 0
    pool: list[tuple[Filter, set[int]]] = []
    while answered < (REQUESTS + 1) // 2:
        if len(pool) < 20 or rng.random() < 0.05:
            chosen = NO_FILTER if len(pool) == 0 else random_filter(rng)
            pool.append((chosen, permitted(catalog, chosen)))
        batch, sets = [], []
        for _ in range(int(rng.integers(1, 17))):
            chosen, permitted_rows = pool[int(rng.integers(len(pool))) if rng.random() < 0.7 else 0]
            history = rng.integers(1, N + 1, rng.integers(0, 120) if rng.random() < 0.8 else 0)
            exclude = np.concatenate([history, rng.integers(0, N + 1, rng.integers(0, 80))])
            if rng.random() < 0.05:  # a reader of nearly everything
                exclude = rng.permutation(N + 1)[: N - int(rng.integers(0, 50))]
            k = int(rng.integers(1, 501))
            batch.append(Query(Request(History.of_rows(history)), k, filters.eligible(chosen), exclude))
            sets.append(permitted_rows - set(exclude.tolist()))
        for asked, left, answer in zip(batch, sets, composed.recommend(batch), strict=True):
            rows = answer.rows.tolist()
            assert set(rows) <= left
            assert len(set(rows)) == len(rows) == min(asked.k, len(left))
            assert np.isfinite(answer.scores).all()
            assert set(answer.sources) <= {"retrieval" if len(asked.request.history) else "popular"}
            order = list(zip(-answer.scores, rows, strict=True))
            assert order == sorted(order)
        answered += len(batch)
    # Had every search gone the exact way, the approximate index would not have been tried.
    assert kind == "exact" or sum(approximate) > answered / 4


def test_a_loaded_bundle_keeps_matrix_products_on_one_core(toy_bundle: Path) -> None:
    load(Bundle.open(toy_bundle), threads=2)
    assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}


@pytest.mark.parametrize("kind", ["generating", "generating_at_once", "hybrid"])
@pytest.mark.parametrize("rules", [NO_RULES, Rules(caps=(Cap(2),), pins=(Pin("i09", 2), Pin("i03", 9)), diversity=0.3)])
def test_what_lies_ahead_changes_nothing_before_it(kind: str, rules: Rules, request: pytest.FixtureRequest) -> None:
    served: Served = request.getfixturevalue("generating" if kind == "hybrid" else kind)
    if kind == "hybrid":
        generation = replace(served.engine.generation, candidates="hybrid")
        served = compose(
            served.bundle, replace(served.engine, generation=generation), served.catalog, served.index,
            codes=served.codes, trie=served.generative.trie, text_vectors=served.text_vectors,
        )  # fmt: skip
    everything = served.filters.eligible(NO_FILTER)
    for stages in (served.recommender, served.dense, served.popular):
        for history in ([3], [5, 6, 11]):
            for k in (1, 4, 19):
                asked = Query(Request(History.of_rows(history)), k, everything, np.array(history), rules=rules)
                (first,) = stages.recommend([asked])
                (longer,) = stages.recommend([replace(asked, ahead=50)])
                n = len(first)
                assert longer.rows[:n].tolist() == first.rows.tolist()
                assert longer.scores[:n].tobytes() == first.scores.tobytes()
                assert (longer.exact, longer.reasons[:n], longer.unmet) == (first.exact, first.reasons, first.unmet)
                assert len(set(longer.rows.tolist())) == len(longer) <= 19
                assert not {*history} & {*longer.rows.tolist()}
                assert len(longer) > n or n > 15
