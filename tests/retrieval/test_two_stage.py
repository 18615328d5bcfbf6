"""Two stages: what is found, ranked and arranged."""

import numpy as np
import pytest
import toy
import toy_ranker

from retrieval.arrangement import Arranger
from retrieval.errors import BundleTorn, InvalidRule
from retrieval.features import Candidates
from retrieval.filters import NO_FILTER, Filters
from retrieval.inputs import Request
from retrieval.queries import NO_STAGES, Answer, Query
from retrieval.rules import Cap, Rules
from retrieval.sequences import EMPTY, History
from retrieval.two_stage import Given, TwoStage, order, score


class Scores:
    """A retriever that knows the scores of rows 1 to 20: their numbers; 18 has none."""

    name = "scores"

    def __init__(self, score=float) -> None:
        self.score = score

    def reads(self, _request) -> bool:
        return True

    def recommend(self, *_):
        raise AssertionError("only given items are asked for")

    def rank(self, _requests, rows):
        return [
            np.array([-np.inf if row in (0, 18) else self.score(row) for row in own.tolist()], np.float32)
            for own in rows
        ]


class Prices:
    """A ranker whose tasks are 1 / row and row / 100; it says what it was asked."""

    settings = toy_ranker.ranking()

    def __init__(self, factor: float = 1.0) -> None:
        self.asked: list[Candidates] = []
        self.factor = factor

    def rank(self, candidates):
        self.asked += candidates
        return [np.stack([self.factor / one.rows, one.rows / 100], axis=1).astype(np.float32) for one in candidates]


class TestGivenItems:
    """`score` and `order`: a caller's own candidates."""

    rows = np.array([7, 0, 18, 3, 0, 12])
    request = Request(History.of_rows([5]))

    def rank(self, ranker, *, retriever=None, **fields):
        given = [Given(self.request, self.rows, **fields)]
        found = score(retriever or Scores(), given, "retrieval")
        (answer,) = found if ranker is None else order(ranker, given, found)
        return answer

    def test_without_a_ranker_they_are_in_the_order_of_the_retriever(self):
        answer = self.rank(None)
        assert answer.rows.tolist() == [12, 7, 3, 18]
        assert answer.scores.tolist() == [12, 7, 3, -np.inf]
        assert (answer.ranked, answer.tasks, answer.source) == (None, None, "retrieval")

    def test_a_ranker_reads_all_that_the_catalog_knows_the_best_first_and_puts_them_in_order(self):
        ranker = Prices()
        answer = self.rank(ranker)
        (asked,) = ranker.asked
        assert asked.rows.tolist() == [12, 7, 3, 18]
        assert asked.scores.tolist() == [12, 7, 3, -np.inf]
        assert answer.rows.tolist() == [3, 7, 18, 12]
        assert answer.ranked == 4
        expected = [1 / row + 0.5 * row / 100 for row in answer.rows.tolist()]
        assert answer.scores == pytest.approx(expected, abs=1e-6)
        assert answer.tasks[:, 1] == pytest.approx([0.03, 0.07, 0.18, 0.12], abs=1e-6)

    def test_goals_move_them(self):
        assert self.rank(Prices(), goals={"like": 1.0}).rows.tolist() == [18, 12, 7, 3]

    def test_late_only_so_many_are_ranked_and_the_rest_follow_as_the_retriever_had_them(self):
        answer = self.rank(Prices(), rankable=lambda: 2)
        assert (answer.rows.tolist(), answer.ranked) == ([7, 12, 3, 18], 2)
        assert np.isnan(answer.tasks[2:]).all()
        assert answer.scores[1] > answer.scores[2] > answer.scores[3] == -np.inf
        none = self.rank(Prices(), rankable=lambda: 0)
        assert (none.rows.tolist(), none.ranked, none.scores[0]) == ([12, 7, 3, 18], 0, 12)

    def test_empty_where_the_catalog_knows_none_of_them(self):
        ranker = Prices()
        given = [Given(self.request, np.array([0, 0]))]
        (answer,) = order(ranker, given, score(Scores(), given, "retrieval"))
        assert (len(answer), answer.ranked, ranker.asked) == (0, 0, [])

    def test_where_the_retriever_made_no_number_nothing_is_ranked(self):
        ranker = Prices()
        answer = self.rank(ranker, retriever=Scores(lambda _: np.nan))
        assert np.isnan(answer.scores).any()
        assert (answer.ranked, ranker.asked) == (0, [])

    def test_a_ranker_whose_numbers_are_none_leaves_the_order_of_the_retriever_and_says_so(self):
        answer = self.rank(Prices(np.nan))
        assert (answer.rows.tolist(), answer.ranked) == ([12, 7, 3, 18], 0)
        assert isinstance(answer.ranker_error, BundleTorn)


