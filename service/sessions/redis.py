"""Histories in Redis: shared by all replicas of the service.

Per user there is a list of events, oldest first, a sorted set of the event ids that have left it, and one of the ids
of their frozen lists. All carry the user id as their hash tag and so live in one cluster slot. An append is one script
and so one atomic round trip; calls that wait together share a pipeline. A frozen list is a hash under its own id: for
whoever only knows that. Changes of items are one hash, ordered by a sorted set of their versions; they are small,
rare, and never expire, and neither do announcements.

`MEMORY USAGE` of a user with 200 events, numbers as item ids: 8.3 kB, with short event ids 9.4 kB, with UUIDs 15.6 kB,
and 6 kB more where each event has a value and a recommendation id. A frozen list of 2 kB takes 2.3 kB and 40 bytes at
its user, a count of distinct members up to 14 kB.

A call never owns the connection, it only waits for its reply (see `coalescing`): a caller that is cancelled or runs
out of time leaves no reply behind for the next one. Nothing is retried here, because an append whose reply was lost
may have happened; a caller who retries sends an `event_id`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from service.errors import ConfigurationError, StoreUnavailable
from service.sessions import (
    NO_EVENTS,
    AppendResult,
    Columns,
    FrozenList,
    ItemChange,
    ItemChanges,
    Outcome,
    StoredEvent,
    scripts,
)
from service.sessions.address import addresses
from service.sessions.cluster import Cluster
from service.sessions.link import Command, Refusal
from service.sessions.node import REMEDIES, Node, failure
from service.sessions.payload import check_text, columns, decode, decode_item, encode, encode_attributes
from service.sessions.scripts import Script

LAYOUT = b"1"  # first line of every entry
ITEM_KEYS = ("{sequitur:}:version", "{sequitur:}:items", "{sequitur:}:versions")
ANNOUNCED = "{sequitur:}:announced"  # a hash
ROUNDS = 8  # of erasing or merging a user who is written to all the while; one is the rule
_OUTCOMES: Mapping[int, Outcome] = {ord("a"): "accepted", ord("d"): "duplicate", ord("o"): "too_old"}


class RedisSessionStore:
    """A store in the Redis or the Redis Cluster that `url` names, which may be away and come back."""

    name = "redis"
    durable = True

    def __init__(self, url: str, *, cap: int, ttl_s: float, dedup_ttl_s: float, timeout_s: float) -> None:
        self._limits: Command = (cap, round(ttl_s * 1000), round(dedup_ttl_s * 1000))
        self._cap = cap
        places = addresses(url)
        self._server: Node | Cluster
        if "+cluster:" in url:
            if places[0].db:
                raise ConfigurationError(f"a cluster has no database {places[0].db}, only 0; leave the path out")
            self._server = Cluster(places, timeout_s=timeout_s)
        elif len(places) == 1:
            self._server = Node(places[0], timeout_s=timeout_s)
        else:
            raise ConfigurationError("several servers are a cluster; write redis+cluster://host:port,host:port")

    async def open(self) -> None:
        """Nothing: the first call connects, so that the service starts while Redis is away."""

    async def close(self) -> None:
        await self._server.close()

    async def append(self, user_id: str, events: Sequence[StoredEvent]) -> AppendResult:
        return (await self.append_many({user_id: events}))[user_id]

    async def append_many(
        self, batches: Mapping[str, Sequence[StoredEvent]], *, read_back: bool = True
    ) -> Mapping[str, AppendResult]:
        commands: list[Command] = [
            _run(scripts.APPEND, keys(user_id)[:2], *self._limits, "h" if read_back else "", *map(_entry, events))
            for user_id, events in batches.items()
        ]
        replies = await self._call("append", *commands)
        return {
            user_id: AppendResult(tuple(_OUTCOMES[letter] for letter in outcomes), _events("append", entries))
            for user_id, (outcomes, entries) in zip(batches, replies, strict=True)
        }

    async def history(self, user_id: str) -> list[StoredEvent]:
        (entries,) = await self._call("history", ("LRANGE", keys(user_id)[0], -self._cap, -1))
        return _events("history", entries)

    async def columns(self, user_id: str) -> Columns:
        (entries,) = await self._call("history", ("LRANGE", keys(user_id)[0], -self._cap, -1))
        if not entries:
            return NO_EVENTS
        _, timestamps, _, payloads = _lines("history", entries)
        return columns(_numbers(timestamps), payloads)

    async def erase(self, user_id: str) -> bool:
        was_there, gone = False, list[bytes]()
        for _ in range(ROUNDS):
            # The ids of lists leave last: whoever repeats an erasure that broke off finds them again.
            command = _run(scripts.FORGET, keys(user_id), *gone)
            ((removed, gone),) = await self._call("erase", command)
            was_there |= bool(removed)
            if not gone:
                break
            unlinked = await self._call("erase", *(("UNLINK", _list_key(each.decode())) for each in gone))
            was_there |= any(unlinked)
        return was_there

    async def merge(self, source: str, target: str) -> int:
        theirs, own = keys(source), keys(target)
        if theirs == own:
            return 0
        moved, is_done, known, events = 0, False, b"", list[bytes]()
        for _ in range(ROUNDS):
            command = _run(scripts.DEPART, theirs, known, len(events))
            ((removed, known, events, trimmed, lists),) = await self._call("merge", command)
            is_done |= bool(removed)
            if not (events or trimmed or lists):
                return moved
            arrivals = [
                _run(scripts.ADOPT, own[1:], self._limits[2], len(trimmed) // 2, *trimmed, *lists),
                _run(scripts.APPEND, own[:2], *self._limits, "m", *events),
            ]
            _, (outcomes, _) = await self._call("merge", *arrivals)
            moved += outcomes.count(b"a")
        if not is_done:
            raise StoreUnavailable("merge", "events of the user arrive faster than they can be moved; repeat it")
        return moved  # what is left came during the merge, and may as well have come after it

    async def keep_list(self, kept: FrozenList, *, at: int, ttl_s: float) -> None:
        place = _list_key(kept.recommendation_id)
        words = (kept.recommendation_id, kept.payload, at, round(ttl_s * 1000))
        if kept.user_id is None:
            command = _run(scripts.KEEP, (place,), *words)
        else:
            owned = keys(kept.user_id)[2]
            if self._server.is_cluster:
                # Two slots. Named before and after, so that neither an erasure in between nor an end leaves it astray.
                await self._call("keep_list", _run(scripts.OWN, (owned,), *words))
                await self._call("keep_list", _run(scripts.KEEP, (place,), *words))
                command = _run(scripts.OWN, (owned,), *words)
            else:
                command = _run(scripts.OWN_AND_KEEP, (place, owned), *words)
        await self._call("keep_list", command)

    async def advance_list(self, recommendation_id: str, by: int) -> tuple[bytes, int] | None:
        place = _list_key(recommendation_id)
        command = _run(scripts.ADVANCE, (place,), by) if by else ("HMGET", place, "payload", "at")
        ((payload, at),) = await self._call("advance_list", command)
        return None if payload is None else (payload, int(at))

    async def count_distinct(self, name: str, members: Sequence[bytes], *, ttl_s: float) -> int:
        command = _run(scripts.COUNT_DISTINCT, (f"{_tag(name, 'name')}:distinct",), round(ttl_s * 1000), *members)
        (count,) = await self._call("count_distinct", command)
        return int(count)

    async def announce(self, name: str, value: bytes) -> None:
        await self._call("announce", ("HSET", ANNOUNCED, check_text(name, "name"), value))

    async def announced(self, name: str) -> bytes | None:
        (value,) = await self._call("announced", ("HGET", ANNOUNCED, check_text(name, "name")))
        return None if value is None else bytes(value)

    async def change_item(self, change: ItemChange) -> int:
        attributes = encode_attributes(change) or b""
        command = _run(scripts.CHANGE_ITEM, ITEM_KEYS, change.item_id, int(change.available), attributes)
        (version,) = await self._call("change_item", command)
        return int(version)

    async def item_changes(self, since: int = 0) -> ItemChanges:
        command = _run(scripts.ITEM_CHANGES, ITEM_KEYS, since)
        ((version, *found),) = await self._call("item_changes", command)
        pairs = zip(found[::2], found[1::2], strict=True)
        return ItemChanges(
            int(version), [decode_item(item_id.decode(), kept[:1] == b"1", kept[1:]) for item_id, kept in pairs]
        )

    async def ping(self) -> None:
        await self._server.ping()

    async def _call(self, operation: str, *commands: Command) -> list[Any]:
        if not commands:
            return []
        replies = await self._server.call(commands, operation=operation)
        for reply in replies:
            if isinstance(reply, Refusal):
                raise StoreUnavailable(operation, str(failure(self._server.address, reply)))
        return replies


def keys(user_id: str) -> tuple[str, str, str]:
    """The keys of a user: the list of events, the ids of events that have left it, the ids of frozen lists."""
    tag = _tag(user_id, "user_id")
    return f"{tag}:events", f"{tag}:trimmed", f"{tag}:lists"


def _list_key(recommendation_id: str) -> str:
    return f"{_tag(recommendation_id, 'recommendation_id')}:list"


def _tag(name: str, field: str) -> str:
    """How keys begin that belong to a name; what is in braces decides the cluster slot.

    Braces inside a name would move the end of the tag, and with it one key of a user away from the others.
    """
    return f"{{sequitur:{check_text(name, field).replace('%', '%25').replace('{', '%7B').replace('}', '%7D')}}}"


def _run(script: Script, keys: Sequence[str], *words: str | bytes | int) -> Command:
    return ("EVALSHA", script.digest, len(keys), *keys, *words)


def _entry(event: StoredEvent) -> bytes:
    payload = encode(event)  # first, because it checks the event id as well
    event_id = b"" if event.event_id is None else orjson.dumps(event.event_id)
    return b"\n".join((LAYOUT, repr(float(event.timestamp)).encode(), event_id, payload))


def _events(operation: str, entries: Sequence[bytes]) -> list[StoredEvent]:
    _, timestamps, event_ids, payloads = _lines(operation, entries)
    known = orjson.loads(b"[" + b",".join([each or b"null" for each in event_ids]) + b"]")
    return decode(_numbers(timestamps), known, payloads)


def _numbers(words: Sequence[bytes]) -> list[float]:
    """As `_entry` wrote them, which is JSON; the parser of JSON takes a sixth of what `float` does."""
    numbers: list[float] = orjson.loads(b"[" + b",".join(words) + b"]")
    return numbers


def _lines(operation: str, entries: Sequence[bytes]) -> tuple[list[bytes], list[bytes], list[bytes], list[bytes]]:
    """The four lines of each entry: all layouts, times, event ids and payloads."""
    # No line holds a line break, so a history is cut into lines in one go.
    lines = b"\n".join(entries).split(b"\n") if entries else []
    layouts = lines[::4]
    if len(lines) != 4 * len(entries) or layouts.count(LAYOUT) != len(entries):
        other = next((entry for entry in entries if not entry.startswith(LAYOUT + b"\n")), entries[0])
        raise StoreUnavailable(operation, f"an event of layout {other[:8]!r}: {REMEDIES['LAYOUT']}")
    return layouts, lines[1::4], lines[2::4], lines[3::4]
