"""What is learnt from and what is asked: counted by hand on a handful of events."""

from dataclasses import replace

import numpy as np
import pytest

from models.errors import OrderOnly
from models.histories import Histories
from models.splits import Cases, leave_one_out, temporal
from retrieval.errors import InvalidInput


def asked(cases: Cases) -> list[tuple[list[int], int]]:
    """Every case as (rows of the history, target)."""
    return [(cases.history(c).rows.tolist(), int(cases.targets[c])) for c in range(len(cases))]


def timed(histories: list[list[int]], times: list[list[float]]) -> Histories:
    """Histories that have real times."""
    flat = np.array([t for line in times for t in line], dtype=np.float64)
    return replace(Histories.from_rows(histories), timestamps=flat, ordered_only=False)


def test_leave_one_out_asks_for_the_last_two_events() -> None:
    split = leave_one_out(Histories.from_rows([[1, 2, 3, 4], [5, 6, 7]]))
    assert asked(split.validation) == [([1, 2], 3), ([5], 6)]
    assert asked(split.test) == [([1, 2, 3], 4), ([5, 6], 7)]
    assert [split.train[u].rows.tolist() for u in range(2)] == [[1, 2], [5]]
    assert split.test.times.tolist() == [3.0, 2.0]
    assert (split.test.train_ends - split.test.starts).tolist() == [2, 1]


def test_users_with_fewer_than_three_events_only_train() -> None:
    split = leave_one_out(Histories.from_rows([[1, 2], [3], [], [4, 5, 6]]))
    assert split.train_only_users == 3
    assert split.test.users.tolist() == [3]
    assert [split.train[u].rows.tolist() for u in range(4)] == [[1, 2], [3], [], [4]]


def test_a_log_of_short_users_alone_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nothing can be held out"):
        leave_one_out(Histories.from_rows([[1, 2], [3]]))


def test_histories_of_cases_are_views() -> None:
    histories = Histories.from_rows([[1, 2, 3]])
    assert np.shares_memory(leave_one_out(histories).test.history(0).rows, histories.rows)


# Twenty events, one a second. User 0 acts early, user 1 across both cuts, user 2 only late.
TIMED = timed(
    [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [1, 2, 3, 4, 5, 6], [7, 8, 9]],
    [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 16, 18], [15, 17, 19]],
)


def test_the_temporal_split_learns_nothing_from_after_its_cut() -> None:
    split = temporal(TIMED)
    assert split.train.timestamps.max() < split.validation.times.min()
    assert split.validation.times.max() < split.test.times.min()
    assert len(split.train.rows) == 16


def test_the_temporal_split_asks_for_the_first_event_after_the_cut() -> None:
    split = temporal(TIMED)  # cuts at 16 and at 18 seconds
    assert asked(split.validation) == [([1, 2, 3, 4], 5), ([7], 8)]
    assert asked(split.test) == [([1, 2, 3, 4, 5], 6), ([7, 8], 9)]
    assert (split.test.train_ends - split.test.starts).tolist() == [4, 1]


def test_the_temporal_split_can_ask_for_every_event_with_a_growing_history() -> None:
    split = temporal(TIMED, valid_share=0.1, test_share=0.3, targets="all")  # cuts at 12 and at 14 seconds
    assert asked(split.test)[:3] == [([1, 2, 3], 4), ([1, 2, 3, 4], 5), ([1, 2, 3, 4, 5], 6)]
    assert asked(split.test)[3:] == [([7], 8), ([7, 8], 9)]
    assert split.test.users.tolist() == [1, 1, 1, 2, 2]


def test_a_new_user_is_asked_about_from_the_second_event_on() -> None:
    split = temporal(TIMED, valid_share=0.1, test_share=0.3)
    assert split.cold_cases == 1  # the first event of user 2
    assert asked(split.test) == [([1, 2, 3], 4), ([7], 8)]
    assert (split.test.train_ends - split.test.starts).tolist() == [1, 0]


def test_a_log_without_times_cannot_be_split_by_time() -> None:
    with pytest.raises(OrderOnly, match="loo"):
        temporal(Histories.from_rows([[1, 2, 3]] * 10))


def test_a_log_of_one_moment_cannot_be_split_by_time() -> None:
    with pytest.raises(InvalidInput, match="part empty"):
        temporal(timed([[1, 2, 3, 4]], [[7, 7, 7, 7]]))


@pytest.mark.parametrize("shares", [(0.0, 0.1), (0.1, -0.1), (0.5, 0.5)])
def test_shares_must_leave_every_part_something(shares: tuple[float, float]) -> None:
    with pytest.raises(InvalidInput, match="shares"):
        temporal(TIMED, valid_share=shares[0], test_share=shares[1])


def test_a_sample_is_seeded_and_says_so() -> None:
    cases = leave_one_out(Histories.from_rows([[1, 2, 3 + u] for u in range(50)])).test
    drawn = cases.sample(10, seed=4)
    assert len(drawn) == 10
    assert drawn.targets.tolist() == cases.sample(10, seed=4).targets.tolist()
    assert drawn.targets.tolist() != cases.sample(10, seed=5).targets.tolist()
    assert "10 drawn with seed 4" in drawn.words
    assert cases.sample(50, seed=1) is cases
