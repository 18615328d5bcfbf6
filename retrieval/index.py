"""Candidate indexes: query embeddings in, the best eligible rows out.

An index nominates, `best` decides: whatever found a row, its score is computed by the same arithmetic, so that exact
and approximate search, one query or a batch of them, agree to the last bit on every row that they share.
"""

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
        rows: int64, shape (n,), distinct.
        query: float32, shape (Q, D).
        k: at most this many.

    Returns:
        rows and scores, by falling score and then by row.
    """
    scores = scored(vectors, rows, query)
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]


def scored(vectors: FloatArray, rows: IntArray, query: FloatArray) -> FloatArray:
    """float32, shape (n,): what each of some rows scores for a query of shape (Q, D), see `best`."""
    scores: FloatArray = np.vecdot(vectors[rows][:, None, :], query).max(axis=1)
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
    if len(k) and int(np.min(k)) < 1:
        raise InvalidInput(f"k is {int(np.min(k))}; at least one row must be wanted")
    if not np.isfinite(queries).all():
        raise InvalidInput("a query embedding holds NaN or infinite numbers; the model diverged or read such values")
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    return queries[:, None, :] if queries.ndim == 2 else queries


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
        wanted = k if ahead is None else k + ahead
        few = eligible.count * GATHER_SHARE < len(self.vectors)
        rows = eligible.rows if few else None
        table = self.vectors if rows is None else self.vectors[rows]
        found: list[Found] = []
        step = max(1, SCORES_AT_ONCE // max(1, len(table) * queries.shape[1]))
        for start in range(0, len(queries), step):
            scores = _scores(table, queries[start : start + step])
            if rows is None:
                np.copyto(scores, -np.inf, where=~eligible.mask)
            for b, own in enumerate(scores, start):
                found.append(self._top(own, rows, queries[b], int(wanted[b]), exclude[b]))
        return found

    def _top(self, scores: FloatArray, rows: IntArray | None, query: FloatArray, k: int, exclude: IntArray) -> Found:
        """The k best by `scores`, which stand for `rows` (None: for all) and are overwritten where excluded."""
        if rows is None:
            scores[exclude] = -np.inf
        elif len(rows):
            at = np.minimum(np.searchsorted(rows, exclude), len(rows) - 1)
            scores[at[rows[at] == exclude]] = -np.inf
        cut = -np.inf
        if k < len(scores):
            cut = float(np.partition(scores, len(scores) - k)[len(scores) - k])
            cut -= self._margin * float(np.sqrt(np.square(query).sum(axis=1).max()))
        near = np.flatnonzero((scores >= cut) & (scores > -np.inf))
        return best(self.vectors, near if rows is None else rows[near], query, k)


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


def _scores(table: FloatArray, queries: FloatArray) -> FloatArray:
    """float32, shape (B, n): what each query, shape (Q, D), gives each row of `table` at best."""
    b, q, _ = queries.shape
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