class TestWhatMeansNothingHere:
    """`TwoStage.check`."""

    def two_stage(self, ranker) -> TwoStage:
        return TwoStage(Scores(), ranker, Arranger(toy.catalog(), toy.vectors()))

    def test_a_goal_that_is_no_task_is_refused(self):
        self.two_stage(Prices()).check({"like": 2.0})
        with pytest.raises(InvalidRule, match="'sale' is no task of this ranker, which predicts click, like"):
            self.two_stage(Prices()).check({"sale": 1.0})

    def test_goals_without_a_ranker_are_refused(self):
        self.two_stage(None).check({})
        with pytest.raises(InvalidRule, match=r"goals \(click\) weigh what a ranker predicts, and"):
            self.two_stage(None).check({"click": 1.0})

    def test_a_rule_about_what_the_catalog_does_not_have_is_refused(self):
        self.two_stage(None).check({}, Rules(caps=(Cap(2),)))
        with pytest.raises(InvalidRule, match="colour"):
            self.two_stage(None).check({}, Rules(caps=(Cap(2, "colour"),)))


class Found:
    """A first stage that finds rows 1, 2, 3, ... with scores falling from 10, and then popular ones."""

    name = "found"

    def __init__(self, retrieved: int = 1000, popular: int = 1000) -> None:
        self.retrieved, self.popular = retrieved, popular
        self.asked: list[Query] = []

    def reads(self, request) -> bool:
        return bool(len(request.history))

    def recommend(self, queries, stage=NO_STAGES):
        self.asked += queries
        with stage("retrieve"):
            return [self._answer(query) for query in queries]

    def _answer(self, query: Query) -> Answer:
        rows = query.eligible.rows
        rows = rows[~np.isin(rows, query.exclude)][: min(query.k, self.retrieved + self.popular)]
        sources = ["retrieval"] * min(len(rows), self.retrieved)
        sources += ["popular"] * (len(rows) - len(sources))
        scores = [10.0 - n if source == "retrieval" else 500.0 - n for n, source in enumerate(sources)]
        return Answer(rows, np.array(scores, np.float32), tuple(sources))


class Failing(Prices):
    """A ranker that raises."""

    def rank(self, candidates):
        super().rank(candidates)
        raise RuntimeError("the graph broke")


class Half(Prices):
    """A ranker that has no numbers for lists that begin with row 1."""

    def rank(self, candidates):
        return [
            np.where(one.rows[0] == 1, np.float32(np.nan), own)
            for one, own in zip(candidates, super().rank(candidates), strict=True)
        ]


