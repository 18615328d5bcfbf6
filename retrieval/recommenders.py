"""Recommenders: compositions that carry a batch of queries to answers, and the bundle that they are made from.

`Popular` needs no history. `Composed` is what gets served: each query goes to the first recommender that can read it
(generated, then retrieved, then popular), and what is missing is filled from those after it. Every composition keeps
the promise: only eligible rows, none twice, none excluded, and `k` of them whenever that many are left.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from retrieval.arrangement import Arranger
from retrieval.bundle import INDEX, TRIE, Bundle
from retrieval.catalog import Catalog
from retrieval.codes import CodeTable
from retrieval.dense import DESCRIBED, RETRIEVED, Dense, Similar
from retrieval.engine import ITEM_TABLE, TEXT_TABLE, Engine, tables
from retrieval.errors import BundleForeign, EmptyHistory
from retrieval.features import FeatureTables
from retrieval.filters import Filters
from retrieval.generative import GENERATED, HYBRID, Generative, Hybrid
from retrieval.index import CandidateIndex, load_index
from retrieval.inputs import Request
from retrieval.queries import NO_STAGES, NOTHING, Answer, Query, Recommender, Retriever, Stage
from retrieval.ranking import Ranker
from retrieval.reasons import Reads, Reasons
from retrieval.sequences import FloatArray, IntArray
from retrieval.trie import ConstraintTrie
from retrieval.two_stage import TwoStage

__all__ = [
    "ITEM_TABLE",
    "NO_STAGES",
    "TEXT_TABLE",
    "Answer",
    "Composed",
    "Dense",
    "Generative",
    "Popular",
    "Query",
    "Ranker",
    "Recommender",
    "Retriever",
    "Served",
    "Similar",
    "Stage",
    "TwoStage",
    "compose",
    "load",
]


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
        wanted = query.k + query.ahead
        reach = wanted + len(query.exclude)
        while True:
            # Only the head of the order is looked at, four times as much of it each time that was not enough.
            head = self._order[:reach]
            rows = head[allowed[head]][:wanted]
            if len(rows) == wanted or reach >= len(self._order):
                return Answer.of(rows, self._scores[rows], "popular")
            reach *= 4


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
        engine: what it computes with.
        catalog: its items, and those that came since.
        filters: of this catalog; a selection of another edition does not fit.
        recommender: what answers, the best first: generated, retrieved, popular; then ranked and arranged.
        popular: for nobody in particular; arranged and not ranked.
        similar: item to item.
        reasons: why an item is in a list.
        index: of the item vectors.
        dense: `recommender` without its generator, to fall back on where that is late; the same object where the
            bundle has none. Without an encoder it is what is popular.
        retrievers: what scores any items, the best first.
        ranker: what puts candidates in order; None where the bundle has none.
        generative: the generator; None where the bundle has none.
        codes: the items' semantic ids; None where the bundle has none.
        text_vectors: float32, shape (N + 1, D'), zero where nothing is known of an item's text; None where the bundle
            has none.
        edition: how often the catalog has changed since the bundle was loaded; the version of the trie.
    """

    bundle: Bundle
    engine: Engine
    catalog: Catalog
    filters: Filters
    recommender: TwoStage
    popular: TwoStage
    similar: Similar
    reasons: Reasons
    index: CandidateIndex
    dense: TwoStage
    retrievers: tuple[Retriever, ...]
    ranker: Ranker | None = None
    generative: Generative | None = None
    codes: CodeTable | None = None
    text_vectors: FloatArray | None = None
    edition: int = 0

    @property
    def trained(self) -> int:
        """The last row of the bundle's own items; those behind it came later."""
        return self.catalog.trained

    def rank(self, request: Request, rows: IntArray) -> FloatArray:
        """Scores of given items, by the first retriever that can read the request.

        Args:
            request: whose history to rank for.
            rows: int64, shape (n,), of the catalog; PAD_ROW stands for an unknown item.

        Returns:
            float32, shape (n,): see `Retriever.rank`.

        Raises:
            EmptyHistory: no retriever can read it.
        """
        for retriever in self.retrievers:
            if retriever.reads(request):
                return retriever.rank([request], [rows])[0]
        raise EmptyHistory("nothing in the history is known to a model; rank by popularity instead")


