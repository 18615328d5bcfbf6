"""The story of one recommendation, from a validated body to an answer.

Read `Pipeline.recommend` from top to bottom. The `except` clauses of this file are the degradation policy: whatever
can be answered by something simpler is, and says so; only overload, a filter that cannot mean anything and a deadline
with nothing to show are errors.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence

import numpy as np

from retrieval.errors import EmptyHistory
from retrieval.filters import AttributeRule, Eligible, Filter
from retrieval.inputs import Request
from retrieval.recommenders import Answer, Query, Served
from retrieval.sequences import EMPTY, History, IntArray
from service import metrics
from service.batching import MicroBatcher
from service.errors import DeadlineExceeded, InvalidRequest, Overloaded, StoreUnavailable, code_of
from service.permits import Permits
from service.schemas import (
    DEFAULT_EVENT_TYPE,
    FilterRequest,
    HistoryEvent,
    RecommendationAnswer,
    RecommendationRequest,
    RecommendedItem,
    ServedModel,
    SimilarAnswer,
    check_times,
)
from service.sessions import SessionStore, StoredEvent
from service.settings import RESERVE_SHARE, STORE_SHARE
from service.timing import Timings

_log = logging.getLogger(__name__)

VARIANT = "default"
Past = HistoryEvent | StoredEvent  # an event of a history, from the body or from the store


class Pipeline:
    """Answers recommendations from one bundle.

    Args:
        served: the bundle, loaded.
        store: histories by user.
        batcher: carries queries through `served.recommender`.
        permits: shared with everything else that works on requests.
        deadline_s: for requests that bring none.
        store_timeout_s: longest wait for the store; a request with a shorter deadline waits `STORE_SHARE` of that.
        clock: seconds from some fixed moment; deadlines and timings.
        now: seconds since 1970; what a model calls the time of a request.
    """

    def __init__(
        self,
        served: Served,
        *,
        store: SessionStore,
        batcher: MicroBatcher,
        permits: Permits,
        deadline_s: float,
        store_timeout_s: float,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self.served = served
        self._store = store
        self._batcher = batcher
        self._permits = permits
        self._deadline_s = deadline_s
        self._store_timeout_s = store_timeout_s
        self._clock = clock
        self._now = now
        manifest = served.bundle.manifest
        self._event_codes = {name: code for code, name in enumerate(manifest.event_types, start=1)}
        self._exclude_seen = manifest.exclude_seen
        self.model: ServedModel = {"name": manifest.model, "bundle": served.bundle.name, "variant": VARIANT}

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
            budget = self._deadline_s if asked.deadline_ms is None else asked.deadline_ms / 1000
            deadline = arrived + budget
            timings = Timings(self._clock)
            degraded: list[str] = []
            now = self._now()
            self._check_model(asked.model)
            check_times(asked.history, now, field="history")

            with timings("filter"):
                eligible = self.served.filters.eligible(_filter(asked.filter))

            with timings("state"):
                try:
                    remembered = await self._remembered(asked, budget)
                except StoreUnavailable as error:
                    self._degrade("store_unavailable", degraded, error)
                    metrics.STORE_ERRORS.labels(error.operation).inc()
                    remembered = []
                query = self._query(asked, remembered, eligible, now)

            try:
                answer = await self._from_model(query, deadline - RESERVE_SHARE * budget, timings)
            except EmptyHistory:
                self._degrade("no_history", degraded)
                answer = None
            except DeadlineExceeded as error:
                metrics.DEADLINE_EXCEEDED.labels(error.stage).inc()
                self._degrade("deadline", degraded)
                answer = None
            except Overloaded:
                raise
            except Exception as error:
                _log.exception("the recommender failed; answering from the popular items")
                self._degrade("encoder_failed", degraded, error)
                answer = None

            if answer is None:
                if self._clock() >= deadline:
                    metrics.DEADLINE_EXCEEDED.labels("respond").inc()
                    raise DeadlineExceeded("respond")
                answer = self.served.popular.recommend([query], timings)[0]
            elif "retrieval" not in answer.sources and len(answer):
                # The composition found nothing for a query embedding that was not finite and filled up.
                self._degrade("encoder_failed", degraded)

            with timings("respond"):
                items = self._items(answer)
            self._observe(query, answer, timings)
            return {
                "recommendation_id": secrets.token_urlsafe(16),
                "items": items,
                "next": None,
                "model": self.model,
                "degraded": bool(degraded),
                "degraded_reasons": degraded,
                "timings_ms": timings.milliseconds(),
            }

    async def similar(self, item_id: str, k: int) -> SimilarAnswer:
        """Items like one item.

        Raises:
            Overloaded: no permit.
            UnknownItem: the catalog does not hold it.
        """
        with self._permits.hold():
            timings = Timings(self._clock)
            row = self.served.catalog.row(item_id)
            eligible = self.served.filters.eligible(Filter())
            with timings("retrieve"):
                answer = await asyncio.to_thread(self.served.similar.similar, row, k, eligible, EMPTY.rows)
            with timings("respond"):
                items = self._items(answer)
            return {"item_id": item_id, "items": items, "model": self.model, "timings_ms": timings.milliseconds()}

    async def _remembered(self, asked: RecommendationRequest, budget: float) -> Sequence[StoredEvent]:
        """The stored history; the store is not touched without consent.

        Raises:
            StoreUnavailable: it is away, or not back in its share of the time.
        """
        if asked.user_id is None or not asked.consent:
            return []
        limit = min(self._store_timeout_s, STORE_SHARE * budget) if asked.deadline_ms else self._store_timeout_s
        try:
            async with asyncio.timeout(limit):
                return await self._store.history(asked.user_id)
        except TimeoutError:
            metrics.DEADLINE_EXCEEDED.labels("state").inc()
            raise StoreUnavailable("history", f"no answer within {limit:g} s") from None

    def _query(
        self, asked: RecommendationRequest, remembered: Sequence[StoredEvent], eligible: Eligible, now: float
    ) -> Query:
        """Ids become rows: what the model reads, and what it must not answer."""
        stored = self._history(remembered, now)
        given = self._history([_event(entry, now) for entry in asked.history], now) if asked.history else None
        hidden = [self.served.catalog.rows(asked.filter.exclude_ids)] if asked.filter.exclude_ids else []
        if self._exclude_seen if asked.exclude_seen is None else asked.exclude_seen:
            hidden += [stored.rows, given.rows] if given is not None else [stored.rows]
        numbers = {
            name: float(value)
            for name, value in asked.context.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        request = Request(given if given is not None else stored, now, numbers)
        return Query(request, asked.k, eligible, _joined(hidden))

    def _history(self, events: Sequence[Past], now: float) -> History:
        if not events:
            return EMPTY
        code = self._event_codes.get
        return History.of_events(
            self.served.catalog.rows([event.item_id for event in events]),
            [code(event.event_type, 0) for event in events],
            [event.value for event in events],
            [now if event.timestamp is None else event.timestamp for event in events],
        )

    async def _from_model(self, query: Query, deadline: float, timings: Timings) -> Answer:
        """The recommender's answer, in a batch with others.

        Raises:
            EmptyHistory: there is nothing to encode.
            Everything that `MicroBatcher.submit` raises.
        """
        if not len(query.request.history):
            raise EmptyHistory("no item of the history is known to the catalog")
        batched = await self._batcher.submit(query, deadline=deadline)
        timings.add("queue", batched.queue_s)
        for stage, seconds in batched.stages_s.items():
            timings.add(stage, seconds)
        return batched.answer

    def _items(self, answer: Answer) -> list[RecommendedItem]:
        """Rows become ids again."""
        ids, attributes = self.served.catalog.ids, self.served.catalog.attributes
        found = zip(answer.rows.tolist(), answer.scores.tolist(), answer.sources, strict=True)
        items: list[RecommendedItem] = []
        for rank, (row, score, source) in enumerate(found, start=1):
            item: RecommendedItem = {"item_id": ids[row], "score": score, "rank": rank, "source": source}
            known = attributes(row)
            if known:
                item["attributes"] = known
            items.append(item)
        return items

    def _check_model(self, name: str | None) -> None:
        if name is not None and name not in (self.model["name"], VARIANT):
            message = f"{name!r} is not served here; leave it out or send {self.model['name']!r}"
            raise InvalidRequest([{"loc": "model", "msg": message}])

    def _degrade(self, reason: str, reasons: list[str], error: Exception | None = None) -> None:
        reasons.append(reason)
        metrics.DEGRADED.labels(reason).inc()
        if error is not None:
            metrics.ERRORS.labels(code_of(error)).inc()

    def _observe(self, query: Query, answer: Answer, timings: Timings) -> None:
        metrics.HISTORY_LENGTH.observe(len(query.request.history))
        metrics.CANDIDATES.observe(query.eligible.count)
        if len(answer) < query.k:
            metrics.SHORT_LISTS.inc()
        for stage, seconds in timings.seconds.items():
            metrics.STAGE_SECONDS.labels(stage).observe(seconds)


def _event(entry: str | HistoryEvent, now: float) -> Past:
    return StoredEvent(entry, DEFAULT_EVENT_TYPE, None, now) if isinstance(entry, str) else entry


def _filter(asked: FilterRequest) -> Filter:
    """The core's form of a filter; ids to leave out travel in the query, so equal filters stay equal."""
    return Filter(
        include_ids=tuple(asked.include_ids) or None,
        any_categories=tuple(asked.categories.any),
        no_categories=tuple(asked.categories.none),
        attributes=tuple(AttributeRule(rule.name, rule.op, rule.value) for rule in asked.attributes),
    )


def _joined(parts: Sequence[IntArray]) -> IntArray:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else EMPTY.rows
