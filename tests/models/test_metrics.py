"""Measures against figures worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import metrics
from models.metrics import MISS
from retrieval.errors import InvalidInput
from retrieval.sequences import PAD_ROW

RANKS = np.array([1, 2, 3, 10, 11, MISS])


def test_recall_is_the_share_of_targets_among_the_first_k() -> None:
    assert metrics.recall(RANKS, 10).tolist() == [1, 1, 1, 1, 0, 0]


def test_ndcg_of_one_target_is_its_discount() -> None:
    expected = [1.0, 1 / math.log2(3), 1 / 2, 1 / math.log2(11), 0.0, 0.0]
    np.testing.assert_allclose(metrics.ndcg(RANKS, 10), expected, rtol=1e-12)


def test_mrr_is_the_inverse_of_the_rank() -> None:
    np.testing.assert_allclose(metrics.mrr(RANKS, 10), [1, 1 / 2, 1 / 3, 1 / 10, 0, 0], rtol=1e-12)


def test_coverage_does_not_count_padding() -> None:
    assert metrics.coverage(np.array([True, True, False, False, True])) == 0.5


def test_per_case_names_every_measure() -> None:
    assert list(metrics.per_case(RANKS, (5, 10))) == [
        "recall@5", "ndcg@5", "mrr@5", "recall@10", "ndcg@10", "mrr@10",
    ]  # fmt: skip


def test_rank_counts_better_items_and_equal_ones_of_a_lower_row() -> None:
    scores = np.array([[9, 0.5, 0.9, 0.5, 0.5, 0.1]] * 4, np.float32)  # row 0 is padding, whatever it scores
    assert metrics.ranks(scores, np.array([2, 1, 3, 4])).tolist() == [1, 2, 3, 4]


def test_one_score_for_everything_earns_no_more_than_the_row() -> None:
    assert metrics.ranks(np.zeros((2, 101), np.float32), np.array([1, 100])).tolist() == [1, 100]


def test_a_nan_score_is_refused() -> None:
    scores = np.zeros((1, 4), np.float32)
    scores[0, 2] = np.nan
    with pytest.raises(InvalidInput, match="NaN"):
        metrics.ranks(scores, np.array([1]))


def test_top_leaves_out_what_was_removed() -> None:
    scores = np.array([[9, 1, -np.inf, 3, 3], [9, -np.inf, -np.inf, -np.inf, 0]], np.float32)
    assert metrics.top(scores, 3).tolist() == [[3, 4, 1], [4, PAD_ROW, PAD_ROW]]


@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=5), st.integers(1, 8))
def test_top_and_ranks_agree_with_a_plain_sort(lines: list[list[int]], k: int) -> None:
    scores = np.array([[99, *line] for line in lines], np.float32)
    shown = metrics.top(scores, k)
    for b, line in enumerate(lines):
        order = sorted(range(1, 7), key=lambda row: (-line[row - 1], row))
        assert shown[b].tolist() == order[:k]
        for row in range(1, 7):
            assert metrics.ranks(scores[b : b + 1], np.array([row]))[0] == order.index(row) + 1


def test_intervals_hold_the_mean_and_narrow_with_more_users() -> None:
    values = np.random.default_rng(0).random((2000, 1))
    wide, narrow = (metrics.intervals(values[:n], np.arange(n))[0] for n in (200, 2000))
    assert wide[0] < values[:200].mean() < wide[1]
    assert narrow[1] - narrow[0] < wide[1] - wide[0]
    # The half width of a mean of uniforms is 1.96 * sqrt(1 / 12) / sqrt(n).
    assert (narrow[1] - narrow[0]) / 2 == pytest.approx(1.96 * math.sqrt(1 / 12 / 2000), rel=0.1)


def test_intervals_are_seeded() -> None:
    values = np.random.default_rng(1).random((50, 2))
    first, again, other = (metrics.intervals(values, np.arange(50), seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_cases_of_one_user_are_resampled_together() -> None:
    values = np.repeat(np.random.default_rng(2).random((100, 1)), 25, axis=0)
    alone = metrics.intervals(values[::25], np.arange(100))[0]
    together = metrics.intervals(values, np.repeat(np.arange(100), 25))[0]
    np.testing.assert_allclose(together, alone)


def test_a_constant_difference_is_certain() -> None:
    np.testing.assert_allclose(metrics.intervals(np.full((30, 1), 0.25), np.arange(30)), [[0.25, 0.25]])


def test_intervals_of_nothing_are_refused() -> None:
    with pytest.raises(InvalidInput, match="no case"):
        metrics.intervals(np.empty((0, 1)), np.empty(0, np.int64))
