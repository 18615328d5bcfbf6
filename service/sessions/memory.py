"""Histories in this process: for tests, for floors, for a first look. A restart forgets everything."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from service.errors import StoreUnavailable
from service.sessions import NO_EVENTS, AppendResult, Columns, FrozenList, ItemChange, ItemChanges, Outcome, StoredEvent
from service.sessions.history import merge, newcomers
from service.sessions.payload import check, check_text, check_user_id, encode, encode_attributes

_log = logging.getLogger(__name__)

MAX_USERS = 100_000  # an event takes 190 to 270 bytes: 5 GB at 200 events each
MAX_LISTS = 100_000  # frozen lists; some 2 kB each
MAX_SETS = 10_000  # named sets of members to count


@dataclass(slots=True)
class _User:
    history: list[StoredEvent] = field(default_factory=list)
    trimmed: dict[str, float] = field(default_factory=dict)  # event id -> when it may be forgotten
    expires_at: float = 0.0


@dataclass(slots=True)
class _List:
    kept: FrozenList
    at: int
    expires_at: float


class MemorySessionStore:
    """A dictionary of histories, bounded by dropping the users who were least recently there."""

    name = "memory"
    durable = False

    def __init__(
        self, *, cap: int, ttl_s: float, dedup_ttl_s: float, clock: Callable[[], float], max_users: int = MAX_USERS
    ) -> None:
        self._cap = cap
        self._ttl_s = ttl_s
        self._dedup_ttl_s = dedup_ttl_s
        self._clock = clock
        self._max_users = max_users
        self._users: OrderedDict[str, _User] = OrderedDict()  # least recently used first
        self._items: dict[str, ItemChange] = {}  # least recently changed first
        self._versions: dict[str, int] = {}
        self._version = 0
        self._lists: OrderedDict[str, _List] = OrderedDict()  # first kept first
        self._sets: OrderedDict[str, tuple[float, set[bytes]]] = OrderedDict()  # when it expires, what it holds
        self._announced: dict[str, bytes] = {}
        self._is_closed = False

    async def open(self) -> None:
        _log.warning(
            "NOT FOR PRODUCTION: histories are kept in this process only; a restart loses them, and other workers "
            "do not see them. Set SEQUITUR_STORE to sqlite:///path or redis://host:port/0."
        )

    async def close(self) -> None:
        self._is_closed = True
        self._users.clear()
        self._items.clear()
        self._lists.clear()
        self._sets.clear()

    async def append(self, user_id: str, events: Sequence[StoredEvent]) -> AppendResult:
        return (await self.append_many({user_id: events}))[user_id]

    async def append_many(
        self, batches: Mapping[str, Sequence[StoredEvent]], *, read_back: bool = True
    ) -> Mapping[str, AppendResult]:
        self._refuse_when_closed("append")
        for user_id, events in batches.items():
            check(user_id, events)
        # No await from here on: that is what makes it atomic.
        return {user_id: self._append(user_id, events, read_back) for user_id, events in batches.items()}

    async def history(self, user_id: str) -> list[StoredEvent]:
        self._refuse_when_closed("history")
        user = self._live(check_user_id(user_id))
        return list(user.history) if user else []

    async def columns(self, user_id: str) -> Columns:
        events = await self.history(user_id)
        return Columns(*zip(*[event[:4] for event in events], strict=True)) if events else NO_EVENTS

    async def erase(self, user_id: str) -> bool:
        self._refuse_when_closed("erase")
        was_there = self._live(check_user_id(user_id)) is not None
        self._users.pop(user_id, None)
        now = self._clock()
        for theirs in [entry for entry in self._lists.values() if entry.kept.user_id == user_id]:
            was_there |= theirs.expires_at > now
            del self._lists[theirs.kept.recommendation_id]
        return was_there

    async def merge(self, source: str, target: str) -> int:
        self._refuse_when_closed("merge")
        if check_user_id(source) == check_user_id(target):
            return 0
        for theirs in self._lists.values():
            if theirs.kept.user_id == source:
                theirs.kept = theirs.kept._replace(user_id=target)
        left = self._live(source)
        if left is None:
            return 0
        into = self._live(target) or _User()
        for event_id, until in left.trimmed.items():
            into.trimmed[event_id] = max(until, into.trimmed.get(event_id, 0.0))
        new = newcomers(
            into.history, left.history, words=lambda event: (event.timestamp, event.event_id, encode(event))
        )
        self._users.pop(source, None)
        return self._add(target, into, new).count("accepted")

    async def keep_list(self, kept: FrozenList, *, at: int, ttl_s: float) -> None:
        self._refuse_when_closed("keep_list")
        check_text(kept.recommendation_id, "recommendation_id")
        if kept.user_id is not None:
            check_user_id(kept.user_id)
        self._lists.pop(kept.recommendation_id, None)
        self._lists[kept.recommendation_id] = _List(kept, at, self._clock() + ttl_s)
        while len(self._lists) > MAX_LISTS:
            self._lists.popitem(last=False)

    async def advance_list(self, recommendation_id: str, by: int) -> tuple[bytes, int] | None:
        self._refuse_when_closed("advance_list")
        found = self._lists.get(check_text(recommendation_id, "recommendation_id"))
        if found is None:
            return None
        if found.expires_at <= self._clock():
            del self._lists[recommendation_id]
            return None
        found.at += by
        return found.kept.payload, found.at - by

    async def count_distinct(self, name: str, members: Sequence[bytes], *, ttl_s: float) -> int:
        self._refuse_when_closed("count_distinct")
        now = self._clock()
        expires_at, held = self._sets.get(check_text(name, "name"), (0.0, set[bytes]()))
        if expires_at <= now:
            self._sets.pop(name, None)
            expires_at, held = now + ttl_s, set()
        held.update(members)
        if held:
            self._sets[name] = expires_at, held
        while len(self._sets) > MAX_SETS:
            self._sets.popitem(last=False)
        return len(held)

    async def announce(self, name: str, value: bytes) -> None:
        self._refuse_when_closed("announce")
        self._announced[check_text(name, "name")] = value

    async def announced(self, name: str) -> bytes | None:
        self._refuse_when_closed("announced")
        return self._announced.get(check_text(name, "name"))

    async def change_item(self, change: ItemChange) -> int:
        self._refuse_when_closed("change_item")
        encode_attributes(change)
        before = self._items.pop(change.item_id, None)
        if change.attributes is None and before is not None:
            change = change._replace(attributes=before.attributes)
        self._items[change.item_id] = change
        self._version += 1
        self._versions[change.item_id] = self._version
        return self._version

    async def item_changes(self, since: int = 0) -> ItemChanges:
        self._refuse_when_closed("item_changes")
        changes = [change for change in self._items.values() if self._versions[change.item_id] > since]
        return ItemChanges(self._version, changes)

    async def ping(self) -> None:
        self._refuse_when_closed("ping")

    def _append(self, user_id: str, events: Sequence[StoredEvent], read_back: bool) -> AppendResult:
        user = self._live(user_id) or _User()
        outcomes = self._add(user_id, user, events)
        return AppendResult(outcomes, list(user.history) if read_back else [])

    def _add(self, user_id: str, user: _User, events: Sequence[StoredEvent]) -> tuple[Outcome, ...]:
        now = self._clock()
        user.trimmed = {event_id: until for event_id, until in user.trimmed.items() if until > now}
        merged = merge(user.history, events, cap=self._cap, was_trimmed=user.trimmed.__contains__)
        if "accepted" in merged.outcomes:
            user.history = merged.history
            user.trimmed |= {e.event_id: now + self._dedup_ttl_s for e in merged.trimmed if e.event_id is not None}
            user.expires_at = now + self._ttl_s
            self._users[user_id] = user
            while len(self._users) > self._max_users:
                self._users.popitem(last=False)
        return merged.outcomes

    def _live(self, user_id: str) -> _User | None:
        user = self._users.get(user_id)
        if user is None:
            return None
        if user.expires_at <= self._clock():
            del self._users[user_id]
            return None
        self._users.move_to_end(user_id)
        return user

    def _refuse_when_closed(self, operation: str) -> None:
        if self._is_closed:
            raise StoreUnavailable(operation, "the memory store is closed")
