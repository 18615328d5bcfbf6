"""Generative retrieval: judged by scoring every item in NumPy, alone and in waves, late and sick."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import toy
import toy_generative
from toy_generative import LEVELS, UNCODED, VOCABULARY, codes

from retrieval import generative
from retrieval.beam import IMPOSSIBLE
from retrieval.decoder import Memory
from retrieval.errors import BundleTorn, EmptyHistory
from retrieval.filters import NO_FILTER, AttributeRule, Eligible, Filter, Filters
from retrieval.generative import Generation, Generative, Hybrid, fused
from retrieval.inputs import Request
from retrieval.queries import NOTHING, Answer, Query
from retrieval.recommenders import Served
from retrieval.sequences import FloatArray, History, IntArray
from retrieval.trie import ConstraintTrie

NONE = np.zeros(0, np.int64)
ALL = Filters(toy.catalog()).eligible(NO_FILTER)


def query(
    history: Sequence[int], k: int = 5, eligible: Eligible = ALL, exclude: Sequence[int] = (), **rest: Any
) -> Query:
    return Query(Request(History.of_rows(history)), k, eligible, np.array(exclude, np.int64), **rest)


def settings(**changes: Any) -> Generation:
    return Generation(**{"levels": LEVELS, "vocabulary": VOCABULARY, "beams": 8, **changes})


class Tables:
    """A decoder without a graph: random log-probabilities that depend on the history and on the codes so far.

    It reads histories of rows; row 13 makes it sick.
    """

    vocabulary = VOCABULARY

    def __init__(self) -> None:
        self.steps: list[tuple[int, ...]] = []

    def reads(self, request: Request) -> bool:
        return bool(len(request.history))

    def prefill(self, requests: Sequence[Request]) -> Memory:
        if not all(map(self.reads, requests)):
            raise EmptyHistory("nothing to read")
        return Memory((np.array([[request.history.rows.sum()] for request in requests]),))

    def step(self, memory: Memory, prefix: IntArray) -> FloatArray:
        self.steps.append(prefix.shape)
        r, m, t = prefix.shape
        logits = np.empty((r, m, VOCABULARY[t]), np.float32)
        for at in np.ndindex(r, m):
            seed = [int(memory.arrays[0][at[0], 0]), *prefix[at].tolist()]
            logits[at] = np.random.default_rng(seed).normal(size=VOCABULARY[t], scale=2)
            if seed[0] == 13:
                logits[at] = np.nan
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.fixture
def trie() -> ConstraintTrie:
    return ConstraintTrie.build(codes(), priority=toy.catalog().popularity)


@pytest.fixture
def random(trie: ConstraintTrie) -> Generative:
    return Generative(Tables(), trie, settings())


# --- against every item, scored -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["generating", "generating_at_once"])
@pytest.mark.parametrize("history", [[3], [5, 7, 9], [2, UNCODED], list(range(1, 20))])
def test_a_wide_search_gives_what_scoring_every_item_gives(
    kind: str, history: list[int], request: pytest.FixtureRequest
) -> None:
    served: Served = request.getfixturevalue(kind)
    true = toy_generative.scores(history, parallel=kind != "generating")
    barred = {*history, 0, 20, UNCODED}
    assert served.generative is not None
    (answer,) = served.generative.recommend([query(history, 12, exclude=history, beams=50)])
    left = sorted(set(range(1, 21)) - barred, key=lambda row: -true[row])[:12]
    np.testing.assert_allclose(answer.scores, true[left], atol=1e-5)
    np.testing.assert_allclose(true[answer.rows], true[left], atol=1e-5)  # equal scores may change places
    assert not set(answer.rows.tolist()) & barred
    assert answer.exact is True
    assert answer.sources == ("generated",) * len(left)
    assert answer.steps is not None
    np.testing.assert_allclose(answer.steps.sum(axis=1), answer.scores, atol=1e-5)


@pytest.mark.parametrize("kind", ["generating", "generating_at_once"])
def test_teacher_forcing_gives_the_scores_of_the_search(kind: str, request: pytest.FixtureRequest) -> None:
    served: Served = request.getfixturevalue(kind)
    requests = [Request(History.of_rows(history)) for history in ([3], [5, 7], [1, 2, 3, 4])]
    found = served.generative.recommend([Query(asked, 20, ALL, NONE) for asked in requests])
    ranked = served.generative.rank(requests, [answer.rows for answer in found])
    for answer, scores in zip(found, ranked, strict=True):
        assert scores.dtype == np.float32
        np.testing.assert_allclose(scores, answer.scores, atol=1e-5)


def test_candidates_share_the_steps_of_their_prefixes(random: Generative) -> None:
    rows = np.array([1, 6, 7, 7, 3, 0, UNCODED])  # (2, 3, 0) (2, 3, 2) (2, 3, 3) twice, (2, 1, 0), and two without
    (scores,) = random.rank([Request(History.of_rows([4]))], [rows])
    assert random.decoder.steps == [(1, 1, 0), (1, 1, 1), (1, 2, 2)]
    assert np.isneginf(scores).tolist() == [False] * 5 + [True] * 2
    assert scores[2] == scores[3]


def test_ranking_nothing(random: Generative) -> None:
    assert random.rank([], []) == []
    asked = Request(History.of_rows([4]))
    assert random.rank([asked], [NONE])[0].shape == (0,)
    assert np.isneginf(random.rank([asked], [np.array([UNCODED, 0])])[0]).all()
    assert random.recommend([]) == []


def test_a_history_that_makes_no_numbers_ranks_nothing(random: Generative) -> None:
    (scores,) = random.rank([Request(History.of_rows([13]))], [np.array([1, UNCODED])])
    assert np.isnan(scores[0])
    assert np.isneginf(scores[1])


def test_what_the_model_holds_impossible_ranks_as_the_search_has_it(
    random: Generative, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = random.decoder.step

    def step(memory: Memory, prefix: IntArray) -> FloatArray:
        log_probs = said(memory, prefix)
        log_probs[..., 0] = -np.inf
        return log_probs

    monkeypatch.setattr(random.decoder, "step", step)
    (answer,) = random.recommend([query([4], 20, beams=50)])
    (scores,) = random.rank([Request(History.of_rows([4]))], [answer.rows])
    assert scores.tolist() == answer.scores.tolist()
    assert scores[-1] <= IMPOSSIBLE


# --- waves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["generating", "generating_at_once", "random"])
def test_a_wave_of_all_kinds_equals_its_queries_alone(kind: str, request: pytest.FixtureRequest) -> None:
    served = request.getfixturevalue(kind)
    own = served if isinstance(served, Generative) else served.generative
    filters, rng = Filters(toy.catalog()), np.random.default_rng(3)
    red = filters.eligible(Filter(any_categories=("red",), attributes=(AttributeRule("price", ">", 5),)))
    nothing = filters.eligible(Filter(include_ids=()))
    wave = [
        query(
            rng.integers(1, 17, rng.integers(1, 14)).tolist(),
            int(rng.integers(1, 25)),
            (ALL, red, nothing)[n % 3],
            rng.integers(0, 21, rng.integers(0, 9)).tolist(),
            beams=(None, 1, 3, 40)[n % 4],
        )
        for n in range(24)
    ]
    for asked, together in zip(wave, own.recommend(wave), strict=True):
        (alone,) = own.recommend([asked])
        assert alone.rows.tolist() == together.rows.tolist()
        assert alone.exact == together.exact
        np.testing.assert_allclose(alone.scores, together.scores, atol=1e-5)
        left = asked.eligible.mask & codes().coded
        left[asked.exclude] = False
        assert len(together) == min(asked.k, left.sum())
        assert left[together.rows].all()


def test_each_step_is_run_once_for_a_wave(random: Generative) -> None:
    stages: list[str] = []

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        stages.append(name)
        yield

    random.recommend([query([n]) for n in (2, 4, 6)], stage)
    assert [shape[0] for shape in random.decoder.steps] == [3] * LEVELS
    assert stages[0] == "prefill"
    assert stages.count("decode") == LEVELS
    assert set(stages) == {"prefill", "decode", "beam"}


def test_a_late_and_a_sick_query_get_nothing_and_the_others_everything(random: Generative) -> None:
    good, late, sick, good_too = random.recommend(
        [query([4]), query([5], in_time=lambda: False), query([13]), query([6])]
    )
    assert (len(good), len(late), len(sick), len(good_too)) == (5, 0, 0, 5)
    assert (late.exact, late.steps, sick.exact) == (None, None, None)


def test_time_that_runs_out_on_the_way(random: Generative) -> None:
    left = iter([True, True, False])
    (answer,) = random.recommend([query([4], in_time=lambda: next(left))])
    assert len(answer) == 0
    assert len(random.decoder.steps) == 2


def test_an_empty_history_is_refused(random: Generative, generating: Served) -> None:
    with pytest.raises(EmptyHistory):
        random.recommend([query([4]), query([])])
    assert generating.generative is not None
    assert [generating.generative.reads(query(h).request) for h in ([3], [], [UNCODED])] == [True, False, False]


def test_all_filtered(random: Generative) -> None:
    nothing = Eligible.of(np.zeros(21, bool))
    (answer,) = random.recommend([query([4], eligible=nothing)])
    assert (len(answer), answer.exact) == (0, True)


def test_the_manifests_width_holds_unless_a_query_has_its_own(trie: ConstraintTrie) -> None:
    narrow = Generative(Tables(), trie, settings(beams=2))
    narrow.recommend([query([4], 1)])
    narrow.recommend([query([4], 1, beams=3)])
    assert [max(shape[1] for shape in narrow.decoder.steps[at : at + 3]) for at in (0, 3)] == [2, 3]


def test_few_items_left_are_all_scored(trie: ConstraintTrie) -> None:
    few = Eligible.of(np.isin(np.arange(21), [1, 5, 13, 19]))
    narrow = Generative(Tables(), trie, settings(beams=1, exact_below=4))
    (answer,) = narrow.recommend([query([4], 1, few)])
    (every,) = narrow.recommend([query([4], 4, few)])
    assert answer.exact is True
    assert answer.rows[0] == every.rows[0]


def test_large_parallel_catalogs_are_searched_by_a_beam(
    generating_at_once: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = query([3, 5], 18, beams=50)
    (exactly,) = generating_at_once.generative.recommend([asked])
    monkeypatch.setattr(generative, "EXACT_ITEMS", 5)
    stages: list[str] = []

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        stages.append(name)
        yield

    (by_beam,) = generating_at_once.generative.recommend([asked], stage)
    assert "decode" in stages
    assert by_beam.rows.tolist() == exactly.rows.tolist()
    np.testing.assert_allclose(by_beam.scores, exactly.scores, atol=1e-5)


# --- what a filter leaves is remembered ----------------------------------------------------------------


def test_a_filter_is_worked_out_once_and_memory_for_it_is_bounded(
    random: Generative, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    live = random.trie.live
    monkeypatch.setattr(random.trie, "live", lambda mask: made.append(1) or live(mask))
    random.recommend([query([4]), query([5])])
    random.recommend([query([6])])
    assert len(made) == 1
    monkeypatch.setattr(generative, "CACHE_BYTES", 3 * live(ALL.mask).nbytes)
    for _ in range(10):
        random.recommend([query([4], eligible=Eligible.of(ALL.mask.copy()))])
    gc.collect()
    assert len(random._live) == 3
    assert random._live_bytes == sum(own.nbytes for own in random._live.values())


# --- merged ----------------------------------------------------------------------------------------------


def answer(rows: Sequence[int], source: str, steps: bool = False) -> Answer:
    falling = np.linspace(1, 0.1, len(rows), dtype=np.float32)
    shares = np.arange(len(rows) * 3, dtype=np.float32).reshape(-1, 3)
    return Answer(np.array(rows), falling, (source,) * len(rows), steps or None, shares if steps else None)


def test_ranks_are_added_and_each_item_keeps_its_first_source() -> None:
    merged = fused([answer([1, 2, 3], "generated", True), answer([3, 4, 1], "retrieval")], 10)
    assert merged.rows.tolist() == [1, 3, 2, 4]  # equal scores in the order of the answers
    want = [1 / 61 + 1 / 63, 1 / 63 + 1 / 61, 1 / 62, 1 / 62]
    np.testing.assert_allclose(merged.scores, want, rtol=1e-6)
    assert merged.sources == ("generated", "generated", "generated", "retrieval")
    assert merged.exact is True
    assert merged.steps is not None
    assert merged.steps[:3].tolist() == [[0, 1, 2], [6, 7, 8], [3, 4, 5]]
    assert np.isnan(merged.steps[3]).all()


def test_merging_cuts_at_k_and_survives_nothing() -> None:
    assert fused([answer([1, 2, 3], "generated"), answer([4, 5], "retrieval")], 2).rows.tolist() == [1, 4]
    assert fused([NOTHING, answer([4, 5], "retrieval")], 5).rows.tolist() == [4, 5]
    for none in (fused([], 5), fused([NOTHING], 5), fused([NOTHING, NOTHING], 5)):
        assert (len(none), none.source, none.steps) == (0, "", None)


def test_a_hybrid_asks_each_only_what_it_can_read(generating: Served) -> None:
    hybrid = Hybrid(*generating.retrievers)
    both, retrieved = hybrid.recommend([query([3], 6, exclude=[3]), query([UNCODED], 6)])
    assert set(both.sources) == {"generated", "retrieval"}
    assert set(retrieved.sources) == {"retrieval"}
    assert not hybrid.reads(Request(History.of_rows([])))
    assert hybrid.recommend([]) == []


# --- settings --------------------------------------------------------------------------------------------


def test_settings_come_from_the_manifest(generating: Served) -> None:
    assert generating.engine.generation == Generation(3, (4, 4, 8), beams=8, widen=1)
    assert Generation.parse({"levels": 1, "vocabulary": [7], "text": "hashed"}) == Generation(1, (7,))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"levels": 2}, "levels 2, which cannot be"),
        ({"levels": 0, "vocabulary": []}, "levels 0"),
        ({"vocabulary": [4, 4, 0]}, "vocabulary"),
        ({"vocabulary": 4}, "cannot be read"),
        ({"beams": 0}, "beams 0"),
        ({"beams": None}, "cannot be read"),
        ({"widen": -1}, "widen -1"),
        ({"exact_below": -1}, "exact_below"),
        ({"candidates": "both"}, "candidates 'both'"),
        ({"window": 0}, "window 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(BundleTorn, match=says):
        Generation.parse({"levels": 3, "vocabulary": [4, 4, 8], **change})


def test_settings_that_lack_their_shape_are_refused() -> None:
    with pytest.raises(BundleTorn, match="cannot be read"):
        Generation.parse({})
