"""Counts against counts made by hand, and against the baseline that counts the same."""

import numpy as np
import pytest

from models.baselines import Transitions
from models.histories import Histories
from models.statistics import PRIOR, count
from retrieval.features import DECAY, FOLLOWED
from retrieval.sequences import History
from retrieval.statistics import Statistics
from retrieval.tasks import Task

TRAIN = Histories.from_rows([[1, 2, 3], [1, 2, 4], [2, 1, 5], [4]])
N = 6  # item 6 has no event


def pairs(made: Statistics) -> dict[tuple[int, int], float]:
    """What was counted, by (before, after)."""
    size = len(made.values)
    return {divmod(key, size): weight for key, weight in zip(made.pairs.tolist(), made.weights.tolist(), strict=True)}


def test_followers_are_counted_by_their_distance() -> None:
    made = count(TRAIN, N, (), window=2, decay=0.5, damping=0.0)
    assert pairs(made) == {
        (1, 2): 2.0,
        (1, 3): 0.5,
        (1, 4): 0.5,
        (1, 5): 1.0,
        (2, 1): 1.0,
        (2, 3): 1.0,
        (2, 4): 1.0,
        (2, 5): 0.5,
    }
    assert (np.diff(made.pairs) > 0).all()


def test_damping_divides_by_how_often_the_item_occurs() -> None:
    assert pairs(count(TRAIN, N, (), window=1, damping=1.0))[1, 2] == pytest.approx(2 / 3)


def test_only_the_strongest_followers_stay_and_equal_ones_by_row() -> None:
    made = pairs(count(TRAIN, N, (), window=2, decay=0.5, damping=0.0, followers=2))
    assert set(made) == {(1, 2), (1, 5), (2, 1), (2, 3)}


@pytest.mark.parametrize("damping", [0.0, 0.6])
def test_votes_are_those_of_the_baseline_where_nothing_is_pruned(damping: float) -> None:
    rng = np.random.default_rng(3)
    train = Histories.from_rows([rng.integers(1, 31, rng.integers(1, 20)).tolist() for _ in range(60)])
    made = count(train, 30, (), damping=damping, followers=31)
    asked = History.of_rows([4, 9, 2, 2, 17, 30, 5])
    baseline = Transitions(train, 30, window=FOLLOWED, decay=DECAY, damping=damping).scores([asked], [0.0])[0]
    newest = asked.rows[::-1][:FOLLOWED]
    found = made.follow(newest[None, :], np.arange(31)[None, :])[0]
    votes = (DECAY ** np.arange(FOLLOWED)[:, None] * found).sum(axis=0)
    np.testing.assert_allclose(votes, baseline, atol=2e-6)


def test_rates_and_values_are_drawn_towards_those_of_all() -> None:
    log = Histories(
        offsets=np.array([0, 5]),
        rows=np.array([1, 1, 1, 2, 3]),
        event_types=np.zeros(5, np.int64),
        values=np.array([5, 5, 2, 4, np.nan], np.float32),
        timestamps=np.arange(5.0),
        user_ids=("u",),
    )
    made = count(log, 4, (Task("click"), Task("like", op=">=", value=4.0)))
    assert made.rates.shape == (5, 2)
    assert made.rates[:, 0].tolist()[1:4] == [1, 1, 1]
    share, mean = 3 / 4, 16 / 4  # one event has no value to judge by
    np.testing.assert_allclose(made.rates[1, 1], (2 + PRIOR * share) / (3 + PRIOR), rtol=1e-6)
    np.testing.assert_allclose(made.rates[2, 1], (1 + PRIOR * share) / (1 + PRIOR), rtol=1e-6)
    np.testing.assert_allclose(made.values[1], (12 + PRIOR * mean) / (3 + PRIOR), rtol=1e-6)
    assert np.isnan(made.values[[0, 3, 4]]).all()  # no event, or none with a value
    assert np.isnan(made.rates[[0, 4]]).all()
    assert np.isnan(made.rates[3, 1])


def test_a_log_without_values_has_none() -> None:
    made = count(TRAIN, N, (Task("click"),))
    assert np.isnan(made.values).all()
    assert made.values.dtype == made.rates.dtype == made.weights.dtype == np.float32


def test_empty() -> None:
    made = count(Histories.from_rows([[]]), 2, (Task("click"),))
    assert not len(made.pairs)
    assert np.isnan(made.rates).all()
    assert made.follow(np.array([[1]]), np.array([[2]])).tolist() == [[[0]]]
