"""Measures of a ranking, and how sure they are.

Every measure here is a function of ranks: the place of the one true next item in a full ranking, 1 being the best. A
case whose item cannot be reached at all has the rank `MISS`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from retrieval.errors import InvalidInput
from retrieval.sequences import PAD_ROW, FloatArray, IntArray

MISS = 2**31 - 1  # the rank of what no list can show, however long

_BLOCK = 50  # resamples drawn at once: some megabytes for twenty thousand users

Values = npt.NDArray[np.float64]


def ranks(scores: FloatArray, targets: IntArray) -> IntArray:
    """int64, shape (B,): the place of each target when scores fall and, among equals, rows rise.

    rank = 1 + |{i : s_i > s_target}| + |{i < target : s_i = s_target}|, over all rows but PAD_ROW. That is the order in
    which the service answers, so a model that gives everything one score is not rewarded for it.

    Args:
        scores: float32, shape (B, N + 1). Row PAD_ROW is not looked at.
        targets: int64, shape (B,).

    Raises:
        InvalidInput: a score is NaN, which would compare as worse than everything and flatter the target.
    """
    if np.isnan(scores[:, PAD_ROW + 1 :]).any():
        raise InvalidInput("a score is NaN, so nothing can be ranked; the training run diverged or an input was NaN")
    items = scores[:, PAD_ROW + 1 :]
    places = targets - (PAD_ROW + 1)
    own = items[np.arange(len(targets)), places][:, None]
    equal = items == own
    # Ties are rare: look at whose they are only in the lines that have one beside the target itself.
    tied = np.flatnonzero(equal.sum(axis=1) > 1)
    found: IntArray = 1 + (items > own).sum(axis=1, dtype=np.int64)
    found[tied] += (equal[tied] & (np.arange(items.shape[1]) < places[tied, None])).sum(axis=1)
    return found


def top(scores: FloatArray, k: int) -> IntArray:
    """int64, shape (B, k): the rows of the k best items in the order of `ranks`; PAD_ROW where fewer are finite."""
    items = scores[:, PAD_ROW + 1 :]
    k = min(k, items.shape[1])
    kth = np.partition(items, items.shape[1] - k, axis=1)[:, items.shape[1] - k][:, None]
    out = np.full((len(items), k), PAD_ROW, dtype=np.int64)
    for b, line in enumerate(items):
        candidates = np.flatnonzero(line >= kth[b])
        best = candidates[np.argsort(-line[candidates], kind="stable")][:k]
        best = best[np.isfinite(line[best])]
        out[b, : len(best)] = best + PAD_ROW + 1
    return out


def recall(ranks: IntArray, k: int) -> Values:
    """float64, shape (n,): 1 where the target stands among the first k, else 0.

    With one target per case recall@k, hit rate and HR@k are the same number.

    Source:
        Kang and McAuley (2018), "Self-Attentive Sequential Recommendation", section IV-C (Hit@10).
    """
    return (ranks <= k).astype(np.float64)


def ndcg(ranks: IntArray, k: int) -> Values:
    """float64, shape (n,): 1 / log2(rank + 1) where the target stands among the first k, else 0.

    With one target the ideal gain is 1, so nothing is left to divide by.

    Source:
        Jarvelin and Kekalainen (2002), "Cumulated Gain-Based Evaluation of IR Techniques", with binary relevance.
    """
    return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


def mrr(ranks: IntArray, k: int) -> Values:
    """float64, shape (n,): 1 / rank where the target stands among the first k, else 0.

    Source:
        Voorhees (1999), "The TREC-8 Question Answering Track Report", section 3, cut off at k.
    """
    return np.where(ranks <= k, 1.0 / ranks, 0.0)


def coverage(shown: npt.NDArray[np.bool_]) -> float:
    """Share of the catalog that stands in anybody's list.

    Args:
        shown: bool, shape (N + 1,). Row PAD_ROW is not looked at.

    Source:
        Ge et al. (2010), "Beyond Accuracy: Evaluating Recommender Systems by Coverage and Serendipity", section 2.
    """
    return float(shown[PAD_ROW + 1 :].mean())


def per_case(ranks: IntArray, ks: Sequence[int]) -> dict[str, Values]:
    """Every rank measure at every k: `recall@10`, `ndcg@10`, `mrr@10`, ... -> float64, shape (n,)."""
    return {f"{m.__name__}@{k}": m(ranks, k) for k in ks for m in (recall, ndcg, mrr)}


def intervals(
    values: Values, users: IntArray, *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> npt.NDArray[np.float64]:
    """float64, shape (M, 2): bootstrap percentile intervals of the column means.

    Users are resampled, with all their cases, since the cases of one user are not independent. The difference between
    two models is paired by giving the differences per case as `values`.

    Args:
        values: float64, shape (n, M). M measures of n cases.
        users: int64, shape (n,). Whose case it is.
        resamples: draws.
        level: of confidence.
        seed: of the draws; equal seeds make equal draws.

    Source:
        Efron and Tibshirani (1993), "An Introduction to the Bootstrap", section 13.3; Sakai (2006), "Evaluating
        Evaluation Metrics Based on the Bootstrap", section 3, for its paired use on ranking measures.
    """
    if not len(values):
        raise InvalidInput("there is no case to resample")
    _, index = np.unique(users, return_inverse=True)
    n = int(index.max()) + 1
    # The sums of a user's cases, and last how many there are: a resampled mean is a quotient of two weighted sums.
    sums = np.stack([np.bincount(index, weights=column) for column in [*values.T, np.ones(len(index))]], axis=1)
    rng = np.random.default_rng(seed)
    totals = np.empty((resamples, sums.shape[1]))
    for start in range(0, resamples, _BLOCK):
        lines = np.arange(min(_BLOCK, resamples - start))[:, None]
        drawn = rng.integers(0, n, (len(lines), n)) + lines * n
        totals[start : start + len(lines)] = np.bincount(drawn.ravel(), minlength=n * len(lines)).reshape(-1, n) @ sums
    means = totals[:, :-1] / totals[:, -1:]
    tail = (1 - level) / 2
    ends: npt.NDArray[np.float64] = np.quantile(means, [tail, 1 - tail], axis=0).T
    return ends
