"""Generative retrieval: a model writes the codes of items, and only items that exist and may be shown can come out."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from retrieval.beam import IMPOSSIBLE, Found, Search, search, search_all
from retrieval.decoder import Decoder, Memory, Parallel
from retrieval.errors import BundleTorn
from retrieval.filters import Eligible
from retrieval.inputs import Request
from retrieval.queries import NO_STAGES, NOTHING, Answer, Query, Recommender, Stage
from retrieval.sequences import FloatArray, IntArray
from retrieval.trie import ConstraintTrie, Live

GENERATED, HYBRID = "generated", "hybrid"
EXACT_ITEMS = 200_000  # up to here the items of a parallel decoder are searched exactly, above it by a beam
CACHE_BYTES = 64 << 20  # of what filters leave of the trie
RANK_OFFSET = 60  # of reciprocal rank fusion: how little the first few ranks differ


@dataclass(frozen=True, slots=True)
class Generation:
    """How a bundle's generator is to be searched: its manifest's `generation`.

    Attributes:
        levels: L, how many codes an item has.
        vocabulary: L numbers: the codewords V of each level.
        beams: M, how many prefixes are kept unless a query says otherwise.
        widen: how often a list that is not proven exact is searched for again, each time twice as wide.
        exact_below: with no more items left than this, all of them are scored.
        candidates: `generated`, or `hybrid` where what the encoder retrieves is merged in.
        window: longest history that the generator reads; None means the manifest's window.
    """

    levels: int
    vocabulary: tuple[int, ...]
    beams: int = 50
    widen: int = 0
    exact_below: int = 0
    candidates: str = GENERATED
    window: int | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Generation":
        """From a manifest; names that are not listed above are for readers and stay unread.

        Raises:
            BundleTorn: a number is missing or out of range.
        """
        try:
            known = {name: raw[name] for name in cls.__slots__ if name in raw}
            made = cls(**{**known, "vocabulary": tuple(int(v) for v in raw["vocabulary"])})
            rules = {
                "levels": made.levels == len(made.vocabulary) and made.levels > 0,
                "vocabulary": min(made.vocabulary, default=0) > 0,
                "beams": made.beams >= 1,
                "widen": made.widen >= 0,
                "exact_below": made.exact_below >= 0,
                "candidates": made.candidates in (GENERATED, HYBRID),
                "window": made.window is None or made.window >= 1,
            }
        except (KeyError, TypeError, ValueError) as error:
            raise BundleTorn(f"the manifest's generation cannot be read ({error}); export the bundle again") from error
        for name, holds in rules.items():
            if not holds:
                value = getattr(made, name)
                raise BundleTorn(f"the manifest's generation says {name} {value!r}, which cannot be; export it again")
        return made


class Generative:
    """Reads all histories of a batch in one run and writes codes for all of them in step.

    What a query does not get (its time ran out, or the model made no numbers of its history) it does not get alone: the
    others of its batch are not touched.

    Args:
        decoder: the model.
        trie: the items that have codes.
        settings: how to search.
    """

    name = "generative"

    def __init__(self, decoder: Decoder, trie: ConstraintTrie, settings: Generation) -> None:
        self.decoder = decoder
        self.trie = trie
        self.settings = settings
        self._live: OrderedDict[Eligible, Live] = OrderedDict()
        self._live_bytes = 0
        self._lock = threading.Lock()

    def reads(self, request: Request, /) -> bool:
        """See `Recommender`: whether an item of the history has a code."""
        return self.decoder.reads(request)

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:
        """See `Recommender`."""
        if not queries:
            return []
        with stage("prefill"):
            memory = self.decoder.prefill([query.request for query in queries])
        with stage("beam"):
            searches = [self._search(query) for query in queries]
        return [_answer(found) for found in self._found(memory, searches, stage)]

    def rank(self, requests: Sequence[Request], rows: Sequence[IntArray]) -> list[FloatArray]:
        """See `Retriever`: each item's codes are put into the model's mouth, prefixes that items share only once."""
        if not requests:
            return []
        memory = self.decoder.prefill(requests)
        return [self._scores(memory.take(np.array([r])), own) for r, own in enumerate(rows)]

    def _search(self, query: Query) -> Search:
        beams = self.settings.beams if query.beams is None else query.beams
        return Search(query.k, beams, self._left(query.eligible), query.exclude, query.in_time, query.ahead)

    def _found(self, memory: Memory, searches: Sequence[Search], stage: Stage) -> list[Found]:
        if isinstance(self.decoder, Parallel) and len(self.trie) <= EXACT_ITEMS:
            with stage("beam"):
                return search_all(self.decoder.distributions(memory), self.trie, searches)
        settings = self.settings
        return search(
            self.decoder,
            memory,
            self.trie,
            searches,
            widen=settings.widen,
            exact_below=settings.exact_below,
            stage=stage,
        )

    def _left(self, eligible: Eligible) -> Live:
        """What a filter leaves of the trie; made once for each of the recent ones."""
        with self._lock:
            known = self._live.get(eligible)
            if known is not None:
                self._live.move_to_end(eligible)
                return known
        made = self.trie.live(eligible.mask)
        with self._lock:
            if eligible not in self._live:
                self._live[eligible] = made
                self._live_bytes += made.nbytes
            while self._live_bytes > CACHE_BYTES and len(self._live) > 1:
                self._live_bytes -= self._live.popitem(last=False)[1].nbytes
        return made

    def _scores(self, memory: Memory, rows: IntArray) -> FloatArray:
        """float32, shape (n,): what one request's items score."""
        places = self.trie.rank[rows]
        has_code = places >= 0
        places = places[has_code]
        scores = np.full(len(rows), -np.inf, dtype=np.float32)
        if not len(places):
            return scores
        total = np.zeros(len(places), dtype=np.float32)
        for level in range(self.trie.levels):
            nodes = np.searchsorted(self.trie.starts[level], places, side="right") - 1
            distinct, which = np.unique(nodes, return_inverse=True)
            log_probs = self.decoder.step(memory, self.trie.prefixes(level, distinct)[None])[0]
            code = self.trie.codes[places, level]
            total += log_probs[which if len(log_probs) > 1 else 0, code].clip(IMPOSSIBLE, 0.0)
        scores[has_code] = total
        return scores


