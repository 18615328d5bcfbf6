"""What the worker threads run, called as the batcher calls it."""

import numpy as np
import pytest
import toy_ranker

from retrieval.filters import Filter
from retrieval.inputs import Request
from retrieval.queries import NO_STAGES, Query
from retrieval.rules import Pin, Rules
from retrieval.sequences import History
from retrieval.two_stage import Given, TwoStage
from service.pace import Pace
from service.runs import Asked, Listing, Scoring

EVERYTHING = Filter()


class Broken:
    """A ranker that fails."""

    settings = toy_ranker.ranking()

    def rank(self, _candidates):
        raise RuntimeError("the ranker is broken")


class Ticking:
    """The real ranker with a price in time: so much for each candidate."""

    def __init__(self, ranker, ticks, each_s: float) -> None:
        self.settings, self._real, self._ticks, self.each_s = ranker.settings, ranker, ticks, each_s
        self.asked: list[int] = []

    def rank(self, candidates):
        self.asked += [len(one.rows) for one in candidates]
        self._ticks[0] += self.each_s * sum(self.asked[-len(candidates) :])
        return self._real.rank(candidates)


@pytest.fixture
def ticks() -> list[float]:
    return [100.0]


def listing(served, ticks, *, ranker=None, source="retrieval") -> Listing:
    stages = served.recommender
    composed = TwoStage(stages.first, ranker or stages.ranker, stages.arranger)
    return Listing(composed, source, Pace(lambda: ticks[0]), lambda: ticks[0])


def asked(served, *rows: int, k: int = 5, left_s: float = 60.0, chosen: Filter = EVERYTHING, **fields) -> Asked[Query]:
    exclude = np.array(rows, dtype=np.int64)
    query = Query(Request(History.of_rows(rows)), k, served.filters.eligible(chosen), exclude, **fields)
    return Asked(query, lambda: left_s)


def test_a_list_is_ranked_in_full_and_is_the_retrievers_own(ranked, ticks):
    (listed,) = listing(ranked, ticks)([asked(ranked, 3, 5)], NO_STAGES)
    assert (listed.is_own, listed.ranking, listed.answer.ranked) == (True, "full", toy_ranker.CANDIDATES)
    assert len(listed.answer) == 5


def test_without_a_ranker_nothing_is_said_of_ranking(served, ticks):
    (listed,) = listing(served, ticks)([asked(served, 3, 5)], NO_STAGES)
    assert (listed.is_own, listed.ranking, listed.answer.ranked) == (True, None, None)


def test_late_fewer_candidates_are_ranked_and_then_none(ranked, ticks):
    slow = Ticking(ranked.ranker, ticks, each_s=0.001)
    run = listing(ranked, ticks, ranker=slow)
    run([asked(ranked, 3)], NO_STAGES)  # learns that eight candidates take 8 ms
    for left_s, ranking, reach in ((0.005, "short", 4), (0.0005, "late", 0), (0.02, "full", 8)):
        slow.asked.clear()
        (listed,) = run([asked(ranked, 3, left_s=left_s)], NO_STAGES)
        assert (listed.ranking, listed.answer.ranked, sum(slow.asked)) == (ranking, reach, reach)
        assert listed.is_own


def test_those_who_travel_together_share_the_time(ranked, ticks):
    slow = Ticking(ranked.ranker, ticks, each_s=0.001)
    run = listing(ranked, ticks, ranker=slow)
    run([asked(ranked, 3)], NO_STAGES)
    slow.asked.clear()
    run([asked(ranked, 3, left_s=0.02), asked(ranked, 4, left_s=0.02), asked(ranked, 5, left_s=0.005)], NO_STAGES)
    assert slow.asked == [5, 5, 1]  # 80 % of the time, by three, at a millisecond each


