"""What is asked and answered: how many items there can be, and answers put together."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from retrieval.filters import Eligible
from retrieval.inputs import Request
from retrieval.queries import NOTHING, Answer, Query
from retrieval.sequences import EMPTY

MASK = np.array([False, True, True, False, True])


def generated(rows: Sequence[int], exact: bool = True) -> Answer:
    steps = np.ones((len(rows), 3), np.float32)
    return Answer(np.array(rows, np.int64), steps.sum(axis=1), ("generated",) * len(rows), exact, steps)


@pytest.mark.parametrize(
    ("k", "exclude", "count"),
    [(9, [], 3), (2, [], 2), (9, [1], 2), (9, [1, 1, 0, 3], 2), (9, [1, 2, 4], 0), (1, [1], 1)],
)
def test_what_is_reachable_is_eligible_and_not_excluded(k: int, exclude: list[int], count: int) -> None:
    query = Query(Request(EMPTY), k, Eligible.of(MASK.copy()), np.array(exclude, np.int64))
    assert query.reachable == count
    assert query.in_time()


def test_an_answer_goes_on_with_another_one() -> None:
    popular = Answer.of(np.array([3]), np.array([7], np.float32), "popular")
    whole = generated([1, 2]).followed_by(popular)
    assert whole.rows.tolist() == [1, 2, 3]
    assert whole.sources == ("generated", "generated", "popular")
    assert (whole.source, whole.exact) == ("generated", True)
    assert whole.steps is not None
    assert np.isnan(whole.steps).all(axis=1).tolist() == [False, False, True]
    turned = popular.followed_by(generated([1], exact=False))
    assert turned.exact is False
    assert turned.steps is not None
    assert np.isnan(turned.steps).all(axis=1).tolist() == [True, False]
    assert popular.followed_by(popular).steps is None


def test_what_was_ranked_and_arranged_stays_known_when_an_answer_goes_on() -> None:
    failed = ValueError("no number")
    ranked = Answer(
        np.array([1, 2]),
        np.array([0.9, 0.8], np.float32),
        ("retrieval",) * 2,
        ranked=2,
        ranker_error=failed,
        tasks=np.array([[0.5], [0.25]], np.float32),
        reasons=("pinned", ""),
        unmet=("one",),
    )
    popular = Answer.of(np.array([3]), np.array([7], np.float32), "popular")
    whole = ranked.followed_by(replace(popular, unmet=("two",)))
    assert whole.tasks is not None
    assert np.array_equal(whole.tasks, np.array([[0.5], [0.25], [np.nan]], np.float32), equal_nan=True)
    assert (whole.ranked, whole.ranker_error, whole.unmet) == (2, failed, ("one", "two"))
    assert whole.reasons == ("pinned", "", "")
    turned = popular.followed_by(ranked)
    assert turned.tasks is not None
    assert np.isnan(turned.tasks[:, 0]).tolist() == [True, False, False]
    assert (turned.ranked, turned.ranker_error, turned.reasons) == (2, failed, ("", "pinned", ""))
    assert popular.followed_by(popular).reasons == ()


def test_nothing_adds_nothing() -> None:
    answer = generated([1, 2])
    assert answer.followed_by(NOTHING) is answer
    assert NOTHING.followed_by(answer).rows.tolist() == [1, 2]
    assert NOTHING.followed_by(generated([])).exact is True  # a generator that had its say, and nothing to show
    assert (len(NOTHING), NOTHING.source) == (0, "")
