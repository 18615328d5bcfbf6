"""Two stages: what is found, ranked and arranged."""

import numpy as np
import pytest
import toy
import toy_ranker

from retrieval.arrangement import Arranger
from retrieval.errors import BundleTorn, InvalidRule
from retrieval.features import Candidates
from retrieval.inputs import Request
from retrieval.rules import Cap, Rules
from retrieval.sequences import History
from retrieval.two_stage import Given, TwoStage, rank


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
    """`rank`: a caller's own candidates."""

    rows = np.array([7, 0, 18, 3, 0, 12])
    request = Request(History.of_rows([5]))

    def rank(self, ranker, *, retriever=None, **fields):
        (answer,) = rank(retriever or Scores(), ranker, [Given(self.request, self.rows, **fields)], "retrieval")
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
        (answer,) = rank(Scores(), ranker, [Given(self.request, np.array([0, 0]))], "retrieval")
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
