"""The story of one request, from a validated body to an answer.

Read `Pipeline.recommend` from top to bottom. Whatever can be answered by something simpler is, and says so (see
`ladder`); only overload, a filter that cannot mean anything and a deadline with nothing to show are errors.
"""

import asyncio
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from retrieval.filters import Filter
from retrieval.inputs import Request
from retrieval.recommenders import Answer, Query, Retriever, Served, Stage
from retrieval.sequences import EMPTY, PAD_ROW, FloatArray, IntArray
from service import metrics
from service.answers import RankedItem, RankingAnswer, RecommendationAnswer, RecommendedItem, ServedModel, SimilarAnswer
from service.batching import MicroBatcher, Run
from service.errors import DeadlineExceeded
from service.ladder import Call, InTime, Rung, climb_down
from service.permits import Permits
from service.questions import VARIANT, Questions, filter_of, joined, request_of, rows_of
from service.schemas import RankingRequest, RecommendationRequest
from service.settings import GENERATIVE_SHARE, RESERVE_SHARE
from service.timing import Timings

Q = TypeVar("Q")
A = TypeVar("A")
GENERATED = "generated"
RETRIEVED = "retrieval"


@dataclass(frozen=True, slots=True)
class Candidates:
    """Rows to be put in order for a request; PAD_ROW stands for unknown items."""

    request: Request
    rows: IntArray


@dataclass(frozen=True, slots=True)
class Scored:
    """What candidates are worth, -inf where nothing is known of one, and what says so."""

    scores: FloatArray
    source: str


@dataclass(frozen=True, slots=True)
class Scoring:
    """A retriever at work on a batch of candidate lists. Equal to another one where the retriever is the same."""

    retriever: Retriever
    source: str

    def __call__(self, questions: Sequence[Candidates], stage: Stage) -> list[Scored]:
        """Scores for each list."""
        with stage("rank"):
            scores = self.retriever.rank([one.request for one in questions], [one.rows for one in questions])
        return [Scored(own, self.source) for own in scores]


class Pipeline:
    """Answers recommendations from one bundle.

    Args:
        served: the bundle, loaded; `served` may be replaced by another edition of it at any time, and a request keeps
            the one that it began with.
        questions: reads bodies.
        pools: `encoder` and `generator`: each carries the work of one in a thread of its own.
        permits: shared with everything else that works on requests.
        clock: seconds from some fixed moment; deadlines and timings.
    """

    def __init__(
        self,
        served: Served,
        *,
        questions: Questions,
        pools: Mapping[str, MicroBatcher],
        permits: Permits,
        clock: Callable[[], float],
    ) -> None:
        self.served = served
        self._questions = questions
        self._pools = pools
        self._permits = permits
        self._clock = clock

    async def recommend(self, asked: RecommendationRequest, *, arrived: float) -> RecommendationAnswer:
        """Recommendations for one request.

        Args:
            asked: the validated body.
            arrived: on the pipeline's clock, when the request's first byte did.

        Raises:
            Overloaded: no permit or no room in the queue.
            InvalidFilter, InvalidRequest: the request cannot mean anything for this catalog.
            DeadlineExceeded: out of time with nothing to show.
        """
        with self._permits.hold():
            served = self.served
            call = self._questions.call(asked, served, arrived=arrived)
            timings = call.timings

            with timings("filter"):
                eligible = served.filters.eligible(filter_of(asked.filter))

            with timings("state"):
                stored = await self._questions.remembered(asked, call)
                given = rows_of(asked.history, call)
                hidden = [served.catalog.rows(asked.filter.exclude_ids)] if asked.filter.exclude_ids else []
                if served.bundle.manifest.exclude_seen if asked.exclude_seen is None else asked.exclude_seen:
                    hidden += [stored.rows, given.rows]
                exclude = joined(hidden)
                request = request_of(given if asked.history else stored, asked.context, call)

            def query(in_time: InTime) -> Query:
                return Query(request, asked.k, eligible, exclude, in_time)

            answer = await self._climb_down(call, self._recommenders(served, request), query)
            if answer is None:
                answer = served.popular.recommend([query(lambda: True)], timings)[0]

            with timings("respond"):
                items = _items(served, answer, explain=asked.explain)
            metrics.HISTORY_LENGTH.observe(len(request.history))
            metrics.CANDIDATES.observe(eligible.count)
            if len(answer) < asked.k:
                metrics.SHORT_LISTS.inc()
            _observe(timings)
            body: RecommendationAnswer = {
                "recommendation_id": secrets.token_urlsafe(16),
                "items": items,
                "next": None,
                "model": _model(served),
                "degraded": bool(call.reasons),
                "degraded_reasons": call.reasons,
                "timings_ms": timings.milliseconds(),
            }
            if answer.exact is not None and GENERATED in answer.sources:
                body["exact"] = answer.exact
                metrics.GENERATED_LISTS.labels(str(answer.exact).lower()).inc()
            return body

    async def rank(self, asked: RankingRequest, *, arrived: float) -> RankingAnswer:
        """The caller's candidates in order, by the numbers that recommendations are scored with.

        Args:
            asked: the validated body.
            arrived: on the pipeline's clock, when the request's first byte did.

        Raises:
            Overloaded: no permit or no room in the queue.
            InvalidRequest: the request cannot mean anything.
            DeadlineExceeded: out of time with nothing to show.
        """
        with self._permits.hold():
            served = self.served
            call = self._questions.call(asked, served, arrived=arrived)
            with call.timings("state"):
                stored = EMPTY if asked.history else await self._questions.remembered(asked, call)
                history = rows_of(asked.history, call) if asked.history else stored
                request = request_of(history, asked.context, call)
                rows = served.catalog.rows(asked.candidates)

            rungs = [
                self._rung(served, retriever, Scoring(retriever, _source(served, retriever)), _is_finite)
                for retriever in _readers(served, request)
            ]
            scored = await self._climb_down(call, rungs, lambda _: Candidates(request, rows))
            if scored is None:
                popularity = np.where(rows == PAD_ROW, -np.inf, served.catalog.popularity[rows])
                scored = Scored(popularity, served.popular.name)

            with call.timings("respond"):
                items = _ranked(asked.candidates, scored.scores.tolist())
            _observe(call.timings)
            return {
                "items": items,
                "source": scored.source,
                "model": _model(served),
                "degraded": bool(call.reasons),
                "degraded_reasons": call.reasons,
                "timings_ms": call.timings.milliseconds(),
            }

    async def similar(self, item_id: str, k: int) -> SimilarAnswer:
        """Items like one item.

        Raises:
            Overloaded: no permit.
            UnknownItem: the catalog does not hold it.
        """
        with self._permits.hold():
            served = self.served
            timings = Timings(self._clock)
            row = served.catalog.row(item_id)
            eligible = served.filters.eligible(Filter())
            with timings("retrieve"):
                answer = await asyncio.to_thread(served.similar.similar, row, k, eligible, EMPTY.rows)
            with timings("respond"):
                items = _items(served, answer)
            return {"item_id": item_id, "items": items, "model": _model(served), "timings_ms": timings.milliseconds()}

    async def _climb_down(self, call: Call, rungs: Sequence[Rung[Q, A]], question: Callable[[InTime], Q]) -> A | None:
        """The answer of a model; None where the popular items have to do, for which there is still time.

        Raises:
            Overloaded: no room in the last queue.
            DeadlineExceeded: there is no time even for the popular items.
        """
        if not rungs:
            call.degrade("no_history")
        until = call.deadline - RESERVE_SHARE * call.budget_s
        answer = await climb_down(call, rungs, question, until=until, clock=self._clock)
        if answer is None and self._clock() >= call.deadline:
            metrics.DEADLINE_EXCEEDED.labels("respond").inc()
            raise DeadlineExceeded("respond")
        return answer

    def _rung(self, served: Served, retriever: Retriever, run: Run[Q, A], is_own: Callable[[A], bool]) -> Rung[Q, A]:
        """What this retriever has to do, in its pool and within its time."""
        if retriever is not served.generative:
            return Rung(self._pools["encoder"], run, 1.0, "deadline", "encoder_failed", is_own)
        share = GENERATIVE_SHARE if len(served.retrievers) > 1 else 1.0
        return Rung(self._pools["generator"], run, share, "generator_late", "generator_failed", is_own)

    def _recommenders(self, served: Served, request: Request) -> list[Rung[Query, Answer]]:
        rungs = []
        for retriever in _readers(served, request):
            composed = served.recommender if retriever is served.retrievers[0] else served.dense
            is_own = _is_generated if retriever is served.generative else _is_retrieved
            rungs.append(self._rung(served, retriever, composed.recommend, is_own))
        return rungs