def test_a_list_that_is_late_keeps_the_order_in_which_it_was_found(ranked, served, ticks):
    run = listing(ranked, ticks)
    (late,) = run([asked(ranked, 3, left_s=0.0)], NO_STAGES)
    (plain,) = listing(served, ticks)([asked(served, 3)], NO_STAGES)
    assert late.ranking == "late"
    assert late.answer.rows.tolist() == plain.answer.rows.tolist()
    assert late.answer.scores.tolist() == plain.answer.scores.tolist()


def test_failed_ranking_is_logged_once_a_batch_and_leaves_the_order_in_which_all_were_found(ranked, ticks, caplog):
    run = listing(ranked, ticks, ranker=Broken())
    for listed in run([asked(ranked, 3), asked(ranked, 5)], NO_STAGES):
        assert (listed.ranking, listed.is_own, str(listed.answer.ranker_error)) == (
            "failed",
            True,
            "the ranker is broken",
        )
    assert caplog.text.count("RuntimeError: the ranker is broken") == 1
    assert run.pace.affordable(1e-9, 1) > 1e6  # nothing was learnt from it


def test_empty_where_nothing_is_eligible_nothing_came_of_ranking(ranked, ticks):
    (listed,) = listing(ranked, ticks)([asked(ranked, 3, chosen=Filter(any_categories=("green",)))], NO_STAGES)
    assert (len(listed.answer), listed.is_own, listed.ranking) == (0, True, None)


def test_a_list_with_nothing_of_the_model_is_not_its_own_and_was_not_to_be_ranked(ranked, ticks):
    class Nothing:
        name = "nothing"

        def recommend(self, queries, stage):
            return ranked.popular.recommend(queries, stage)

    composed = TwoStage(Nothing(), ranked.ranker, ranked.popular.arranger)
    run = Listing(composed, "retrieval", Pace(lambda: ticks[0]), lambda: ticks[0])
    (listed,) = run([asked(ranked, 3)], NO_STAGES)
    assert (listed.is_own, listed.ranking, listed.answer.ranked) == (False, None, 0)


def test_a_list_of_pinned_items_alone_is_still_the_retrievers_own(served, ticks):
    pinned = Rules(pins=(Pin("i15", 1),))
    (listed,) = listing(served, ticks)([asked(served, 3, k=1, rules=pinned)], NO_STAGES)
    assert listed.is_own
    assert (listed.answer.rows.tolist(), listed.answer.reasons) == ([15], ("pinned",))


def test_runs_are_equal_where_they_would_do_the_same(ranked, ticks):
    clock = lambda: ticks[0]  # noqa: E731
    pace = Pace(clock)
    one, other = (Listing(ranked.recommender, "retrieval", pace, clock) for _ in range(2))
    assert one == other != Listing(ranked.dense, "retrieval", pace, clock)
    retriever = ranked.retrievers[0]
    one, other = (Scoring(retriever, ranked.ranker, "retrieval", pace, clock) for _ in range(2))
    assert one == other != Scoring(retriever, None, "retrieval", pace, clock)


@pytest.mark.parametrize(("left_s", "ranking", "reach"), [(60.0, "full", 3), (0.0025, "short", 2), (0.0, "late", 0)])
def test_given_candidates_are_put_in_order_as_far_as_there_is_time(ranked, ticks, left_s, ranking, reach):
    slow = Ticking(ranked.ranker, ticks, each_s=0.001)
    run = Scoring(ranked.retrievers[0], slow, "retrieval", Pace(lambda: ticks[0]), lambda: ticks[0])
    request = Request(History.of_rows([5]))
    run([Asked(Given(request, np.array([1, 2])), lambda: 60.0)], NO_STAGES)
    (listed,) = run([Asked(Given(request, np.array([0, 4, 6, 15])), lambda: left_s)], NO_STAGES)
    assert (listed.ranking, listed.answer.ranked, listed.is_own) == (ranking, reach, True)
    assert sorted(listed.answer.rows.tolist()) == [4, 6, 15]