def load(bundle: Bundle, *, threads: int = 1, device: str = "cpu") -> Served:
    """Wires a verified bundle together and runs its graphs once, to see that its parts fit.

    Args:
        bundle: what to serve.
        threads: cores that one batch may use.
        device: `cpu` or `cuda`, for the graphs.

    Raises:
        BundleError: a file is unreadable, or the parts do not fit each other.
    """
    # NumPy's BLAS takes every core of the machine by default, whatever `threads` says, and the products of one search
    # are too small to share: with two threads an exact search of 32 queries took eight times as long as with one.
    threadpool_limits(1, user_api="blas")
    engine, trie = Engine.load(bundle, threads=threads, device=device), None
    if engine.decoder is not None and bundle.codes is not None:
        trie = _trie(bundle.path / TRIE, bundle.codes)
    index = load_index(bundle.path / INDEX, bundle.item_vectors, bundle.manifest.index, threads=threads)
    return compose(
        bundle, engine, bundle.catalog, index, codes=bundle.codes, trie=trie, text_vectors=bundle.text_vectors
    )


def compose(
    bundle: Bundle,
    engine: Engine,
    catalog: Catalog,
    index: CandidateIndex,
    *,
    codes: CodeTable | None = None,
    trie: ConstraintTrie | None = None,
    text_vectors: FloatArray | None = None,
    edition: int = 0,
) -> Served:
    """Everything that answers from an engine over some catalog; the arguments are those of `Served`."""
    similar = Similar(index.vectors)
    popular, arranger, ranker = Popular(catalog), Arranger(catalog, index.vectors), engine.ranker
    if ranker is not None and edition:
        features, statistics = ranker.tables.features, ranker.tables.statistics
        ranker = ranker.with_tables(FeatureTables.of(features, statistics, catalog, index.vectors))
    dense, reads = None, {}
    if engine.encoder is not None:
        dense = Dense(engine.encoder, index, trained=catalog.trained)
        known = np.arange(len(catalog) + 1) <= catalog.trained
        reads[RETRIEVED] = reads[DESCRIBED] = Reads(known, bundle.manifest.window)
    simpler: Recommender = Composed(popular) if dense is None else Composed(dense, popular)
    generative: Generative | None = None
    recommender = simpler
    if engine.decoder is not None and engine.generation is not None and trie is not None:
        decoder = engine.decoder.with_tables(tables(index.vectors, text_vectors, codes))
        generative = Generative(decoder, trie, engine.generation)
        if codes is not None:
            reads[GENERATED] = Reads(codes.coded, engine.generation.window or bundle.manifest.window)
        recommender = Composed(generative, simpler)
        if engine.generation.candidates == HYBRID:
            if dense is None:
                raise BundleForeign("the manifest asks for hybrid candidates and the bundle has no encoder; add one")
            recommender = Composed(Hybrid(generative, dense), popular)
    return Served(
        bundle=bundle,
        engine=engine,
        catalog=catalog,
        filters=Filters(catalog),
        recommender=TwoStage(recommender, ranker, arranger),
        popular=TwoStage(popular, None, arranger),
        similar=similar,
        reasons=Reasons(similar.directions, reads),
        index=index,
        dense=TwoStage(simpler, ranker, arranger),
        ranker=ranker,
        retrievers=tuple(retriever for retriever in (generative, dense) if retriever is not None),
        generative=generative,
        codes=codes,
        text_vectors=text_vectors,
        edition=edition,
    )


def _trie(path: Path, codes: CodeTable) -> ConstraintTrie:
    """The trie, after it was found to be that of the codes."""
    trie = ConstraintTrie.load(path)
    fits = trie.vocabulary == codes.vocabulary and trie.size == len(codes) + 1 and len(trie) == codes.coded.sum()
    if not fits or not np.array_equal(codes.codes[trie.rows], trie.codes):
        raise BundleForeign(f"{path.name} was made from other codes than the bundle holds; export it again")
    return trie
