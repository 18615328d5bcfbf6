"""Calibration by hand, beside slow oracles, and where the truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import calibration
from models.calibration import auc, chosen, expected_error, group_auc, isotonic, log_loss, platt, pooled, thinned
from retrieval.calibration import Isotonic, Platt, logit
from retrieval.errors import InvalidInput

SMALL = st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=40)


def simulated(n: int, seed: int = 0, slope: float = 1.0, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """What is said, and outcomes of sigmoid(slope * logit + offset)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1.5, 1.5, n)
    said = (1 / (1 + np.exp(-z))).astype(np.float32)
    return said, (rng.random(n) < 1 / (1 + np.exp(-(slope * z + offset)))).astype(np.float32)


# Maps


def test_platt_finds_slope_and_offset() -> None:
    made = platt(*simulated(100_000, slope=0.5, offset=-1.0))
    assert made is not None
    assert (made.slope, made.offset) == (pytest.approx(0.5, abs=0.02), pytest.approx(-1.0, abs=0.03))


def test_platt_is_where_the_gradient_is_zero() -> None:
    said, labels = simulated(300, seed=3)
    made = platt(said, labels)
    assert made is not None
    ones = labels.sum()
    targets = np.where(labels > 0, (ones + 1) / (ones + 2), 1 / (len(labels) - ones + 2))
    left = 1 / (1 + np.exp(-(made.slope * logit(said) + made.offset))) - targets
    assert abs(left.mean()) < 1e-8
    assert abs((left * logit(said)).mean()) < 1e-8


def test_platt_of_labels_that_are_told_apart_stays_finite() -> None:
    made = platt(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1]))
    assert made is not None
    # By Platt's targets two of two are three quarters, and no more is claimed in the middle of each side.
    assert float(made(np.array([0.85], np.float32))[0]) == pytest.approx(0.75, abs=0.02)


def test_platt_never_turns_the_order_round() -> None:
    said, labels = simulated(1000)
    assert platt(said, 1 - labels) is None


@pytest.mark.parametrize("fit", [platt, isotonic])
@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_one_outcome_is_nothing_to_fit(fit: object, outcome: float) -> None:
    assert fit(np.array([0.2, 0.4, 0.7]), np.full(3, outcome)) is None


