"""What is counted in the training part for a ranker to look up: followers of each item, and how items fare."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from models.histories import Histories
from models.tasks import outcomes
from retrieval.features import DECAY, FOLLOWED
from retrieval.sequences import FloatArray
from retrieval.statistics import Statistics
from retrieval.tasks import Task

PRIOR = 10.0  # events' worth of what all items have in common, added to each item's own


def count(
    histories: Histories,
    n_items: int,
    tasks: Sequence[Task],
    *,
    window: int = FOLLOWED,
    decay: float = DECAY,
    damping: float = 0.6,
    followers: int = 200,
) -> Statistics:
    """The statistics of training histories.

    An item's rate is (its events that fulfil the task + PRIOR * the share of all events) / (its events + PRIOR), where
    only events count that can be judged; its value likewise, among the events that have one.

    Args:
        histories: the training part alone.
        n_items: catalog size N.
        tasks: whose rates are wanted.
        window, decay, damping: see `transitions`.
        followers: how many each item keeps, the strongest; equal ones by row.
    """
    counts = histories.counts(n_items)
    every = transitions(histories, counts, window=window, decay=decay, damping=damping).tocoo()
    # The strongest of each item first, then by row: the place within an item says which are kept.
    order = np.lexsort((every.col, -every.data, every.row))
    before, after, weights = every.row[order].astype(np.int64), every.col[order].astype(np.int64), every.data[order]
    places = np.arange(len(before)) - np.searchsorted(before, before)
    kept = places < followers
    pairs = before[kept] * (n_items + 1) + after[kept]
    ascending = np.argsort(pairs)
    events, has_value = histories.span(0, len(histories.rows)), np.isfinite(histories.values)
    found = outcomes(tasks, events).astype(np.float64)
    judged = ~np.isnan(found)
    rates = [_drawn(found[judged[:, t], t], histories.rows[judged[:, t]], n_items) for t in range(len(tasks))]
    return Statistics(
        pairs[ascending],
        weights[kept][ascending].astype(np.float32),
        np.ascontiguousarray(np.array(rates, dtype=np.float32).reshape(len(tasks), n_items + 1).T),
        _drawn(histories.values[has_value].astype(np.float64), histories.rows[has_value], n_items),
    )


def transitions(
    train: Histories, counts: npt.NDArray[np.float64], *, window: int, decay: float, damping: float
) -> sparse.csr_array:
    """float32, shape (N + 1, N + 1): how much each item is followed by each other one.

    Item j gains d^(g-1) from item i each time it stands g <= window places after it in a history; the gains of i are
    divided by n_i^a, where n_i is how often i occurs: a = 0 lets frequent items speak louder, a = 1 makes every gain a
    share.

    Args:
        train: what is counted.
        counts: float64, shape (N + 1,): n, events per item.
        window: the longest gap.
        decay: d.
        damping: a.

    Source:
        The idea of sequential rules with a distance weight: Ludewig and Jannach (2018), "Evaluation of Session-based
        Recommendation Algorithms", section 3.1.
    """
    users = train.users()
    shape = (len(counts), len(counts))
    followers = sparse.csr_array(shape, dtype=np.float32)
    for gap in range(1, window + 1):
        together = users[gap:] == users[:-gap]
        pairs = (train.rows[:-gap][together], train.rows[gap:][together])
        weights = np.full(len(pairs[0]), decay ** (gap - 1), dtype=np.float32)
        followers = followers + sparse.coo_array((weights, pairs), shape=shape).tocsr()
    shares = np.maximum(counts, 1.0) ** -damping
    return (sparse.diags_array(shares.astype(np.float32)) @ followers).tocsr()


def _drawn(numbers: npt.NDArray[np.float64], rows: npt.NDArray[np.int64], n_items: int) -> FloatArray:
    """float32, shape (N + 1,): the mean of each item's numbers, drawn towards that of all; NaN where it has none."""
    sums = np.bincount(rows, weights=numbers, minlength=n_items + 1)
    n = np.bincount(rows, minlength=n_items + 1)
    common = numbers.mean() if len(numbers) else np.nan
    return np.where(n > 0, (sums + PRIOR * common) / (n + PRIOR), np.nan).astype(np.float32)
