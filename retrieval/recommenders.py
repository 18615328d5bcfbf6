"""Recommenders: compositions that carry a batch of queries to answers.

`Dense` encodes and retrieves, `Popular` needs no history, `Composed` is what gets served: dense where there is a
history, popular where there is none or where something is missing. Every one keeps the promise: only eligible rows,
none twice, none excluded, and `k` of them whenever that many are left.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from retrieval.bundle import INDEX, Bundle
from retrieval.catalog import Catalog
from retrieval.encoder import OnnxEncoder, SequenceEncoder
from retrieval.errors import BundleForeign, EmptyHistory
from retrieval.filters import Eligible, Filters
from retrieval.index import CandidateIndex, ExactIndex, load_index
from retrieval.inputs import Request, Tables
from retrieval.sequences import FloatArray, History, IntArray

ITEM_TABLE = "items"  # `item_vectors:items` in a graph's inputs gathers the vectors that are searched


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """One question of a batch.

    Attributes:
        request: what there is to encode.
        k: how many items are wanted, at least 1.
        eligible: the rows that may be returned.
        exclude: int64, shape (n,). Rows that may not: seen items and the filter's `exclude_ids`. Repeats and PAD_ROW do
            no harm.
    """

    request: Request
    k: int
    eligible: Eligible
    exclude: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a query got: min(k, eligible and not excluded) rows, best first.

    Attributes:
        rows: int64, shape (K,), distinct.
        scores: float32, shape (K,). Falling within one source, equal ones by row; sources have scales of their own.
        sources: K names: `retrieval`, `popular` or `similar`.
    """

    rows: IntArray
    scores: FloatArray
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, rows: IntArray, scores: FloatArray, source: str) -> "Answer":
        """An answer of one source."""
        return cls(rows, scores, (source,) * len(rows))

    @property
    def source(self) -> str:
        """Where the first item came from; empty when there is none."""
        return self.sources[0] if self.sources else ""


class Stage(Protocol):
    """How a caller times the stages: `with stage("encode"): ...`. The core knows no clock."""

    def __call__(self, name: str, /) -> AbstractContextManager[None]: ...


def NO_STAGES(_name: str, /) -> AbstractContextManager[None]:
    """Times nothing."""
    return nullcontext()


class Recommender(Protocol):
    """A batch of queries in, one answer each, in their order."""

    name: str

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]: ...


class Dense:
    """Encodes all histories of a batch in one run and retrieves by inner product.

    A query embedding that is not finite (a model met an input it cannot digest) retrieves nothing, so that one request
    does not take the others of its batch down.
    """

    name = "dense"

    def __init__(self, encoder: SequenceEncoder, index: CandidateIndex) -> None:
        self._encoder = encoder
        self._index = index

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:
        """See `Recommender`.

        Raises:
            EmptyHistory: a query has nothing to encode.
        """
        if not queries:
            return []
        if not all(len(query.request.history) for query in queries):
            raise EmptyHistory("a query without history has nothing to encode; answer it from the popular items")
        with stage("encode"):
            embeddings = self._encoder.encode([query.request for query in queries])
        with stage("retrieve"):
            finite = np.isfinite(embeddings).reshape(len(queries), -1).all(axis=1)
            groups: dict[Eligible, list[int]] = {}
            for b in np.flatnonzero(finite).tolist():
                groups.setdefault(queries[b].eligible, []).append(b)
            nothing = Answer.of(np.zeros(0, np.int64), np.zeros(0, np.float32), "retrieval")
            answers = [nothing] * len(queries)
            for eligible, members in groups.items():
                k = np.array([queries[b].k for b in members], dtype=np.int64)
                exclude = [queries[b].exclude for b in members]
                found = self._index.search(embeddings[members], k, eligible, exclude)
                for b, (rows, scores) in zip(members, found, strict=True):
                    answers[b] = Answer.of(rows, scores, "retrieval")
        return answers