class Hybrid:
    """What is generated and what is retrieved, merged by their ranks.

    Args:
        generative, dense: the two; a query that one of them cannot read is answered by the other.
    """

    name = "hybrid"

    def __init__(self, generative: Recommender, dense: Recommender) -> None:
        self._sources = (generative, dense)

    def reads(self, request: Request, /) -> bool:
        """See `Recommender`."""
        return any(source.reads(request) for source in self._sources)

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:
        """See `Recommender`."""
        found: list[list[Answer]] = [[] for _ in queries]
        for source in self._sources:
            asked = [b for b, query in enumerate(queries) if source.reads(query.request)]
            alone = [replace(queries[b], ahead=0) for b in asked]  # longer lists would be merged into other first k
            for b, answer in zip(asked, source.recommend(alone, stage), strict=True):
                found[b].append(answer)
        with stage("merge"):
            return [fused(answers, query.k + query.ahead) for answers, query in zip(found, queries, strict=True)]


def fused(answers: Sequence[Answer], k: int) -> Answer:
    """The first `k` of several answers to one query, by reciprocal rank fusion.

    An item scores the sum of 1 / (60 + its rank) over the answers that hold it; equal ones stay in the order of the
    answers. Each keeps the source, and the steps, of the first answer that holds it.

    Source:
        Cormack, Clarke and Büttcher (2009), "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning
        Methods", section 3.
    """
    every = NOTHING
    for answer in answers:
        every = every.followed_by(answer)
    ranks = np.concatenate([np.arange(1, len(answer) + 1) for answer in answers]) if answers else np.zeros(0)
    _, first, which = np.unique(every.rows, return_index=True, return_inverse=True)
    scores = np.bincount(which, 1 / (RANK_OFFSET + ranks), minlength=len(first)).astype(np.float32)
    order = np.lexsort((first, -scores))[:k]
    at = first[order]
    return Answer(
        every.rows[at],
        scores[order],
        tuple(every.sources[n] for n in at.tolist()),
        every.exact,
        None if every.steps is None else every.steps[at],
    )


def _answer(found: Found) -> Answer:
    if not found.finished:
        return NOTHING
    return Answer(found.rows, found.scores, (GENERATED,) * len(found.rows), found.exact, found.steps)