def _readers(served: Served, request: Request) -> list[Retriever]:
    """The models that can start from this request, the best first."""
    return [retriever for retriever in served.retrievers if retriever.reads(request)]


def _source(served: Served, retriever: Retriever) -> str:
    return GENERATED if retriever is served.generative else RETRIEVED


def _model(served: Served) -> ServedModel:
    return {"name": served.bundle.manifest.model, "bundle": served.bundle.name, "variant": VARIANT}


def _items(served: Served, answer: Answer, *, explain: bool = False) -> list[RecommendedItem]:
    """Rows become ids again."""
    ids, attributes = served.catalog.ids, served.catalog.attributes
    found = zip(answer.rows.tolist(), answer.scores.tolist(), answer.sources, strict=True)
    items: list[RecommendedItem] = []
    for rank, (row, score, source) in enumerate(found, start=1):
        item: RecommendedItem = {"item_id": ids[row], "score": score, "rank": rank, "source": source}
        known = attributes(row)
        if known:
            item["attributes"] = known
        if explain and source == GENERATED and answer.steps is not None and served.codes is not None:
            codes, shares = served.codes.codes[row].tolist(), answer.steps[rank - 1].tolist()
            path = zip(codes, shares, strict=True)
            item["explanation"] = {"path": [{"code": code, "log_probability": share} for code, share in path]}
        items.append(item)
    return items


def _ranked(candidates: Sequence[str], scores: Sequence[float]) -> list[RankedItem]:
    """The candidates by falling score, equal ones as they were given, and so those that nothing is known of, at the
    end."""
    order = sorted(range(len(candidates)), key=lambda place: -scores[place])
    items: list[RankedItem] = []
    for rank, place in enumerate(order, start=1):
        known = scores[place] > -math.inf
        score = scores[place] if known else None
        items.append({"item_id": candidates[place], "score": score, "rank": rank, "known": known})
    return items


def _is_generated(answer: Answer) -> bool:
    """Whether the generator had its say. It is silent about exactness only where it failed or ran out of time; where
    nothing that has a code may be shown, it knows so."""
    return answer.exact is not None or not len(answer)


def _is_retrieved(answer: Answer) -> bool:
    """Whether the encoder had its say: for a query embedding that is not finite there is nothing but popular items."""
    return RETRIEVED in answer.sources or not len(answer)


def _is_finite(scored: Scored) -> bool:
    return not np.isnan(scored.scores).any()


def _observe(timings: Timings) -> None:
    for stage, seconds in timings.seconds.items():
        metrics.STAGE_SECONDS.labels(stage).observe(seconds)
