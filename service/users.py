"""What is remembered of users: events come in, a history goes out, and all of it can be erased.

None of this can be degraded. An event that is not stored has to be refused, or it is lost without anybody knowing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

from retrieval.sequences import PAD_ROW
from service import metrics
from service.answers import EventResult, EventsAnswer, HistoryAnswer, HistoryItem, MergeAnswer
from service.attribution import variant_of
from service.errors import StoreUnavailable
from service.journal import Journal, UserEvent
from service.permits import Permits
from service.schemas import Event, check_times
from service.sessions import SessionStore, StoredEvent
from service.variants import Variants


class Users:
    """Events, histories and erasure.

    Args:
        store: histories by user.
        variants: what is served: which items are known, and whose recommendations may be named.
        permits: shared with the pipeline.
        journal: keeps what was accepted, and what was erased.
        now: seconds since 1970.
        settled: returns when what was on its way to the store from here, when it was called, has arrived.
        settle_s: how long it may be on its way from another process.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        variants: Variants,
        permits: Permits,
        journal: Journal,
        now: Callable[[], float],
        settled: Callable[[], Awaitable[None]],
        settle_s: float,
    ) -> None:
        self._store = store
        self._variants = variants
        self._permits = permits
        self._journal = journal
        self._now = now
        self._settled = settled
        self._settle_s = settle_s

    async def record(self, events: Sequence[Event]) -> EventsAnswer:
        """Stores events: all of them, or none and an error.

        Raises:
            Overloaded: no permit.
            InvalidRequest: a time too far ahead.
            StoreUnavailable: nothing is sure to be stored; send them again, `event_id` de-duplicates.
        """
        with self._permits.hold(is_checked=True):
            now = self._now()
            check_times(events, now, field="events")
            places: dict[str, list[int]] = {}
            for place, event in enumerate(events):
                places.setdefault(event.user_id, []).append(place)
            batches = {user_id: [_stored(events[i], now) for i in own] for user_id, own in places.items()}
            with self._permits.lent(is_bounded=True), counting():
                appended = await self._store.append_many(batches, read_back=False)
            known = self._variants.default.served.catalog.rows([event.item_id for event in events]) != PAD_ROW
            results: list[EventResult | None] = [None] * len(events)
            accepted: list[UserEvent] = []
            for user_id, own in places.items():
                for place, stored, outcome in zip(own, batches[user_id], appended[user_id].outcomes, strict=True):
                    if outcome == "accepted":
                        accepted.append((user_id, stored))
                    event = events[place]
                    result: EventResult = {"outcome": outcome, "known": bool(known[place])}
                    if event.event_id is not None:
                        result["event_id"] = event.event_id
                    if outcome == "accepted" and event.recommendation_id is not None:
                        named = variant_of(event.recommendation_id, self._variants)
                        metrics.ATTRIBUTED_CLICKS.labels(named or metrics.UNKNOWN).inc()
                    metrics.EVENT[outcome].inc()
                    results[place] = result
            self._journal.events(accepted)
            done = [result for result in results if result is not None]
            return {"accepted": sum(result["outcome"] == "accepted" for result in done), "results": done}

    async def history(self, user_id: str) -> HistoryAnswer:
        """What is remembered of a user.

        Raises:
            Overloaded: no permit.
            StoreUnavailable: the store is away.
        """
        with self._permits.hold(), self._permits.lent(is_bounded=True), counting():
            events = await self._store.history(user_id)
            return {"user_id": user_id, "events": [_shown(event) for event in events]}

    async def erase(self, user_id: str) -> None:
        """Forgets a user; one who is not known is forgotten already.

        Raises:
            Overloaded: no permit.
            StoreUnavailable: the store or the log is away, and not all is sure to be erased.
        """
        with self._permits.hold(), self._permits.lent(is_bounded=True), counting():
            await self._settled()
            await self._store.erase(user_id)
            if self._store.durable:  # a list that another process has just given out may still be on its way
                await asyncio.sleep(self._settle_s)
                await self._store.erase(user_id)
            if not await self._journal.erased(user_id):
                raise StoreUnavailable("erase", "the durable log could not be told; erase again, twice does no harm")

    async def merge(self, source: str, target: str) -> MergeAnswer:
        """Moves what is known of one user to another; what is there already stays once, and the first is erased.

        Raises:
            Overloaded: no permit.
            StoreUnavailable: the store is away; merge again, twice does no harm.
        """
        with self._permits.hold(), self._permits.lent(is_bounded=True), counting():
            await self._settled()
            moved = await self._store.merge(source, target)
            if self._store.durable:  # as for `erase`
                await asyncio.sleep(self._settle_s)
                moved += await self._store.merge(source, target)
            self._journal.merged(source, target)
            return {"user_id": target, "moved": moved}


@contextmanager
def counting() -> Iterator[None]:
    """Counts what the store fails to do, by operation."""
    try:
        yield
    except StoreUnavailable as error:
        metrics.STORE_ERRORS.labels(error.operation).inc()
        raise


def _stored(event: Event, now: float) -> StoredEvent:
    return StoredEvent(
        item_id=event.item_id,
        event_type=event.event_type,
        value=event.value,
        timestamp=now if event.timestamp is None else event.timestamp,
        event_id=event.event_id,
        recommendation_id=event.recommendation_id,
        context=event.context,
    )


def _shown(event: StoredEvent) -> HistoryItem:
    item: HistoryItem = {
        "item_id": event.item_id,
        "event_type": event.event_type,
        "value": event.value,
        "timestamp": event.timestamp,
    }
    if event.event_id is not None:
        item["event_id"] = event.event_id
    if event.recommendation_id is not None:
        item["recommendation_id"] = event.recommendation_id
    if event.context is not None:
        item["context"] = event.context
    return item
