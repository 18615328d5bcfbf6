"""Where numbers come from: of a candidate in its request (`PAIRS`), and of a request alone (`REQUESTS`).

A new source is one function here and one line in a table. It must make the same number, to the last bit, whatever else
is in the batch: `tests/retrieval/test_features.py` holds every source to that. So a sum runs over a fixed number of
places one after the other, or over what one request holds alone; products of matrices are out, because their rounding
depends on how many rows there are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.feature_set import FeatureSet
from retrieval.inputs import Request
from retrieval.sequences import PAD_ROW, FloatArray, IntArray
from retrieval.statistics import Statistics

RECENT = 10  # newest events that a candidate is held against
FOLLOWED = 5  # newest events whose followers are looked up
DECAY = 0.6  # weight of an event relative to the one after it, as followers were counted
AFFINITY_WORDS = 1024  # words of a column are folded to this many where an affinity is counted
DAY_S, HOUR_S = 86_400, 3_600

Values = npt.NDArray[Any]  # floating, shape (B, C)


@dataclass(frozen=True, slots=True, eq=False)
class Lookups:
    """What is known of the items of one edition.

    Attributes:
        statistics: what was counted in training.
        directions: float32, shape (N + 1, D): item vectors of length one, zero where there is none.
        words: by column, int64 of shape (N + 1, W): the items' words folded to 1 .. `AFFINITY_WORDS`, 0 absent.
        numbers: by column, float64 of shape (N + 1,): as they are.
    """

    statistics: Statistics
    directions: FloatArray
    words: Mapping[str, IntArray]
    numbers: Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What the numbers of candidates are made of.

    Attributes:
        features: the declaration.
        lookups: of the items.
        requests: B requests, of their histories no more than features see.
        lengths: of the B lists.
        rows: int64, shape (B, C), PAD_ROW where a list is shorter.
        scores: float64, shape (B, C), of the retriever; not finite where there is none.
        recent: int64, shape (B, `RECENT`): rows of the newest events, the newest last, PAD_ROW before the first.
    """

    features: FeatureSet
    lookups: Lookups
    requests: Sequence[Request]
    lengths: Sequence[int]
    rows: IntArray
    scores: npt.NDArray[np.float64]
    recent: IntArray


@dataclass(frozen=True, slots=True)
class Pair:
    """A source of numbers of a candidate in its request.

    Attributes:
        compute: from a batch and the name of a column, the numbers of all parts.
        parts: what may stand behind the colon; none where that names a column, and then `compute` has one part.
        column: `words` or `numbers`, the kind of column that is read.
    """

    compute: Callable[[Batch, str], Mapping[str, Values]]
    parts: tuple[str, ...] = ()
    column: str = ""


def _retrieval(batch: Batch, _column: str) -> Mapping[str, Values]:
    """`score`; `share`, the logarithm of its softmax over the list; `rank` among those with a score, from 0."""
    known = np.isfinite(batch.scores)
    score = np.where(known, batch.scores, np.nan)
    best = np.max(np.where(known, score, -np.inf), axis=1, initial=-np.inf, keepdims=True)
    above = np.where(known, np.exp(score - best), 0.0)
    # One list at a time: what a sum rounds to depends on how many entries it has, zeros too.
    total = np.array([[own[:n].sum() or 1.0] for own, n in zip(above, batch.lengths, strict=True)])
    rank = np.where(known, np.cumsum(known, axis=1) - 1.0, np.nan)
    return {"score": score, "share": score - best - np.log(total), "rank": rank}


def _transition(batch: Batch, _column: str) -> Mapping[str, Values]:
    """How much the last events speak for a candidate: `1` the last one, `2` that before, ..., `all` decayed."""
    found = batch.lookups.statistics.follow(batch.recent[:, : -FOLLOWED - 1 : -1], batch.rows)
    every = np.zeros(batch.rows.shape)
    for place in range(FOLLOWED):
        every += DECAY**place * found[:, place]
    return {"all": every, **{str(place + 1): found[:, place] for place in range(FOLLOWED)}}


