"""From a validated body to what the core is asked: ids become rows, words codes, and histories are looked up."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np

from retrieval.filters import AttributeRule, Filter
from retrieval.inputs import Request
from retrieval.sequences import EMPTY, History, IntArray
from service import metrics
from service.errors import StoreUnavailable
from service.ladder import Call
from service.schemas import (
    DEFAULT_EVENT_TYPE,
    NO_FILTER,
    Context,
    FilterRequest,
    HistoryEvent,
    RankingRequest,
    RecommendationRequest,
    check_times,
)
from service.sessions import Columns, SessionStore
from service.settings import STORE_SHARE
from service.timing import Timings
from service.variants import Variant
from service.within import Within

STORE_AWAY = "store_unavailable"  # why an answer is degraded
_EVERYTHING = Filter()


class Questions:
    """Reads bodies.

    Args:
        store: histories by user.
        deadline_s: for requests that bring none.
        store_timeout_s: longest wait for the store; a request with a shorter deadline waits `STORE_SHARE` of that.
        clock: seconds from some fixed moment; deadlines and timings.
        now: seconds since 1970; what a model calls the time of a request.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        deadline_s: float,
        store_timeout_s: float,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._deadline_s = deadline_s
        self._store_timeout_s = store_timeout_s
        self._clock = clock
        self._now = now

    def call(
        self,
        asked: RecommendationRequest | RankingRequest,
        variant: Variant,
        *,
        arrived: float,
        is_counted: bool = True,
    ) -> Call:
        """The beginning of a request.

        Raises:
            InvalidRequest: a time too far ahead.
        """
        now = self._now()
        check_times(asked.history, now, field="history")
        budget_s = self._deadline_s if asked.deadline_ms is None else asked.deadline_ms / 1000
        timings = Timings(self._clock)
        return Call(
            variant.served,
            now,
            arrived + budget_s,
            budget_s,
            timings,
            variant=variant.name,
            is_counted=is_counted,
        )

    async def remembered(self, asked: RecommendationRequest | RankingRequest, call: Call) -> History:
        """The stored history; empty where the store is away, and the store is not touched without consent."""
        if asked.user_id is None or not asked.consent:
            return EMPTY
        limit_s = self._store_timeout_s
        if asked.deadline_ms:
            limit_s = min(limit_s, STORE_SHARE * call.budget_s)
        try:
            with Within(limit_s):
                return stored_rows(await self._store.columns(asked.user_id), call)
        except TimeoutError:
            metrics.DEADLINE_EXCEEDED.labels("state").inc()
            late = StoreUnavailable("history", f"no answer within {limit_s:g} s")
            self._do_without(late, call)
        except StoreUnavailable as error:
            self._do_without(error, call)
        return EMPTY

    def _do_without(self, error: StoreUnavailable, call: Call) -> None:
        call.degrade(STORE_AWAY, error)
        metrics.STORE_ERRORS.labels(error.operation).inc()


def rows_of(events: Sequence[HistoryEvent | str], call: Call) -> History:
    """A history of a body in rows and codes, oldest first; events of unknown items are left out."""
    if not events:
        return EMPTY
    code = _event_codes(call.served.bundle.manifest.event_types).get
    if set(map(type, events)) == {str}:
        rows = call.served.catalog.rows(events)  # type: ignore[arg-type]
        return History.of_items(rows, code(DEFAULT_EVENT_TYPE, 0), call.now)
    past = [HistoryEvent(item_id=event) if isinstance(event, str) else event for event in events]
    return History.of_events(
        call.served.catalog.rows([event.item_id for event in past]),
        [code(event.event_type, 0) for event in past],
        [event.value for event in past],
        [call.now if event.timestamp is None else event.timestamp for event in past],
    )


def stored_rows(events: Columns, call: Call) -> History:
    """The same of a history from the store."""
    if not events.item_ids:
        return EMPTY
    rows = call.served.catalog.rows(events.item_ids)
    code = _event_codes(call.served.bundle.manifest.event_types).get
    first, n = events.event_types[0], len(rows)
    if events.event_types.count(first) == n and events.values.count(None) == n:
        return History.of_items(rows, code(first, 0), events.timestamps)
    types = [code(kind, 0) for kind in events.event_types]
    return History.of_events(rows, types, events.values, events.timestamps)


@lru_cache(maxsize=8)
def _event_codes(event_types: tuple[str, ...]) -> Mapping[str, int]:
    return {name: code for code, name in enumerate(event_types, start=1)}


def request_of(history: History, context: Context, call: Call) -> Request:
    """What the models read: the numbers and the words of the context."""
    numbers = {
        name: float(value)
        for name, value in context.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return Request(
        history, call.now, numbers, {name: value for name, value in context.items() if isinstance(value, str)}
    )


def filter_of(asked: FilterRequest) -> Filter:
    """The core's form of a filter; ids to leave out travel in the query, so equal filters stay equal."""
    if asked is NO_FILTER:
        return _EVERYTHING
    return Filter(
        include_ids=tuple(asked.include_ids) or None,
        any_categories=tuple(asked.categories.any),
        no_categories=tuple(asked.categories.none),
        attributes=tuple(AttributeRule(rule.name, rule.op, rule.value) for rule in asked.attributes),
        new_only=asked.new_only,
    )


def joined(parts: Sequence[IntArray]) -> IntArray:
    """int64, shape (n,): all rows of the parts."""
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else EMPTY.rows
