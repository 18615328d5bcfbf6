"""Candidate indexes: query embeddings in, the best eligible rows out.

An index nominates, `best` decides: whatever found a row, its score is computed by the same arithmetic, so that exact
and approximate search, one query or a batch of them, agree to the last bit on every row that they share.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from retrieval.errors import BundleForeign, InvalidInput
from retrieval.filters import Eligible
from retrieval.sequences import FloatArray, IntArray

GATHER_SHARE = 8  # exact search copies the eligible vectors where fewer than 1/8 are, and scores all of them otherwise
SCORES_AT_ONCE = 1 << 22  # float32 scores held at a time, 16 MiB: large batches over large catalogs go in parts
TILE_ROWS = 4096
SCORED_AT_ONCE = 512  # rows of a table that are few enough for `scored` to be quicker than a product and `scored` after
LOWEST = float(np.finfo(np.float32).min)  # of all scores but those of what may not be found
Found = tuple[IntArray, FloatArray]


class CandidateIndex(Protocol):
    """The first stage: few rows of many.

    Attributes:
        name: which kind it is.
        vectors: float32, shape (N + 1, D): what is searched; row 0 is PAD_ROW and never found.
    """

    name: str
    vectors: FloatArray

    def search(
        self,
        queries: FloatArray,
        k: IntArray,
        eligible: Eligible,
        exclude: Sequence[IntArray],
        ahead: IntArray | None = None,
    ) -> list[Found]:
        """The best rows of each query.

        Args:
            queries: float32, shape (B, D), or (B, Q, D) where each has several vectors; finite.
            k: int64, shape (B,): rows wanted, each at least 1.
            eligible: the rows that may be returned, for the whole batch.
            exclude: B arrays of rows that may not be; repeats, ineligible rows and PAD_ROW do no harm.
            ahead: int64, shape (B,): so many rows behind the k come too, where the same search meets them; the first k
                are what they are without.

        Returns:
            B pairs of rows (int64) and scores (float32), both of shape (min(k, rows left),), and up to `ahead` longer:
            distinct, by falling score and then by row. A score is the inner product, with several vectors the largest
            of them.

        Raises:
            InvalidInput: shapes that do not fit, or a query that is not finite.
        """
        ...


def best(vectors: FloatArray, rows: IntArray, query: FloatArray, k: int) -> Found:
    """The `k` best of some rows, scored row by row.

    Every score is one dot product of its own (not part of a matrix product, whose rounding depends on its neighbours).

    Args:
        vectors: float32, shape (N + 1, D).
        rows: int64, shape (n,), distinct and ascending.
        query: float32, shape (Q, D).
        k: at most this many.

    Returns:
        rows and scores, by falling score and then by row.
    """
    return _falling(rows, scored(vectors, rows, query), k)


def _falling(rows: IntArray, scores: FloatArray, k: int) -> Found:
    """The first `k` of ascending rows by falling score."""
    falling = -scores
    order = falling.argsort()  # four times as fast as a stable one, which only ties need
    ordered = scores.take(order)
    if np.count_nonzero(ordered[1:] == ordered[:-1]):
        order = falling.argsort(kind="stable")
        ordered = scores.take(order)
    return rows.take(order[:k]), ordered[:k]


def scored(vectors: FloatArray, rows: IntArray, query: FloatArray) -> FloatArray:
    """float32, shape (n,): what each of some rows scores for a query of shape (Q, D), see `best`."""
    each = vectors.take(rows, axis=0)
    if len(query) == 1:
        only: FloatArray = np.vecdot(each, query[0])
        return only
    scores: FloatArray = np.vecdot(each[:, None, :], query).max(axis=1)
    return scores


def checked(vectors: FloatArray, queries: FloatArray, k: IntArray, exclude: Sequence[IntArray]) -> FloatArray:
    """The queries of a search as (B, Q, D), after its arguments were checked against each other.

    Raises:
        InvalidInput: see `CandidateIndex.search`.
    """
    if queries.ndim not in (2, 3) or queries.shape[-1] != vectors.shape[1]:
        raise InvalidInput(f"queries have shape {queries.shape}; (B, {vectors.shape[1]}) or (B, Q, D) was expected")
    if len(k) != len(queries) or len(exclude) != len(queries):
        raise InvalidInput(f"{len(queries)} queries came with {len(k)} k and {len(exclude)} exclusion lists")
    least = min(k.tolist(), default=1)
    if least < 1:
        raise InvalidInput(f"k is {least}; at least one row must be wanted")
    if not are_finite(queries):
        raise InvalidInput("a query embedding holds NaN or infinite numbers; the model diverged or read such values")
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    return queries[:, None, :] if queries.ndim == 2 else queries


def are_finite(numbers: FloatArray) -> bool:
    """Whether all numbers are: one dot product says so of all but the largest, in half of the time of a look at each.

    What runs once per batch runs after a graph, when nothing of it is in the caches any more: each kind of array
    operation then costs 2 to 15 us by itself, so that few kinds count for more than few numbers.
    """
    flat = numbers.ravel()
    return math.isfinite(flat.dot(flat)) or bool(np.isfinite(numbers).all())


class ExactIndex:
    """Every eligible row scored by matrix product: the oracle, and the faster one while the catalog is small.

    Args:
        vectors: float32, shape (N + 1, D); row 0 is PAD_ROW and never found.
    """

    name = "exact"

    def __init__(self, vectors: FloatArray) -> None:
        self.vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        longest = float(np.linalg.norm(self.vectors, axis=1).max())
        # Two ways to sum D float32 products differ by at most 2 D u |x| |q| (u = 2^-24: Higham, "Accuracy and Stability
        # of Numerical Algorithms", 2002, section 3.1), the k-th largest moves as far again. Whatever the matrix product
        # puts within this margin of the cut is scored by `best`, so ties at the cut are settled by row.
        self._margin = 4 * vectors.shape[1] * 2.0**-24 * longest

    def search(
        self,
        queries: FloatArray,
        k: IntArray,
        eligible: Eligible,
        exclude: Sequence[IntArray],
        ahead: IntArray | None = None,
    ) -> list[Found]:
        """See `CandidateIndex.search`."""
        queries = checked(self.vectors, queries, k, exclude)
        wanted = k.tolist()
        if ahead is not None:
            wanted = [own + more for own, more in zip(wanted, ahead.tolist(), strict=True)]
        few = eligible.count * GATHER_SHARE < len(self.vectors)
        rows = eligible.rows if few else None
        table = self.vectors if rows is None else self.vectors[rows]
        few_closed = (len(self.vectors) - eligible.count) * GATHER_SHARE < len(self.vectors)
        found: list[Found] = []
        step = max(1, SCORES_AT_ONCE // max(1, len(table) * queries.shape[1]))
        for start in range(0, len(queries), step):
            part = queries[start : start + step]
            scores = _scores(table, part) if len(table) > SCORED_AT_ONCE else _scored(table, part)
            if rows is None and not few_closed:
                np.copyto(scores, -np.inf, where=~eligible.mask)
            for b, own in enumerate(scores, start):
                if few_closed:
                    own[eligible.closed] = -np.inf
                found.append(self._top(own, table, rows, queries[b], wanted[b], exclude[b]))
        return found

    def _top(
        self, scores: FloatArray, table: FloatArray, rows: IntArray | None, query: FloatArray, k: int, exclude: IntArray
    ) -> Found:
        """The k best of a table whose rows stand for `rows` (None: for all) by `scores`, which are overwritten where
        excluded. One query at a time: what several need together does not fit the nearest caches."""
        if rows is None:
            scores[exclude] = -np.inf
        elif len(rows):
            at = np.minimum(np.searchsorted(rows, exclude), len(rows) - 1)
            scores[at[rows[at] == exclude]] = -np.inf
        are_exact, cut = len(table) <= SCORED_AT_ONCE, LOWEST
        if k < len(scores):
            parted = scores.copy()
            parted.partition(len(scores) - k)
            cut = float(parted[len(scores) - k])
            if not are_exact:
                length = math.sqrt(query[0].dot(query[0]) if len(query) == 1 else np.square(query).sum(axis=1).max())
                cut -= self._margin * length
        near = (scores >= max(cut, LOWEST)).nonzero()[0]
        near, values = _falling(near, scores.take(near), k) if are_exact else best(table, near, query, k)
        return near if rows is None else rows.take(near), values


class GrownIndex:
    """An index with a few rows behind it, which are scored one by one: what is there for a moment needs no structure.

    Args:
        base: over the first rows.
        more: float32, shape (n, D): vectors of the rows behind them.
    """

    def __init__(self, base: CandidateIndex, more: FloatArray) -> None:
        self.base = base
        self.name = base.name
        self.vectors = np.concatenate([base.vectors, more])
        self._parts: WeakKeyDictionary[Eligible, tuple[Eligible, IntArray]] = WeakKeyDictionary()

    def search(
        self,
        queries: FloatArray,
        k: IntArray,
        eligible: Eligible,
        exclude: Sequence[IntArray],
        ahead: IntArray | None = None,
    ) -> list[Found]:
        """See `CandidateIndex.search`."""
        first = len(self.base.vectors)
        parts = self._parts.get(eligible)
        if parts is None:
            # An index compares selections by identity: each has the same part every time.
            parts = Eligible.of(eligible.mask[:first].copy()), np.flatnonzero(eligible.mask[first:]) + first
            self._parts[eligible] = parts
        old, new = parts
        found = self.base.search(queries, k, old, [rows[rows < first] for rows in exclude], ahead)
        if not len(new):
            return found
        out = []
        most = (k if ahead is None else k + ahead).tolist()
        for query, wanted, barred, (rows, scores) in zip(queries, most, exclude, found, strict=True):
            left = new[~np.isin(new, barred)]
            more, more_scores = best(self.vectors, left, query if query.ndim == 2 else query[None], wanted)
            every, every_scores = np.concatenate([rows, more]), np.concatenate([scores, more_scores])
            order = np.lexsort((every, -every_scores))[:wanted]
            out.append((every[order], every_scores[order]))
        return out


def _scored(table: FloatArray, queries: FloatArray) -> FloatArray:
    """float32, shape (B, n): what `scored` gives each row of `table` for each query, shape (Q, D)."""
    if queries.shape[1] == 1:
        only: FloatArray = np.vecdot(table, queries)
        return only
    scores: FloatArray = np.vecdot(table[:, None, :], queries[:, None]).max(axis=2)
    return scores


def _scores(table: FloatArray, queries: FloatArray) -> FloatArray:
    """float32, shape (B, n): what each query, shape (Q, D), gives each row of `table` at best."""
    b, q, _ = queries.shape
    if b * q == 1:
        only: FloatArray = table.dot(queries[0, 0])[None]
        return only
    flat = queries.reshape(b * q, -1).T
    scores = np.empty((b * q, len(table)), dtype=np.float32)
    # Tiles that stay in the second-level cache, rows first: twice as fast as one product for batches of 2 to 8.
    for start in range(0, len(table), TILE_ROWS):
        tile = slice(start, start + TILE_ROWS)
        scores[:, tile] = (table[tile] @ flat).T
    return scores if q == 1 else scores.reshape(b, q, -1).max(axis=1)


def choose_index(
    vectors: FloatArray,
    *,
    sample_queries: FloatArray,
    target_recall: float = 0.98,
    k: int = 100,
    exact_below: int = 50_000,
    seed: int = 0,
    threads: int = 1,
) -> tuple[CandidateIndex, dict[str, Any]]:
    """The cheapest index that finds enough of what the exact one finds, and what the manifest says of it.

    Args:
        vectors: float32, shape (N + 1, D).
        sample_queries: float32, shape (S, D) or (S, Q, D): embeddings of real histories, held out from training.
        target_recall: share of the exact top k that must be found, with 95 % confidence from these samples.
        k: see there.
        exact_below: with fewer items than this the exact index is taken unmeasured.
        seed: of the clustering.
        threads: cores to build with.

    Returns:
        the index, and `manifest["index"]`: kind, parameters, k, target_recall, measured_recall; where it was measured
        also the number of samples and what was tried.

    Raises:
        InvalidInput: there is no sample to measure with, and the catalog is large.
    """
    exact = ExactIndex(vectors)
    if len(vectors) - 1 >= exact_below:
        # faiss takes 14 MB and 50 ms to import; a service with a small catalog never pays for it.
        from retrieval.faiss_index import tune

        return tune(vectors, exact, sample_queries, target_recall=target_recall, k=k, seed=seed, threads=threads)
    return exact, {"kind": "exact", "parameters": {}, "k": k, "target_recall": target_recall, "measured_recall": 1.0}


def save_index(index: CandidateIndex, path: Path) -> None:
    """Writes an index to be loaded by `load_index`; an exact one needs no file beside the vectors."""
    if not isinstance(index, ExactIndex):
        from retrieval.faiss_index import FaissIndex

        if not isinstance(index, FaissIndex):
            raise InvalidInput(f"an index of type {type(index).__name__} cannot be saved")
        index.save(path)


def load_index(path: Path, vectors: FloatArray, settings: Mapping[str, Any], *, threads: int = 1) -> CandidateIndex:
    """The index that a manifest describes.

    Args:
        path: what `save_index` wrote; not read for an exact index.
        vectors: float32, shape (N + 1, D).
        settings: `manifest["index"]`.
        threads: cores that one search may use.

    Raises:
        BundleForeign: a kind that this version does not know.
        BundleTorn: the file is unreadable, or does not fit the vectors.
    """
    kind = settings.get("kind", "exact")
    if kind == "exact":
        return ExactIndex(vectors)
    from retrieval.faiss_index import KINDS, FaissIndex

    if kind not in KINDS:
        raise BundleForeign(f"index kind {kind!r} is unknown; this version reads exact, {', '.join(KINDS)}; upgrade it")
    return FaissIndex.load(path, vectors, settings, threads=threads)