class TestRecommendations:
    """`TwoStage.recommend`: what is found, in order."""

    catalog = toy.catalog()

    def two_stage(self, ranker, first=None) -> TwoStage:
        return TwoStage(first or Found(), ranker, Arranger(self.catalog, toy.vectors()))

    def query(self, k=3, exclude=(), **fields) -> Query:
        eligible = Filters(self.catalog).eligible(NO_FILTER)
        return Query(Request(History.of_rows([5])), k, eligible, np.array(exclude, np.int64), **fields)

    def test_the_best_of_as_many_candidates_as_the_ranker_reads(self):
        ranker, first = Prices(), Found()
        (answer,) = self.two_stage(ranker, first).recommend([self.query(goals={"like": 1.0})])
        assert [query.k for query in first.asked] == [8]
        assert answer.rows.tolist() == [8, 7, 6]
        assert answer.ranked == 8
        assert ranker.asked[0].scores.tolist() == [10, 9, 8, 7, 6, 5, 4, 3]
        assert answer.scores == pytest.approx([0.08, 0.07, 0.06])
        assert answer.tasks[:, 0] == pytest.approx([1 / 8, 1 / 7, 1 / 6])

    def test_a_longer_list_than_that_is_ranked_whole(self):
        (answer,) = self.two_stage(Prices()).recommend([self.query(12, goals={"like": 1.0})])
        assert (answer.rows.tolist(), answer.ranked) == ([*range(12, 0, -1)], 12)

    def test_equal_scores_stay_as_they_were_found(self):
        (answer,) = self.two_stage(Prices(0.0)).recommend([self.query(8, goals={"click": 1.0})])
        assert answer.rows.tolist() == [*range(1, 9)]

    @pytest.mark.parametrize("n", [-1, 0, 1, 2, 5, 8, 9, 1 << 31])
    def test_so_many_are_ranked_as_there_is_time_for_and_the_rest_follow(self, n):
        ranker = Prices()
        (answer,) = self.two_stage(ranker).recommend([self.query(8, goals={"like": 1.0}, rankable=lambda: n)])
        reach = min(max(n, 0), 8)
        assert answer.ranked == reach
        assert answer.rows.tolist() == [*range(reach, 0, -1), *range(reach + 1, 9)]
        assert [len(one.rows) for one in ranker.asked] == [reach] * (reach > 0)
        assert (np.diff(answer.scores) <= 0).all()
        if reach:
            assert np.isnan(answer.tasks).any(axis=1).tolist() == [False] * reach + [True] * (8 - reach)
        else:
            assert (answer.tasks, answer.scores[0]) == (None, 10)

    @pytest.mark.parametrize("n", [1, 3, 5, 6])
    @pytest.mark.parametrize("weight", [1.0, -1.0, 1e6])
    def test_scores_never_rise_though_sources_have_scales_of_their_own(self, n, weight):
        stages = self.two_stage(Prices(), Found(retrieved=4))
        (answer,) = stages.recommend([self.query(8, goals={"like": weight}, rankable=lambda: n)])
        assert set(answer.sources) == {"retrieval", "popular"}
        assert (np.diff(answer.scores) <= 0).all()
        assert np.isfinite(answer.scores).all()

    def test_what_is_popular_has_no_score_for_a_ranker(self):
        ranker = Prices()
        self.two_stage(ranker, Found(retrieved=2)).recommend([self.query()])
        assert np.isnan(ranker.asked[0].scores).tolist() == [False] * 2 + [True] * 6

    def test_a_list_of_what_is_popular_alone_is_not_ranked(self):
        ranker = Prices()
        (answer,) = self.two_stage(ranker, Found(retrieved=0)).recommend([self.query()])
        assert (answer.rows.tolist(), answer.tasks, ranker.asked) == ([1, 2, 3], None, [])
        assert not answer.ranked

    def test_empty(self):
        ranker = Prices()
        every = np.arange(1, 21)
        (answer,) = self.two_stage(ranker).recommend([self.query(exclude=every)])
        assert (len(answer), ranker.asked) == (0, [])
        assert self.two_stage(ranker).recommend([]) == []

    def test_a_ranker_that_fails_leaves_the_order_and_says_why(self):
        late, empty = self.query(rankable=lambda: 0), self.query(exclude=np.arange(1, 21))
        answers = self.two_stage(Failing()).recommend([self.query(), late, empty])
        assert answers[0].rows.tolist() == answers[1].rows.tolist() == [1, 2, 3]
        assert [answer.ranked for answer in answers] == [0, 0, 0]
        assert isinstance(answers[0].ranker_error, RuntimeError)
        assert (answers[1].ranker_error, answers[2].ranker_error) == (None, None)

    def test_a_list_without_numbers_takes_no_other_down(self):
        queries = [self.query(), self.query(exclude=[1], goals={"like": 1.0})]
        bad, good = self.two_stage(Half()).recommend(queries)
        assert (bad.rows.tolist(), bad.ranked, bad.tasks) == ([1, 2, 3], 0, None)
        assert isinstance(bad.ranker_error, BundleTorn)
        assert (good.rows.tolist(), good.ranked, good.ranker_error) == ([9, 8, 7], 8, None)

    def test_each_query_of_a_batch_has_goals_of_its_own_and_one_run_serves_all(self):
        ranker, calls = Prices(), []
        real, ranker.rank = ranker.rank, lambda lists: calls.append(len(lists)) or real(lists)
        goals = [{"like": 1.0}, {"click": 1.0}, {}, {"click": -1.0}, {"click": 1.0, "like": 1000.0}]
        answers = self.two_stage(ranker).recommend([self.query(goals=wanted) for wanted in goals])
        assert calls == [5]
        firsts = [answer.rows.tolist() for answer in answers]
        assert firsts == [[8, 7, 6], [1, 2, 3], [1, 2, 3], [8, 7, 6], [8, 7, 6]]
        for alone, answer in zip(goals, answers, strict=True):
            (same,) = self.two_stage(Prices()).recommend([self.query(goals=alone)])
            assert same.scores.tobytes() == answer.scores.tobytes()

    def test_rules_choose_from_what_was_ranked(self):
        rules = Rules(caps=(Cap(1),))
        plain, capped = self.two_stage(Prices()).recommend(
            [self.query(2, goals={"like": 1.0}), self.query(2, goals={"like": 1.0}, rules=rules)]
        )
        assert plain.rows.tolist() == [8, 7]
        assert capped.rows.tolist()[0] == 8
        assert len(capped) == 2
        assert capped.reasons
        assert capped.ranked == 8

    def test_rules_without_a_ranker_choose_from_more_than_is_shown(self):
        first = Found()
        answers = self.two_stage(None, first).recommend([self.query(2), self.query(2, rules=Rules(caps=(Cap(1),)))])
        assert [query.k for query in first.asked] == [2, 200]
        assert [answer.ranked for answer in answers] == [None, None]
        assert [len(answer) for answer in answers] == [2, 2]

    def test_with_neither_nothing_is_done(self):
        first, stages = Found(), []
        (answer,) = self.two_stage(None, first).recommend(
            [self.query(2)], lambda name: stages.append(name) or NO_STAGES(name)
        )
        assert (answer.rows.tolist(), answer.ranked, stages) == ([1, 2], None, ["retrieve"])

    def test_the_stages_have_names(self):
        stages = []
        self.two_stage(Prices()).recommend([self.query()], lambda name: stages.append(name) or NO_STAGES(name))
        assert stages == ["retrieve", "rank", "arrange"]

    def test_it_reads_what_its_first_stage_reads(self):
        assert self.two_stage(Prices()).reads(Request(History.of_rows([1])))
        assert not self.two_stage(Prices()).reads(Request(EMPTY))
