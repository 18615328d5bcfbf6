"""Recommenders: compositions that carry a batch of queries to answers.

`Dense` encodes and retrieves, `Popular` needs no history, `Composed` is what gets served: each query goes to the first
recommender that can read it, and what is missing is filled from those after it. Every composition keeps the promise:
only eligible rows, none twice, none excluded, and `k` of them whenever that many are left.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from threadpoolctl import threadpool_limits

from retrieval.bundle import INDEX, Bundle
from retrieval.catalog import Catalog
from retrieval.codes import CodeTable
from retrieval.encoder import OnnxEncoder, SequenceEncoder
from retrieval.errors import BundleForeign, EmptyHistory
from retrieval.filters import Eligible, Filters
from retrieval.index import CandidateIndex, ExactIndex, load_index, scored
from retrieval.inputs import Request, Tables
from retrieval.queries import NO_STAGES, NOTHING, Answer, Query, Ranker, Recommender, Stage
from retrieval.sequences import FloatArray, History, IntArray

__all__ = [
    "ITEM_TABLE",
    "NO_STAGES",
    "Answer",
    "Composed",
    "Dense",
    "Popular",
    "Query",
    "Ranker",
    "Recommender",
    "Served",
    "Similar",
    "Stage",
    "load",
]

ITEM_TABLE = "items"  # `item_vectors:items` in a graph's inputs gathers the vectors that are searched
EVERY_ROW = np.iinfo(np.int64).max


class Dense:
    """Encodes all histories of a batch in one run and retrieves by inner product.

    A query embedding that is not finite (a model met an input it cannot digest) retrieves nothing, so that one request
    does not take the others of its batch down.

    Args:
        encoder: reads the histories.
        index: holds the vectors that are searched.
        trained: the last row that the encoder knows; events with later ones are left out of histories.
    """

    name = "dense"

    def __init__(self, encoder: SequenceEncoder, index: CandidateIndex, *, trained: int = EVERY_ROW) -> None:
        self._encoder = encoder
        self._index = index
        self._trained = trained

    def reads(self, request: Request, /) -> bool:
        """See `Recommender`."""
        return bool((request.history.rows <= self._trained).any())

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:
        """See `Recommender`."""
        if not queries:
            return []
        with stage("encode"):
            embeddings = self._encode([query.request for query in queries])
        with stage("retrieve"):
            finite = np.isfinite(embeddings).reshape(len(queries), -1).all(axis=1)
            groups: dict[Eligible, list[int]] = {}
            for b in np.flatnonzero(finite).tolist():
                groups.setdefault(queries[b].eligible, []).append(b)
            answers = [NOTHING] * len(queries)
            for eligible, members in groups.items():
                k = np.array([queries[b].k for b in members], dtype=np.int64)
                exclude = [queries[b].exclude for b in members]
                found = self._index.search(embeddings[members], k, eligible, exclude)
                for b, (rows, scores) in zip(members, found, strict=True):
                    answers[b] = Answer.of(rows, scores, "retrieval")
        return answers

    def rank(self, requests: Sequence[Request], rows: Sequence[IntArray]) -> list[FloatArray]:
        """See `Ranker`: inner products."""
        if not requests:
            return []
        scores = []
        vectors = self._index.vectors
        for query, wanted in zip(self._encode(requests), rows, strict=True):
            own = scored(vectors, wanted, query if query.ndim == 2 else query[None])
            own[~vectors[wanted].any(axis=1)] = -np.inf
            scores.append(own)
        return scores

    def _encode(self, requests: Sequence[Request]) -> FloatArray:
        """Query embeddings of what the encoder knows of the histories.

        Raises:
            EmptyHistory: it knows nothing of one.
        """
        known = [replace(r, history=r.history.where(r.history.rows <= self._trained)) for r in requests]
        if not all(len(request.history) for request in known):
            raise EmptyHistory("a query without history has nothing to encode; answer it from the popular items")
        return self._encoder.encode(known)


class Popular:
    """The items with most events in the training data, whoever asks."""

    name = "popular"

    def __init__(self, catalog: Catalog) -> None:
        self._scores = catalog.popularity.astype(np.float32)
        # A stable sort of falling scores: equal ones stay in the order of their rows.
        self._order = np.argsort(-self._scores[1:], kind="stable") + 1

    def reads(self, _request: Request, /) -> bool:
        """See `Recommender`: it needs nothing."""
        return True

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
    """Each query goes to the first recommender that reads it; what is missing is filled from those after it.

    Args:
        recommenders: the best one first; the last one reads anything.
    """

    def __init__(self, *recommenders: Recommender) -> None:
        self.name = recommenders[0].name
        self._recommenders = recommenders

    def reads(self, request: Request, /) -> bool:
        """See `Recommender`."""
        return any(recommender.reads(request) for recommender in self._recommenders)

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:
        """See `Recommender`."""
        answers = [NOTHING] * len(queries)
        open_ = list(range(len(queries)))
        for recommender in self._recommenders:
            asked = [b for b in open_ if recommender.reads(queries[b].request)]
            if asked:
                rest = [_rest(queries[b], answers[b]) for b in asked]
                for b, more in zip(asked, recommender.recommend(rest, stage), strict=True):
                    answers[b] = answers[b].followed_by(more)
            open_ = [b for b in open_ if len(answers[b]) < queries[b].k and len(answers[b]) < queries[b].reachable]
            if not open_:
                break
        return answers


def _rest(query: Query, answer: Answer) -> Query:
    """What is still wanted."""
    if not len(answer):
        return query
    return replace(query, k=query.k - len(answer), exclude=np.concatenate([query.exclude, answer.rows]))


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A bundle, loaded: everything that answers from it. Immutable; `retrieval.editions` makes the next one.

    Attributes:
        bundle: what was loaded.
        catalog: its items, and those that came since.
        filters: of this catalog; a selection of another edition does not fit.
        recommender: what answers, the best first: generated, retrieved, popular.
        popular: for nobody in particular.
        similar: item to item.
        index: of the item vectors.
        dense: `recommender` without its generator, to fall back on where that is late; the same object where the
            bundle has none. Without an encoder it is what is popular.
        rankers: what scores any items, the best first.
        generative: the generator; None where the bundle has none.
        codes: the items' semantic ids; None where the bundle has none.
        edition: how often the catalog has changed since the bundle was loaded.
    """

    bundle: Bundle
    catalog: Catalog
    filters: Filters
    recommender: Composed
    popular: Popular
    similar: Similar
    index: CandidateIndex
    dense: Composed
    rankers: tuple[Ranker, ...]
    generative: Ranker | None = None
    codes: CodeTable | None = None
    edition: int = 0

    def rank(self, request: Request, rows: IntArray) -> FloatArray:
        """Scores of given items, by the first ranker that can read the request.

        Args:
            request: whose history to rank for.
            rows: int64, shape (n,), of the catalog; PAD_ROW stands for an unknown item.

        Returns:
            float32, shape (n,): see `Ranker.rank`.

        Raises:
            EmptyHistory: no ranker can read it.
        """
        for ranker in self.rankers:
            if ranker.reads(request):
                return ranker.rank([request], [rows])[0]
        raise EmptyHistory("nothing in the history is known to a model; rank by popularity instead")


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
    dense = Dense(encoder, index)
    composed = Composed(dense, popular)
    return Served(
        bundle=bundle,
        catalog=catalog,
        filters=Filters(catalog),
        recommender=composed,
        popular=popular,
        similar=Similar(vectors),
        index=index,
        dense=composed,
        rankers=(dense,),
    )
