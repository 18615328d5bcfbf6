"""What item vectors answer: `Dense` for a history, `Similar` for an item."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from retrieval.encoder import SequenceEncoder
from retrieval.errors import EmptyHistory
from retrieval.filters import Eligible
from retrieval.index import CandidateIndex, ExactIndex, are_finite, scored
from retrieval.inputs import Request
from retrieval.queries import NO_STAGES, NOTHING, Answer, Query, Stage
from retrieval.sequences import FloatArray, IntArray

RETRIEVED = "retrieval"  # the source of what it finds by vectors that were trained
DESCRIBED = "described"  # and of what it finds by a vector that was made from what is said of an item
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
        # Then there is nothing to leave out, and nothing to look for.
        self._knows_all = trained == EVERY_ROW or len(index.vectors) <= trained + 1

    def reads(self, request: Request, /) -> bool:
        """See `Recommender`."""
        rows = request.history.rows
        return bool(len(rows) and (rows[-1] <= self._trained or (rows <= self._trained).any()))

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:
        """See `Recommender`."""
        if not queries:
            return []
        with stage("encode"):
            embeddings = self._encode([query.request for query in queries])
        with stage("retrieve"):
            eligible = queries[0].eligible
            if are_finite(embeddings) and all([query.eligible is eligible for query in queries]):  # as nearly always
                return self._search(queries, embeddings)
            finite = np.isfinite(embeddings).reshape(len(queries), -1).all(axis=1)
            groups: dict[Eligible, list[int]] = {}
            for b in np.flatnonzero(finite).tolist():
                groups.setdefault(queries[b].eligible, []).append(b)
            answers = [NOTHING] * len(queries)
            for members in groups.values():
                found = self._search([queries[b] for b in members], embeddings[members])
                for b, answer in zip(members, found, strict=True):
                    answers[b] = answer
        return answers

    def _search(self, queries: Sequence[Query], embeddings: FloatArray) -> list[Answer]:
        """Answers to queries that may be given the same rows."""
        k = np.array([query.k for query in queries], dtype=np.int64)
        ahead = np.array([query.ahead for query in queries], dtype=np.int64)
        exclude = [query.exclude for query in queries]
        found = self._index.search(embeddings, k, queries[0].eligible, exclude, ahead)
        return [self._answer(rows, scores) for rows, scores in found]

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

    def _known(self, request: Request) -> Request:
        """The request with what the encoder knows of its history."""
        if self._knows_all:
            return request
        known = request.history.rows <= self._trained
        return request if known.all() else replace(request, history=request.history.where(known))

    def _answer(self, rows: IntArray, scores: FloatArray) -> Answer:
        if self._knows_all:
            return Answer.of(rows, scores, RETRIEVED)
        is_late = rows > self._trained
        if not is_late.any():
            return Answer.of(rows, scores, RETRIEVED)
        is_described = is_late & self._index.vectors[rows].any(axis=1)
        return Answer(rows, scores, tuple(DESCRIBED if made else RETRIEVED for made in is_described.tolist()))

    def _encode(self, requests: Sequence[Request]) -> FloatArray:
        """Query embeddings of what the encoder knows of the histories.

        Raises:
            EmptyHistory: it knows nothing of one.
        """
        known = [self._known(request) for request in requests]
        if not all([len(request.history.rows) for request in known]):
            raise EmptyHistory("a query without history has nothing to encode; answer it from the popular items")
        return self._encoder.encode(known)


class Similar:
    """Item to item: the cosine of their vectors.

    Attributes:
        directions: float32, shape (N + 1, D): the vectors at length one; zero where an item has none.
    """

    name = "similar"

    def __init__(self, vectors: FloatArray) -> None:
        lengths = np.sqrt(np.vecdot(vectors, vectors))[:, None]
        self.directions = np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)
        self._index = ExactIndex(self.directions)

    def similar(self, row: int, k: int, eligible: Eligible, exclude: IntArray) -> Answer:
        """The `k` items whose vectors point most nearly where that of `row` does; never `row` itself."""
        query = self.directions[row][None]
        ((rows, scores),) = self._index.search(query, np.array([k]), eligible, [np.append(exclude, row)])
        return Answer.of(rows, scores, "similar")