def _similarity(batch: Batch, _column: str) -> Mapping[str, Values]:
    """Cosine to the item of the `last` event, and `max` and `mean` over the `RECENT` newest; NaN without an event."""
    directions, present = batch.lookups.directions, batch.recent != PAD_ROW
    cosines = np.empty((RECENT, *batch.rows.shape), dtype=np.float32)
    for b, (rows, recent) in enumerate(zip(batch.rows, batch.recent, strict=True)):
        # One dot product for each number, and one request at a time: its vectors fit into the nearest caches. What
        # stands for no event has no direction, and adds nothing.
        np.vecdot(directions[rows], directions[recent][:, None, :], out=cosines[:, b])
    total, largest = np.zeros(batch.rows.shape, dtype=np.float32), np.full(batch.rows.shape, np.float32(-np.inf))
    for place, cosine in enumerate(cosines):
        total += cosine
        np.maximum(largest, cosine, out=largest, where=present[:, place, None])
    count = np.count_nonzero(present, axis=1)[:, None]
    return {
        "last": np.where(count > 0, cosines[-1], np.nan),
        "max": np.where(count > 0, largest, np.nan),
        "mean": np.where(count > 0, total / np.maximum(count, 1), np.nan),
    }


def _affinity(batch: Batch, column: str) -> Mapping[str, Values]:
    """How many of a candidate's words an event carries, the mean over the newest events and over the candidate's words;
    NaN where there is no event or no word."""
    words, reach = batch.lookups.words[column], max(batch.features.windows)
    shares = np.full((len(batch.requests), AFFINITY_WORDS + 1), np.nan)
    for own, request in zip(shares, batch.requests, strict=True):
        newest = request.history.rows[-reach:]
        if len(newest):
            np.divide(np.bincount(words[newest].ravel(), minlength=AFFINITY_WORDS + 1), len(newest), out=own)
            own[0] = 0.0
    carried, each = words[batch.rows], np.arange(len(shares))[:, None]
    total = np.zeros(batch.rows.shape)
    for place in range(words.shape[1]):
        total += shares[each, carried[:, :, place]]
    count = np.count_nonzero(carried, axis=2).astype(np.float64)
    count[count == 0] = np.nan
    return {column: total / count}


def _closeness(batch: Batch, column: str) -> Mapping[str, Values]:
    """Distance of a candidate's number from the mean of the newest `FOLLOWED` items; NaN where either is bare."""
    values = batch.lookups.numbers[column]
    total, count = np.zeros((2, len(batch.rows), 1))
    for place in range(RECENT - FOLLOWED, RECENT):
        newest = batch.recent[:, place, None]
        known = np.isfinite(values[newest]) & (newest != PAD_ROW)
        total += np.where(known, values[newest], 0.0)
        count += known
    count[count == 0] = np.nan
    return {column: np.abs(values[batch.rows] - total / count)}


PAIRS: Mapping[str, Pair] = {
    "retrieval": Pair(_retrieval, ("score", "share", "rank")),
    "transition": Pair(_transition, ("all", *(str(place + 1) for place in range(FOLLOWED)))),
    "similarity": Pair(_similarity, ("last", "max", "mean")),
    "affinity": Pair(_affinity, column="words"),
    "closeness": Pair(_closeness, column="numbers"),
}


def _length(request: Request, _features: FeatureSet, _argument: str) -> float:
    """Events, as far as features see."""
    return float(len(request.history))


def _recency(request: Request, _features: FeatureSet, _argument: str) -> float:
    """Seconds since the last event."""
    times = request.history.timestamps
    return request.time - float(times[-1]) if len(times) else np.nan


def _share(request: Request, features: FeatureSet, argument: str) -> float:
    """Share of the newest events that fulfil a task."""
    task = features.task(argument)
    newest = request.history.newest(max(features.windows))
    return np.nan if task is None or not len(newest) else np.count_nonzero(task.holds(newest)) / len(newest)


def _hour(request: Request, _features: FeatureSet, _argument: str) -> float:
    """Of the day, UTC."""
    return request.time % DAY_S / HOUR_S


def _weekday(request: Request, _features: FeatureSet, _argument: str) -> float:
    """0 is Monday, UTC."""
    return (request.time // DAY_S + 3) % 7  # 1970 began on a Thursday


def _context(request: Request, _features: FeatureSet, argument: str) -> float:
    return request.context.get(argument, np.nan)


REQUESTS: Mapping[str, Callable[[Request, FeatureSet, str], float]] = {
    "length": _length,
    "recency": _recency,
    "share": _share,
    "hour": _hour,
    "weekday": _weekday,
    "context": _context,
}