def slow_rising(points: np.ndarray, shares: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The rising sequence nearest to `shares`, by max over left ends of min over right ends of weighted means."""
    n = len(points)
    mean = {(i, j): np.average(shares[i : j + 1], weights=weights[i : j + 1]) for i in range(n) for j in range(i, n)}
    return np.array([max(min(mean[i, j] for j in range(at, n)) for i in range(at + 1)) for at in range(n)])


@settings(deadline=None, max_examples=60)
@given(SMALL)
def test_blocks_are_those_of_the_slow_oracle(drawn: list[tuple[int, bool]]) -> None:
    p, y = np.array([a / 20 for a, _ in drawn]), np.array([float(b) for _, b in drawn])
    points, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    expected = slow_rising(points, np.bincount(inverse, weights=y) / counts, counts)
    said, held = pooled(p, y)
    assert (np.diff(held) > 0).all()
    np.testing.assert_allclose(held, np.unique(expected.round(12)), atol=1e-9)
    for centre, value in zip(said, held, strict=True):
        own = np.isclose(expected, value)
        assert centre == pytest.approx(np.average(points[own], weights=counts[own]))


def test_isotonic_by_hand() -> None:
    """0.4 and 0.3 violate each other: one block of centre 0.35 and share 1/2, with three candidates of 0.6 behind."""
    said = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.6, 0.6])
    made = isotonic(said, np.array([0, 0, 1, 0, 1, 1, 0]))
    assert made is not None
    # Three of four others and four of three fulfilled: nothing below 1/6 or above 4/5.
    np.testing.assert_allclose(made.said, [0.1, 0.15, 0.35, 0.6])
    np.testing.assert_allclose(made.held, [1 / 6, 1 / 6, 1 / 2, 2 / 3])


def test_isotonic_ties_nothing_between_its_ends() -> None:
    made = isotonic(*simulated(5000, slope=0.6))
    assert made is not None
    said = np.linspace(made.said[0], made.said[-1], 200, dtype=np.float32)
    flat = np.diff(made(said)) == 0
    assert flat.mean() < 0.1
    assert not flat[10:-10].any()


def test_isotonic_is_true_where_the_truth_bends() -> None:
    rng = np.random.default_rng(5)
    said = rng.random(200_000)
    made = isotonic(said, (rng.random(len(said)) < said**3).astype(np.float32))
    assert made is not None
    assert len(made.said) <= calibration.KNOTS
    grid = np.linspace(0.02, 0.98, 97, dtype=np.float32)
    assert np.abs(made(grid) - grid**3).max() < 0.03


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(4, 20), st.sampled_from([0.3, 1.0, 6.0]))
def test_thinning_moves_a_line_no_more_than_it_says(seed: int, knots: int, bend: float) -> None:
    rng = np.random.default_rng(seed)
    said = np.cumsum(rng.exponential(size=200) ** bend + 1e-9)
    held = np.cumsum(rng.exponential(size=200) ** (bend * 2))
    kept = thinned(said, held, knots)
    assert len(kept) <= knots
    assert (kept[0], kept[-1]) == (0, 199)
    moved = np.abs(np.interp(said, said[kept], held[kept]) - held).max()
    assert moved <= 2 * (held[-1] - held[0]) / (knots - 2) + 1e-9


def test_few_knots_are_all_kept() -> None:
    assert thinned(np.arange(4.0), np.arange(4.0) ** 2, 4).tolist() == [0, 1, 2, 3]


# The choice


@pytest.mark.parametrize(
    ("bend", "kind"),
    [
        (lambda p: p, "none"),
        (lambda p: 1 / (1 + np.exp(-(0.4 * np.log(p / (1 - p)) - 2))), "platt"),
        (lambda p: np.where(p < 0.5, 0.05, 0.6), "isotonic"),
    ],
)
def test_the_map_that_is_best_elsewhere_is_chosen(bend: object, kind: str) -> None:
    rng = np.random.default_rng(2)
    said = np.clip(rng.random(40_000), 1e-3, 1 - 1e-3).astype(np.float32)
    labels = (rng.random(len(said)) < bend(said)).astype(np.float32)
    made, facts = chosen(said, labels, np.arange(len(said)) // 20)
    assert facts["kind"] == kind
    assert isinstance(made, {"none": type(None), "platt": Platt, "isotonic": Isotonic}[kind])
    assert set(facts["log_loss"]) == {"none", "platt", "isotonic"}
    assert facts["log_loss"][kind] == min(facts["log_loss"].values())
    fresh = np.clip(rng.random(40_000), 1e-3, 1 - 1e-3).astype(np.float32)
    outcome = (rng.random(len(fresh)) < bend(fresh)).astype(np.float32)
    assert expected_error(fresh if made is None else made(fresh), outcome) < 0.012


def test_the_choice_is_the_same_each_time() -> None:
    said, labels = simulated(2000, slope=0.5)
    assert chosen(said, labels, seed=3) == chosen(said, labels, seed=3)


@pytest.mark.parametrize(
    ("said", "labels"),
    [([], []), ([0.3], [1.0]), ([0.3, 0.4], [0.0, 0.0]), ([0.3, 0.4, 0.5], [0.0, 1.0, 0.0])],
    ids=["empty", "one candidate", "one outcome", "one fulfilled"],
)
def test_where_nothing_can_be_fitted_a_task_stays_as_it_is(said: list[float], labels: list[float]) -> None:
    made, facts = chosen(np.array(said, np.float32), np.array(labels, np.float32))
    assert (made, facts["kind"]) == (None, "none")


def test_what_a_place_adds_shifts_the_logit() -> None:
    said = calibration.shifted(np.array([[0.5, 0.2]], np.float32), np.array([[0.0, -1.0]], np.float32))
    assert said.dtype == np.float32
    np.testing.assert_allclose(said, [[0.5, 1 / (1 + math.exp(1) / 0.25)]], rtol=1e-6)


# Measures


def test_log_loss_by_hand() -> None:
    assert log_loss([0.5, 0.25, 0.8], [1, 0, 1]) == pytest.approx(-(math.log(0.5 * 0.75 * 0.8)) / 3)
    assert log_loss([0.0, 1.0], [1, 1]) == pytest.approx(-math.log(1e-7) / 2, rel=1e-6)


def test_expected_error_by_hand() -> None:
    said, labels = [0.1, 0.2, 0.3, 0.9], [0, 1, 0, 1]
    # By mass: {0.1, 0.2} says 0.15 and holds 0.5, {0.3, 0.9} says 0.6 and holds 0.5.
    assert expected_error(said, labels, bins=2) == pytest.approx((2 * 0.35 + 2 * 0.1) / 4)
    # By width: {0.1, 0.2, 0.3} says 0.2 and holds 1/3, {0.9} says 0.9 and holds 1.
    assert expected_error(said, labels, bins=2, equal="width") == pytest.approx((3 * (1 / 3 - 0.2) + 0.1) / 4)


def test_equal_probabilities_share_a_bin() -> None:
    """Their outcomes in whatever order: nothing is between them."""
    said = np.full(100, 0.3)
    labels = np.repeat([1.0, 0.0], [30, 70])
    assert expected_error(said, labels) == pytest.approx(0.0, abs=1e-12)
    assert expected_error([*said, 0.9], [*labels, 1.0]) == pytest.approx(0.1 / 101)


def test_auc_by_hand() -> None:
    # Pairs: 0.8 beats 0.3 and 0.5, 0.5 beats 0.3 and ties with 0.5: 3.5 of 4.
    assert auc([0.8, 0.5, 0.5, 0.3], [1, 1, 0, 0]) == pytest.approx(3.5 / 4)
    assert auc([0.2, 0.2, 0.2], [1, 0, 0]) == 0.5
    assert math.isnan(auc([0.2, 0.4], [1, 1]))


def test_group_auc_by_hand() -> None:
    said = [0.9, 0.1, 0.8, 0.2, 0.3, 0.7, 0.6]
    labels = [1, 0, 0, 1, 0, 1, 1]
    groups = [5, 5, 2, 2, 2, 9, 9]
    # List 5 is right; in list 2 one of 0.8, 0.3 is beaten by 0.2: none; list 9 has one outcome only.
    assert group_auc(said, labels, groups) == pytest.approx((2 * 1.0 + 3 * 0.0) / 5)
    assert math.isnan(group_auc([0.1, 0.2], [0, 0], [1, 2]))


@settings(deadline=None, max_examples=60)
@given(SMALL, st.integers(1, 4))
def test_auc_is_the_share_of_pairs_in_order(drawn: list[tuple[int, bool]], groups: int) -> None:
    p, y = np.array([a / 20 for a, _ in drawn]), np.array([float(b) for _, b in drawn])
    group = np.arange(len(p)) % groups
    parts = []
    for at in range(groups):
        own = group == at
        ones, others = p[own & (y > 0)], p[own & (y == 0)]
        if len(ones) and len(others):
            above = (ones[:, None] > others) + 0.5 * (ones[:, None] == others)
            parts.append((own.sum(), above.mean()))
    found = group_auc(p, y, group)
    if not parts:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(sum(n * a for n, a in parts) / sum(n for n, _ in parts))


@pytest.mark.parametrize("measure", [log_loss, expected_error, auc, platt, isotonic])
def test_what_is_no_probability_or_no_label_is_refused(measure: object) -> None:
    with pytest.raises(InvalidInput, match="as many of both were expected, at least one"):
        measure([], [])
    with pytest.raises(InvalidInput, match=r"a probability is 1\.2"):
        measure([0.1, 1.2], [0, 1])
    with pytest.raises(InvalidInput, match="a probability is nan"):
        measure([0.1, np.nan], [0, 1])
    with pytest.raises(InvalidInput, match="a label is nan; leave out"):
        measure([0.1, 0.2], [0, np.nan])
