"""The pace of ranking: what recent batches took is what the next one is expected to take."""

import pytest

from retrieval.queries import EVERY_CANDIDATE
from service.pace import A_FEW, Pace

BATCH_S, EACH_S = 0.002, 0.00001


class Ticks:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


@pytest.fixture
def pace(ticks) -> Pace:
    return Pace(ticks)


def took(candidates: int) -> float:
    return BATCH_S + EACH_S * candidates


def settled(pace: Pace) -> Pace:
    for candidates in (200, 6_400, 200, 3_200, 1_600, 200, 6_400):
        pace.learn(candidates, took(candidates))
    return pace


def test_empty_whoever_has_learnt_nothing_ranks_everything(pace):
    pace.learn(0, 5.0)  # a batch in which nothing was ranked says nothing
    assert pace.affordable(0.001, 64) == EVERY_CANDIDATE


def test_what_a_batch_costs_in_itself_is_told_from_what_each_candidate_costs(pace):
    settled(pace)
    for requests in (1, 8, 32):
        expected = (0.05 - BATCH_S) / (EACH_S * requests)
        assert pace.affordable(0.05, requests) == pytest.approx(expected, rel=1e-3, abs=1)


def test_late_no_time_is_no_candidate_and_too_little_for_a_batch_neither(pace):
    assert pace.affordable(0.0, 1) == pace.affordable(-1.0, 1) == 0  # whatever was learnt
    settled(pace)
    assert pace.affordable(BATCH_S / 2, 1) == 0


def test_batches_of_one_size_are_taken_for_proportional(pace):
    for _ in range(3):
        pace.learn(200, 0.004)
    assert pace.affordable(0.002, 1) == 100
    assert pace.affordable(0.016, 4) == 200


def test_what_costs_the_same_whatever_its_size_can_be_had_in_full_or_not_at_all(pace):
    for candidates in (100, 400, 200):
        pace.learn(candidates, 0.01)
    assert pace.affordable(0.02, 64) == EVERY_CANDIDATE
    assert pace.affordable(0.005, 1) == 0


def test_one_hiccup_changes_little_and_a_lasting_change_is_believed(pace):
    for _ in range(5):
        pace.learn(200, 0.004)
    pace.learn(200, 1.0)
    assert pace.affordable(0.008, 1) > 300  # 400 before
    for _ in range(30):
        pace.learn(200, 0.04)
    assert pace.affordable(0.008, 1) == pytest.approx(40, abs=2)


def test_an_estimate_that_leaves_no_time_is_tried_again_after_a_while(pace, ticks):
    for candidates in (200, 400, 200):
        pace.learn(candidates, 0.01)
    assert pace.affordable(0.008, 1) == 0
    ticks.now += 1.0
    assert pace.affordable(0.004, 1) == 0  # less than half of what it takes
    assert pace.affordable(0.008, 1) == A_FEW
    pace.learn(A_FEW, 0.01)
    assert pace.affordable(0.008, 1) == 0  # until the next time
    ticks.now += 1.0
    assert pace.affordable(0.008, 1) == A_FEW


def test_a_clock_that_stood_still_is_no_estimate_for_ever(pace):
    pace.learn(200, 0.0)
    assert pace.affordable(1e-9, 64) == EVERY_CANDIDATE
    for _ in range(30):
        pace.learn(200, 0.004)
    assert pace.affordable(0.002, 1) == pytest.approx(100, abs=1)
