"""The approximate index: vectors in cells, of which a search scans the most promising few (FAISS, inverted file).

FAISS takes one selection for a whole search, so a batch comes here already grouped by what is eligible. Exclusion
lists, which differ per query, are met by fetching as many rows more. What FAISS finds is scored again by `index.best`.
Where too little is found, or most cells would be scanned anyway (a strict filter, a long list, a large k), the exact
index answers: an approximate answer may miss a better row, it is never short.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from retrieval.errors import BundleTorn, InvalidInput
from retrieval.filters import Eligible
from retrieval.index import CandidateIndex, ExactIndex, Found, best, checked
from retrieval.sequences import FloatArray, IntArray

KINDS = ("ivf",)
EXACT_CELLS = 0.5  # share of all cells from which on one matrix product over the eligible rows is the faster way
WIDER = 4  # times as many cells for queries that came back short
SURE = 1.645  # standard errors by which a sampled recall must exceed its target: 95 % sure that it holds for others
POINTS_PER_CELL = 39  # fewer than this and FAISS warns that the clustering is not to be trusted


class FaissIndex:
    """An inverted file of the item vectors.

    Args:
        vectors: float32, shape (N + 1, D).
        cells: the FAISS index over rows 1 to N, in their order.
        width: cells to scan for a search that fetches `k` rows and may return anything.
        k: see there. A search that may return only a share of all rows scans as many times more cells; one that fetches
            n times `k` rows scans sqrt(n) times more, which kept recall@500 at that of 100 (100,000 rows of width 64).
        threads: cores that one search may use.
    """

    name = "ivf"

    def __init__(self, vectors: FloatArray, cells: Any, *, width: int, k: int, threads: int = 1) -> None:
        self.vectors = vectors
        self._exact = ExactIndex(vectors)
        self._cells = cells
        self._threads = threads
        self._k = k
        self.width = width

    @classmethod
    def build(
        cls, vectors: FloatArray, *, width: int = 8, k: int = 100, seed: int = 0, threads: int = 1
    ) -> "FaissIndex":
        """An index over item vectors, in about 4 sqrt(N) cells; `width` may still be set."""
        n, dimension = len(vectors) - 1, vectors.shape[1]
        count = max(1, min(round(4 * math.sqrt(n)), n // POINTS_PER_CELL))
        faiss.omp_set_num_threads(threads)
        cells = faiss.IndexIVFFlat(faiss.IndexFlatIP(dimension), dimension, count, faiss.METRIC_INNER_PRODUCT)
        cells.cp.seed = seed
        cells.train(vectors[1:])
        cells.add(vectors[1:])
        return cls(vectors, cells, width=width, k=k, threads=threads)

    def save(self, path: Path) -> None:
        """Writes the FAISS index; the vectors are a file of their own."""
        # Written by Python, so that a full disk is an OSError like everywhere else.
        path.write_bytes(faiss.serialize_index(self._cells).data)

    @classmethod
    def load(cls, path: Path, vectors: FloatArray, settings: Mapping[str, Any], *, threads: int = 1) -> "FaissIndex":
        """Reads what `save` wrote, see `index.load_index`.

        Raises:
            BundleTorn: unreadable, or made for other vectors, or the manifest lacks a parameter.
        """
        try:
            cells = faiss.read_index(str(path))
            width, k = int(settings["parameters"]["width"]), int(settings["k"])
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise BundleTorn(f"{path.name} or its parameters cannot be read ({error}); export again") from error
        expected = (len(vectors) - 1, vectors.shape[1], faiss.METRIC_INNER_PRODUCT)
        if not isinstance(cells, faiss.IndexIVFFlat) or (cells.ntotal, cells.d, cells.metric_type) != expected:
            raise BundleTorn(
                f"{path.name} is not an inner-product index of {expected[0]} rows of width {expected[1]}; export again"
            )
        return cls(vectors, cells, width=width, k=k, threads=threads)

    @property
    def cell_count(self) -> int:
        """How many cells there are."""
        return int(self._cells.nlist)

    def search(
        self,
        queries: FloatArray,
        k: IntArray,
        eligible: Eligible,
        exclude: Sequence[IntArray],
        ahead: IntArray | None = None,
    ) -> list[Found]:
        """See `index.CandidateIndex.search`. What lies ahead is fetched from the cells that k rows are worth."""
        ahead = np.zeros(len(k), dtype=np.int64) if ahead is None else ahead
        queries = checked(self.vectors, queries, k, exclude)
        blocked = [np.unique(rows[eligible.mask[rows]]) for rows in exclude]
        found: dict[int, Found] = {}
        # One search has one length for all its queries. Lengths are rounded up to powers of two, so that a user with
        # a thousand seen items does not make the whole batch fetch a thousand.
        lengths: dict[tuple[int, int], list[int]] = {}
        for b, rows in enumerate(blocked):
            needed = min(int(k[b]), eligible.count - len(rows)) + len(rows)
            lengths.setdefault((_rounded(needed), _rounded(needed + int(ahead[b]))), []).append(b)
        for (length, fetched), members in lengths.items():
            width = self.width * math.sqrt(max(1.0, length / self._k))
            width *= (len(self.vectors) - 1) / max(1, eligible.count)
            while members and width < EXACT_CELLS * self.cell_count:
                nominated = self._nominate(queries[members], fetched, math.ceil(width), eligible)
                short = []
                for b, rows in zip(members, nominated, strict=True):
                    left = np.setdiff1d(rows, blocked[b])
                    wanted = min(int(k[b]), eligible.count - len(blocked[b]))
                    if len(left) < wanted:
                        short.append(b)
                    else:
                        found[b] = best(self.vectors, left, queries[b], wanted + int(ahead[b]))
                members, width = short, width * WIDER
            if members:
                exactly = self._exact.search(
                    queries[members], k[members], eligible, [blocked[b] for b in members], ahead[members]
                )
                found.update(zip(members, exactly, strict=True))
        return [found[b] for b in range(len(queries))]

    def _nominate(self, queries: FloatArray, length: int, width: int, eligible: Eligible) -> list[IntArray]:
        """Up to `length` eligible rows for each vector of each query, unsorted; several vectors may repeat one."""
        is_open = eligible.count == len(self.vectors) - 1
        # faiss builds these from keywords and arrays at import, which its type stubs do not know.
        make: Any = faiss
        selector = None if is_open else make.IDSelectorBitmap(eligible.bitmap)
        parameters = make.SearchParametersIVF(nprobe=width, sel=selector)
        faiss.omp_set_num_threads(self._threads)  # OpenMP keeps this per calling thread, not per process
        _, labels = self._cells.search(queries.reshape(-1, queries.shape[2]), length, params=parameters)
        return [rows[rows >= 0] + 1 for rows in labels.reshape(len(queries), -1)]


def _rounded(length: int) -> int:
    return 1 << max(0, length - 1).bit_length()


def tune(
    vectors: FloatArray,
    exact: ExactIndex,
    sample_queries: FloatArray,
    *,
    target_recall: float,
    k: int,
    seed: int,
    threads: int,
) -> tuple[CandidateIndex, dict[str, Any]]:
    """Widens a `FaissIndex` until it reaches the target, see `index.choose_index`; else the exact index."""
    if not len(sample_queries):
        raise InvalidInput("there is no sample query to measure recall with; take some from held-out histories")
    index = FaissIndex.build(vectors, k=k, seed=seed, threads=threads)
    rows = np.ones(len(vectors), dtype=np.bool_)
    rows[0] = False
    everything, wanted = Eligible.of(rows), np.full(len(sample_queries), k)
    nothing = [np.zeros(0, np.int64)] * len(sample_queries)
    truth = exact.search(sample_queries, wanted, everything, nothing)
    settings: dict[str, Any] = {"k": k, "target_recall": target_recall, "samples": len(sample_queries)}
    tried = []
    for step in range(2, 64):
        index.width = math.ceil(2 ** (step / 2))
        if index.width >= EXACT_CELLS * index.cell_count:
            break
        shares = recall(index.search(sample_queries, wanted, everything, nothing), truth)
        measured, error = float(shares.mean()), float(shares.std() / math.sqrt(len(shares)))
        tried.append({"width": index.width, "recall": round(measured, 4)})
        if measured - SURE * error >= target_recall:
            parameters = {"cells": index.cell_count, "width": index.width}
            return index, settings | {
                "kind": "ivf",
                "parameters": parameters,
                "measured_recall": round(measured, 4),
                "tried": tried,
            }
    return exact, settings | {"kind": "exact", "parameters": {}, "measured_recall": 1.0, "tried": tried}


def recall(found: Sequence[Found], truth: Sequence[Found]) -> npt.NDArray[np.float64]:
    """float64, shape (B,): the share of each query's exact rows that was found; a tie with the last of them counts."""
    return np.array(
        [
            np.count_nonzero(scores >= exact[-1]) / len(exact) if len(exact) else 1.0
            for (_, scores), (_, exact) in zip(found, truth, strict=True)
        ]
    )