class Popular:
    """The items with most events in the training data, whoever asks."""

    name = "popular"

    def __init__(self, catalog: Catalog) -> None:
        self._scores = catalog.popularity.astype(np.float32)
        # A stable sort of falling scores: equal ones stay in the order of their rows.
        self._order = np.argsort(-self._scores[1:], kind="stable") + 1

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:
        """See `Recommender`."""
        with stage("retrieve"):
            return [self._answer(query) for query in queries]

    def _answer(self, query: Query) -> Answer:
        allowed = query.eligible.mask.copy()
        allowed[query.exclude] = False
        reach = query.k + len(query.exclude)
        while True:
            # Only the head of the order is looked at, four times as much of it each time that was not enough.
            head = self._order[:reach]
            rows = head[allowed[head]][: query.k]
            if len(rows) == query.k or reach >= len(self._order):
                return Answer.of(rows, self._scores[rows], "popular")
            reach *= 4


class Similar:
    """Item to item: the cosine of their vectors."""

    name = "similar"

    def __init__(self, vectors: FloatArray) -> None:
        lengths = np.sqrt(np.vecdot(vectors, vectors))[:, None]
        self._directions = np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)
        self._index = ExactIndex(self._directions)

    def similar(self, row: int, k: int, eligible: Eligible, exclude: IntArray) -> Answer:
        """The `k` items whose vectors point most nearly where that of `row` does; never `row` itself."""
        query = self._directions[row][None]
        ((rows, scores),) = self._index.search(query, np.array([k]), eligible, [np.append(exclude, row)])
        return Answer.of(rows, scores, "similar")


class Composed:
    """Dense where there is a history, popular where there is none; what is missing is filled from popular."""

    def __init__(self, dense: Dense, popular: Popular) -> None:
        self.name = dense.name
        self._dense = dense
        self._popular = popular

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:
        """See `Recommender`."""
        dense = [b for b, query in enumerate(queries) if len(query.request.history)]
        popular = [b for b, query in enumerate(queries) if not len(query.request.history)]
        answers = dict(zip(dense, self._dense.recommend([queries[b] for b in dense], stage), strict=True))
        if popular:
            answers.update(zip(popular, self._popular.recommend([queries[b] for b in popular], stage), strict=True))
        for b in dense:
            if len(answers[b]) < min(queries[b].k, queries[b].eligible.count):
                answers[b] = self._filled(answers[b], queries[b], stage)
        return [answers[b] for b in range(len(queries))]

    def _filled(self, answer: Answer, query: Query, stage: Stage) -> Answer:
        rest = Query(query.request, query.k - len(answer), query.eligible, np.concatenate([query.exclude, answer.rows]))
        more = self._popular.recommend([rest], stage)[0]
        return Answer(
            np.concatenate([answer.rows, more.rows]),
            np.concatenate([answer.scores, more.scores]),
            answer.sources + more.sources,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A bundle, loaded: everything that answers from it."""

    bundle: Bundle
    catalog: Catalog
    filters: Filters
    recommender: Composed
    popular: Popular
    similar: Similar
    index: CandidateIndex


def load(bundle: Bundle, *, threads: int = 1, device: str = "cpu") -> Served:
    """Wires a verified bundle together and encodes one history, to see that its parts fit.

    Args:
        bundle: what to serve.
        threads: cores that one batch may use.
        device: `cpu` or `cuda`, for the encoder.

    Raises:
        BundleError: a file is unreadable, or the graph and the item vectors have different widths.
    """
    # NumPy's BLAS takes every core of the machine by default, whatever `threads` says, and the products of one search
    # are too small to share: with two threads an exact search of 32 queries took eight times as long as with one.
    threadpool_limits(1, user_api="blas")
    catalog, vectors = bundle.catalog, bundle.item_vectors
    graph = bundle.manifest.graphs["encoder"]
    encoder = OnnxEncoder(
        bundle.path / graph.file,
        names=graph.inputs,
        length=bundle.manifest.window,
        tables=Tables({ITEM_TABLE: vectors}),
        threads=threads,
        device=device,
    )
    width = encoder.encode([Request(History.of_rows([1]))]).shape[-1]
    if width != vectors.shape[1]:
        raise BundleForeign(
            f"{graph.file} makes query embeddings of width {width}, the item vectors have {vectors.shape[1]}; "
            "they come from different trainings, export the bundle again"
        )
    index = load_index(bundle.path / INDEX, vectors, bundle.manifest.index, threads=threads)
    popular = Popular(catalog)
    return Served(
        bundle=bundle,
        catalog=catalog,
        filters=Filters(catalog),
        recommender=Composed(Dense(encoder, index), popular),
        popular=popular,
        similar=Similar(vectors),
        index=index,
    )
