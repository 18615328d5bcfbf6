"""What every model is compared with: counting, no gradient.

Simple methods, tuned with some care, beat many published models (Ferrari Dacrema et al., 2019, "Are We Really Making
Much Progress?"), so they stand beside every model here, and a model that loses to them should be seen to.

Each is fitted on training histories alone and scores all items at once. Where counting says nothing about an item, its
popularity decides: both neighbourhood methods add a share of it too small to overrule a count.

The defaults are one compromise for all data, chosen by NDCG@10 on the validation cases of MovieLens-1M and Amazon
Beauty out of a dozen settings each; the best of each data set is within 2 % of them.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from models.histories import Histories
from models.statistics import transitions
from retrieval.errors import InvalidInput
from retrieval.sequences import FloatArray, History

_BLOCK = 1024  # items whose similarities to all others are held before the far ones are dropped
_UNDER_EVERY_COUNT = 1e-6  # times a popularity of at most 1: orders what has no count, overrules none that has


class Random:
    """Scores drawn anew for every history: the floor under everything.

    Args:
        n_items: catalog size N.
        seed: of the draws.
    """

    name = "random"

    def __init__(self, n_items: int, *, seed: int = 0) -> None:
        self._n_items = n_items
        self._rng = np.random.default_rng(seed)

    def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:  # noqa: ARG002
        """float32, shape (B, N + 1): uniform."""
        return self._rng.random((len(histories), self._n_items + 1), dtype=np.float32)


class Popular:
    """The items with the most training events, the same for everybody.

    Args:
        train: what is counted.
        n_items: catalog size N.
    """

    name = "popular"

    def __init__(self, train: Histories, n_items: int) -> None:
        self._counts = _counts(train, n_items).astype(np.float32)

    def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:  # noqa: ARG002
        """float32, shape (B, N + 1): training events of each item."""
        return np.tile(self._counts, (len(histories), 1))


class Transitions:
    """What followed the user's last items in other histories: decayed co-occurrence.

    The last `window` items vote for their followers as `models.statistics.transitions` counts them, the item p places
    from the end with weight d^(p-1).

    Args:
        train: what is counted.
        n_items: catalog size N.
        window: how many places are looked back.
        decay: d.
        damping: a.
    """

    name = "transitions"

    def __init__(
        self, train: Histories, n_items: int, *, window: int = 5, decay: float = 0.6, damping: float = 0.6
    ) -> None:
        counts = _counts(train, n_items)
        self._window, self._decay = window, decay
        self._floor = _floor(counts)
        self._followers = transitions(train, counts, window=window, decay=decay, damping=damping)

    def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:  # noqa: ARG002
        """float32, shape (B, N + 1): the votes of the last items."""
        votes = _recent(histories, self._window, self._decay, len(self._floor)) @ self._followers
        return np.asarray(votes.todense(), dtype=np.float32) + self._floor


class ItemKnn:
    """Items liked by the same users as the user's recent items.

    sim(i, j) = |U_i & U_j| / (sqrt(|U_i| |U_j|) + shrinkage), each item keeping its nearest. Asked, the last
    `window` items vote, the one p places from the end with weight d^(p-1).

    Args:
        train: what is counted; an item counts once per user.
        n_items: catalog size N.
        window: how many of the newest items vote.
        decay: d.
        shrinkage: draws similarities that rest on few users towards 0.
        neighbours: how many each item keeps.

    Source:
        Sarwar et al. (2001), "Item-Based Collaborative Filtering Recommendation Algorithms", section 3.1; shrinkage as
        in Bell and Koren (2007), "Improved Neighborhood-based Collaborative Filtering", section 4.1.
    """

    name = "item-knn"

    def __init__(
        self,
        train: Histories,
        n_items: int,
        *,
        window: int = 10,
        decay: float = 0.6,
        shrinkage: float = 10.0,
        neighbours: int = 1000,
    ) -> None:
        self._window, self._decay = window, decay
        self._floor = _floor(_counts(train, n_items))
        shape = (len(train), n_items + 1)
        once = sparse.coo_array((np.ones(len(train.rows), np.float32), (train.users(), train.rows)), shape=shape)
        seen_by = once.tocsr()
        seen_by.data[:] = 1.0
        sizes = np.sqrt(seen_by.sum(axis=0).astype(np.float32))
        items_of = seen_by.T.tocsr()
        blocks = []
        for start in range(0, n_items + 1, _BLOCK):
            shared = (items_of[start : start + _BLOCK] @ seen_by).tocoo()
            rows = shared.row + start
            alike = shared.data / (sizes[rows] * sizes[shared.col] + shrinkage)
            alike[rows == shared.col] = 0.0
            blocks.append(_nearest(sparse.csr_array((alike, (shared.row, shared.col)), shape=shared.shape), neighbours))
        self._alike = sparse.vstack(blocks, format="csr")

    def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:  # noqa: ARG002
        """float32, shape (B, N + 1): the votes of the last items."""
        votes = _recent(histories, self._window, self._decay, len(self._floor)) @ self._alike
        return np.asarray(votes.todense(), dtype=np.float32) + self._floor


def fitted(train: Histories, n_items: int) -> list[Random | Popular | Transitions | ItemKnn]:
    """Every baseline, weakest first, fitted with its defaults."""
    return [Random(n_items), Popular(train, n_items), Transitions(train, n_items), ItemKnn(train, n_items)]


def _counts(train: Histories, n_items: int) -> npt.NDArray[np.float64]:
    if not len(train.rows):
        raise InvalidInput("there is no training event to count; the split left nothing to learn from")
    return train.counts(n_items)


def _floor(counts: npt.NDArray[np.float64]) -> FloatArray:
    return (counts / counts.max() * _UNDER_EVERY_COUNT).astype(np.float32)


def _nearest(alike: sparse.csr_array, keep: int) -> sparse.csr_array:
    """The similarities without those that `keep` others of their line exceed."""
    for start, end in itertools.pairwise(alike.indptr):
        if end - start > keep:
            line = alike.data[start:end]
            line[line < np.partition(line, -keep)[-keep]] = 0.0
    alike.eliminate_zeros()
    return alike


def _recent(histories: Sequence[History], window: int, decay: float, width: int) -> sparse.csr_array:
    """float32, shape (B, width): weights of the newest items, d^(p-1) for the one p places from the end."""
    newest = [history.rows[-window:] for history in histories]
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in newest])])
    rows = np.concatenate([*newest, np.empty(0, np.int64)])
    behind = np.repeat(offsets[1:], np.diff(offsets)) - 1 - np.arange(len(rows))
    weights = (decay**behind).astype(np.float32)
    return sparse.csr_array((weights, rows, offsets), shape=(len(histories), width))
