"""Histories and the windows cut from them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.errors import InvalidInput
from retrieval.sequences import EMPTY, PAD_ROW, SHARED, History, window


@given(columns=st.lists(st.lists(st.integers(1, 99), max_size=12), max_size=5), length=st.integers(1, 15))
def test_a_window_has_its_length_and_ends_with_the_newest(columns: list[list[int]], length: int) -> None:
    out = window([np.array(c, np.int64) for c in columns], length=length, fill=PAD_ROW, dtype=np.int64)
    assert out.shape == (len(columns), length)
    for row, column in zip(out.tolist(), columns, strict=True):
        assert row == ([PAD_ROW] * length + column)[-length:]


@pytest.mark.parametrize("length", [0, -1])
def test_a_window_without_length_is_refused(length: int) -> None:
    with pytest.raises(InvalidInput, match=f"window length {length} is not positive"):
        window([], length=length, fill=0, dtype=np.int64)


def test_a_window_takes_the_fill_and_the_dtype_it_is_told() -> None:
    out = window([np.array([1.5], np.float32)], length=2, fill=np.nan, dtype=np.float64)
    assert out.dtype == np.float64
    np.testing.assert_array_equal(out, [[np.nan, 1.5]])


def test_the_newest_events_of_a_history_stay_together() -> None:
    history = History(
        np.array([1, 2, 3]), np.array([0, 1, 2]), np.array([0.1, 0.2, 0.3], np.float32), np.array([10.0, 20.0, 30.0])
    )
    newest = history.newest(2)
    assert newest.rows.tolist() == [2, 3]
    assert newest.event_types.tolist() == [1, 2]
    np.testing.assert_allclose(newest.values, [0.2, 0.3])
    assert newest.timestamps.tolist() == [20, 30]
    assert history.newest(3) is history
    assert len(history.newest(0)) == 0


def test_a_part_of_a_history_keeps_its_columns_together() -> None:
    history = History.of_events(np.array([3, 4, 5]), [1, 2, 3], [4.5, 1.0, None], [10.0, 20.0, 30.0])
    part = history.where(np.array([True, False, True]))
    assert part.rows.tolist() == [3, 5]
    assert part.event_types.tolist() == [1, 3]
    assert part.timestamps.tolist() == [10, 30]
    assert history.where(np.ones(3, bool)) is history
    assert len(EMPTY.where(np.zeros(0, bool))) == 0


def test_a_history_of_rows_has_types_values_and_times_to_go_with_them() -> None:
    history = History.of_rows([4, 5])
    assert (history.rows.dtype, history.event_types.dtype, history.values.dtype, history.timestamps.dtype) == (
        np.int64,
        np.int64,
        np.float32,
        np.float64,
    )
    assert history.event_types.tolist() == [0, 0]
    assert np.isnan(history.values).all()
    assert history.timestamps.tolist() == [0, 1]


def test_a_history_of_events_leaves_unknown_items_out() -> None:
    history = History.of_events(np.array([3, PAD_ROW, 5]), [1, 2, 3], [4.5, 1.0, None], [10.0, 20.0, 30.0])
    assert history.rows.tolist() == [3, 5]
    assert history.event_types.tolist() == [1, 3]
    np.testing.assert_array_equal(history.values, np.array([4.5, np.nan], np.float32))
    assert history.timestamps.tolist() == [10, 30]


def test_a_history_of_unknown_items_only_is_empty() -> None:
    assert len(History.of_events(np.array([PAD_ROW, PAD_ROW]), [0, 0], [None, None], [1.0, 2.0])) == 0


@pytest.mark.parametrize("rows", [[3, PAD_ROW, 5], [3, 4], [PAD_ROW], [], [7] * (SHARED + 1)])
@pytest.mark.parametrize("has_own_times", [False, True])
def test_a_history_of_items_alone_is_that_of_events_of_one_type(rows: list[int], has_own_times: bool) -> None:
    known, n = np.array(rows, dtype=np.int64), len(rows)
    times = [float(at) for at in range(n)] if has_own_times else [7.5] * n
    expected = History.of_events(known, [2] * n, [None] * n, times)
    made = History.of_items(known, 2, times if has_own_times else 7.5)
    for name in ("rows", "event_types", "values", "timestamps"):
        own, other = getattr(made, name), getattr(expected, name)
        assert own.dtype == other.dtype
        np.testing.assert_array_equal(own, other)


def test_the_empty_history() -> None:
    assert len(EMPTY) == len(EMPTY.newest(5)) == 0
    assert EMPTY.rows.dtype == np.int64
