"""Fits calibration: maps from what a ranker says to how often it happens, and measures of how true that is.

The maps themselves, as a manifest stores them and a server applies them, are in `retrieval.calibration`. Which of them
a task gets is decided by cross-validation over whole lists, since candidates of one list resemble each other.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression
from scipy.special import expit

from retrieval.calibration import SMALLEST, Calibration, Isotonic, Platt, logit
from retrieval.errors import InvalidInput
from retrieval.sequences import FloatArray, IntArray

Values = npt.NDArray[np.float64]

KNOTS = 64  # of an isotonic map
BINS = 15
FOLDS = 5
_STEPS = 100  # of Newton's method; it takes about ten
_ENOUGH = 1e-9


def shifted(probabilities: FloatArray, added: FloatArray) -> FloatArray:
    """float32, the same shape: probabilities with something added to their logits, such as what a place adds."""
    return np.asarray(expit(logit(probabilities) + added), dtype=np.float32)


def chosen(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, groups: IntArray | None = None, *, seed: int = 1
) -> tuple[Calibration | None, dict[str, Any]]:
    """The map of a task with the smallest log loss where it was not fitted, and what was found.

    Each map is fitted to four fifths of the groups and judged on the rest, five times; the best is fitted again to
    all. Of equals the simplest is taken: no map, then Platt's, then the isotonic one.

    Args:
        probabilities, labels: shape (n,); see `_checked`.
        groups: int64, shape (n,): the list of each candidate; None makes each a group of its own.
        seed: of the folds.

    Returns:
        the map, None where the task is best taken as it is or nothing can be fitted for want of labels, groups or one
        of the outcomes; and facts for a manifest: `kind`, and `log_loss` by kind.
    """
    if not np.size(labels):
        return None, {"kind": "none", "log_loss": {}}
    p, y = _checked(probabilities, labels)
    distinct, group = np.unique(np.arange(len(p)) if groups is None else groups, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(distinct))[group] % FOLDS
    losses = {"none": log_loss(p, y)}
    for kind, fit in _FITS.items() if len(distinct) > 1 else ():
        held_out = np.empty(len(p))
        for at in range(FOLDS):
            held = fold == at
            made = fit(p[~held], y[~held])
            if made is None:
                break
            held_out[held] = made(p[held].astype(np.float32))
        else:
            losses[kind] = log_loss(held_out, y)
    best = min(losses, key=losses.__getitem__)
    made = None if best == "none" else _FITS[best](p, y)
    return made, {
        "kind": best if made else "none",
        "log_loss": {kind: round(loss, 6) for kind, loss in losses.items()},
    }


def platt(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> Platt | None:
    """Slope and offset of least log loss, by Newton's method; None where the best line does not rise.

    With N+ fulfilled and N- others, the targets are (N+ + 1) / (N+ + 2) and 1 / (N- + 2) instead of 1 and 0, so that a
    ranker that is right each time is not believed without end.

    Source:
        Platt (1999), "Probabilistic Outputs for Support Vector Machines", section 2.2; Lin, Lin and Weng (2007), "A
        Note on Platt's Probabilistic Outputs for Support Vector Machines", section 3, for the guarded steps.
    """
    p, y = _checked(probabilities, labels)
    low, high = _bounds(y)
    if not 0 < y.mean() < 1:
        return None
    targets = np.where(y > 0, high, low)
    z = logit(p.astype(np.float32)).astype(np.float64)
    inputs = np.stack([z, np.ones_like(z)], axis=1)
    at = np.array([0.0, math.log(targets.mean() / (1 - targets.mean()))])
    loss = _cross_entropy(inputs @ at, targets)
    for _ in range(_STEPS):
        said = expit(inputs @ at)
        gradient = inputs.T @ (said - targets) / len(y)
        curvature = (inputs * (said * (1 - said))[:, None]).T @ inputs / len(y)
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        while (after := _cross_entropy(inputs @ (at - step), targets)) > loss and np.abs(step).max() > _ENOUGH:
            step = step / 2
        if after > loss or np.abs(step).max() <= _ENOUGH:
            break
        at, loss = at - step, after
    return Platt(float(at[0]), float(at[1])) if at[0] > 0 else None


def isotonic(probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, knots: int = KNOTS) -> Isotonic | None:
    """The line through the blocks of isotonic regression; None where there are fewer than two blocks.

    A block is a knot: the mean of what was said in it, and how often it happened. Steps would tie all candidates of a
    block, and an order made from ties is lost; lines between the blocks' centres rise. Beyond the outer centres the
    line goes on as it was, as far as something was said. Nothing is 0 or 1: the ends are Platt's targets.

    Args:
        probabilities, labels: shape (n,).
        knots: at most; at least 4. With more blocks, knots are left out so that no block moves by more than
            2 * (highest - lowest) / (knots - 2), usually far less.

    Source:
        Zadrozny and Elkan (2002), "Transforming Classifier Scores into Accurate Multiclass Probability Estimates",
        section 3; Oron and Flournoy (2017), "Centered Isotonic Regression", section 2.2, for the centres.
    """
    p, y = _checked(probabilities, labels)
    low, high = _bounds(y)
    said, held = pooled(p, y)
    # Blocks that become equal at the bounds are one.
    held, first = np.unique(np.clip(held, low, high), return_index=True)
    said = said[first]
    if len(said) < 2:
        return None
    slopes = np.diff(held) / np.diff(said)
    begin, end = float(p.min()), float(p.max())
    if begin < said[0]:
        lowest = max(low, held[0] - slopes[0] * (said[0] - begin))
        said, held = np.concatenate([[begin], said]), np.concatenate([[lowest], held])
    if end > said[-1]:
        highest = min(high, held[-1] + slopes[-1] * (end - said[-1]))
        said, held = np.concatenate([said, [end]]), np.concatenate([held, [highest]])
    kept = thinned(said, held, knots)
    return Isotonic(tuple(said[kept].tolist()), tuple(held[kept].tolist()))


_FITS: dict[str, Callable[[Values, Values], Calibration | None]] = {"platt": platt, "isotonic": isotonic}


def pooled(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Values, Values]:
    """float64, shape (blocks,) each: the mean probability and the share of fulfilled labels of each block.

    The shares are the rising sequence with the least squared distance to the labels. Candidates of one probability are
    one point, which weighs as many.

    Source:
        Ayer et al. (1955), "An Empirical Distribution Function for Sampling with Incomplete Information": pool adjacent
        violators, as scipy does it.
    """
    p, y = _checked(probabilities, labels)
    points, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    shares = np.bincount(inverse, weights=y) / counts
    found = isotonic_regression(shares, weights=counts)
    starts = found.blocks[:-1]
    return np.add.reduceat(points * counts, starts) / np.add.reduceat(counts, starts), found.x[starts]


def thinned(said: Values, held: Values, knots: int) -> IntArray:
    """int64: which knots of a rising line to keep, at most `knots`, so that the line moves little.

    From each kept knot the farthest one is kept to which the chord misses no knot between by more than a tolerance;
    the smallest tolerance that keeps few enough is found by halving. A chord cannot miss by more than it rises, so
    2 * rise / (knots - 2) always suffices.

    Source:
        Imai and Iri (1986), "Computational-geometric methods for polygonal approximations of a curve", section 3, for
        the wedge in which chords stay.
    """
    if len(said) <= knots:
        return np.arange(len(said))
    below, enough = 0.0, 2.0 * float(held[-1] - held[0]) / (knots - 2)
    for _ in range(30):
        middle = (below + enough) / 2
        below, enough = (below, middle) if len(_chords(said, held, middle)) <= knots else (middle, enough)
    return _chords(said, held, enough)


def _chords(said: Values, held: Values, tolerance: float) -> IntArray:
    """int64: the knots at the ends of the longest chords, taken from the left, that miss by no more."""
    x, y, kept = said.tolist(), held.tolist(), [0]
    while kept[-1] < len(x) - 1:
        start, low, high = kept[-1], -math.inf, math.inf
        farthest = start + 1
        for at in range(start + 1, len(x)):
            slope = (y[at] - y[start]) / (x[at] - x[start])
            if low <= slope <= high:
                farthest = at
            margin = tolerance / (x[at] - x[start])
            low, high = max(low, slope - margin), min(high, slope + margin)
            if low > high:
                break
        kept.append(farthest)
    return np.array(kept, dtype=np.int64)


# Measures


def log_loss(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """-mean(y log p + (1 - y) log(1 - p)), probabilities kept `SMALLEST` away from 0 and 1.

    Raises:
        InvalidInput: see `_checked`.
    """
    p, y = _checked(probabilities, labels)
    p = np.clip(p, SMALLEST, 1 - SMALLEST)
    return float(-np.mean(y * np.log(p) + (1 - y) * np.log1p(-p)))


def expected_error(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, bins: int = BINS, equal: Literal["mass", "width"] = "mass"
) -> float:
    """Expected calibration error: sum over bins b of (n_b / n) * |mean of p in b - mean of y in b|.

    Args:
        probabilities, labels: shape (n,).
        bins: how many.
        equal: bins of equal `mass` hold as many candidates each, but for equal probabilities, which stay together;
            bins of equal `width` cut [0, 1]. Where most probabilities are small, the latter see one bin.

    Raises:
        InvalidInput: see `_checked`.

    Source:
        Guo et al. (2017), "On Calibration of Modern Neural Networks", equation 3; Nixon et al. (2019), "Measuring
        Calibration in Deep Learning", section 4, for equal mass.
    """
    p, y = _checked(probabilities, labels)
    inner = np.arange(1, bins) / bins
    edges = np.quantile(p, inner, method="higher") if equal == "mass" else inner
    gaps = np.bincount(np.searchsorted(edges, p, side="right"), weights=p - y)
    return float(np.abs(gaps).sum() / len(p))


def auc(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """P(a fulfilled candidate stands above another one) + P(equal) / 2; NaN where there is only one outcome.

    Raises:
        InvalidInput: see `_checked`.
    """
    return group_auc(probabilities, labels, np.zeros(np.size(labels), dtype=np.int64))


def group_auc(probabilities: npt.ArrayLike, labels: npt.ArrayLike, groups: IntArray) -> float:
    """The mean of `auc` over groups that hold both outcomes, each with the weight of its size; NaN without any.

    Args:
        probabilities, labels: shape (n,).
        groups: int64, shape (n,): the list of each candidate.

    Raises:
        InvalidInput: see `_checked`.

    Source:
        Zhou et al. (2018), "Deep Interest Network for Click-Through Rate Prediction", section 5.3, by list instead of
        by user; from the rank sum of Mann and Whitney (1947).
    """
    p, y = _checked(probabilities, labels)
    _, group = np.unique(groups, return_inverse=True)
    order = np.lexsort((p, group))
    p, y, group = p[order], y[order], group[order]
    new = np.concatenate([[True], (np.diff(p) != 0) | (np.diff(group) != 0)])
    run = np.cumsum(new) - 1
    starts = np.flatnonzero(new)
    ends = np.concatenate([starts[1:], [len(p)]])
    ranks = ((starts + ends + 1) / 2)[run]  # equals share the mean of their ranks, from 1
    sizes = np.bincount(group)
    ranks -= (np.cumsum(sizes) - sizes)[group]
    ones = np.bincount(group, weights=y)
    pairs = ones * (sizes - ones)
    above = np.bincount(group, weights=ranks * y) - ones * (ones + 1) / 2
    has = pairs > 0
    return float(np.average(above[has] / pairs[has], weights=sizes[has])) if has.any() else math.nan


def _checked(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Values, Values]:
    """float64, shape (n,) each.

    Raises:
        InvalidInput: none, not as many of both, a probability outside [0, 1] or a label that is neither 0 nor 1; those
            that nobody knows are for the caller to leave out.
    """
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if not len(p) or p.shape != y.shape or p.ndim != 1:
        raise InvalidInput(f"probabilities {p.shape} and labels {y.shape}: as many of both were expected, at least one")
    if not ((p >= 0) & (p <= 1)).all():
        raise InvalidInput(f"a probability is {p[~((p >= 0) & (p <= 1))][0]}; it must lie between 0 and 1")
    if not np.isin(y, (0.0, 1.0)).all():
        raise InvalidInput(f"a label is {y[~np.isin(y, (0.0, 1.0))][0]}; leave out what is not known to be 0 or 1")
    return p, y


def _bounds(labels: Values) -> tuple[float, float]:
    """Platt's targets: the least and the greatest probability that so many labels can speak for."""
    fulfilled = float(labels.sum())
    return 1 / (len(labels) - fulfilled + 2), (fulfilled + 1) / (fulfilled + 2)


def _cross_entropy(logits: Values, targets: Values) -> float:
    return float(np.mean(np.logaddexp(0, logits) - targets * logits))
