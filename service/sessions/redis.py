"""Histories in Redis: shared by all replicas of the service.

Per user there is a list of events, oldest first, and a sorted set of the event ids that have left it. Both carry the
user id as their hash tag and so live in one cluster slot. An append is one script and so one atomic round trip; calls
that wait together share a pipeline. Changes of items are one hash, ordered by a sorted set of their versions; they
are small, rare, and never expire.

A call never owns the connection, it only waits for its reply (see `coalescing`): a caller that is cancelled or runs
out of time leaves no reply behind for the next one. Nothing is retried here, because an append whose reply was lost
may have happened; a caller who retries sends an `event_id`.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha1
from typing import Any

import orjson
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from service.errors import ConfigurationError, StoreUnavailable
from service.sessions import AppendResult, ItemChange, ItemChanges, Outcome, StoredEvent
from service.sessions.coalescing import Coalescer, StoreFailure
from service.sessions.payload import check_user_id, decode, decode_item, encode, encode_attributes

Command = tuple[str | bytes | int, ...]

LAYOUT = b"1"  # first line of every entry

# The rules are those of `history.merge`; here they must run inside Redis. KEYS: the list, the set of trimmed ids.
# ARGV: cap, milliseconds to keep a history, milliseconds to keep an id, whether to read back, then the new entries.
# An entry is four lines: layout, timestamp, event id (as JSON, or nothing), payload.
APPEND = rb"""
local cap, ttl, dedup = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local entries = redis.call('LRANGE', KEYS[1], 0, -1)
local stored, head = #entries, 1
local late, trimmed, accepted, outcomes, added, stored_lines = false, false, false, {}, {}, nil

local function read(entry)
  local timestamp, id = string.match(entry, '^1\n([^\n]*)\n([^\n]*)\n')
  if not timestamp then
    error({err = 'LAYOUT of a stored event is not 1, the only one that this version of the service understands'})
  end
  return tonumber(timestamp), id
end

local function trim()
  local _, id = read(entries[head])
  if id ~= '' then
    redis.call('ZADD', KEYS[2], now, id)
    trimmed = true
  end
  head = head + 1
end

-- An id line starts with a quote, no other line does, and JSON has no raw line breaks: so a plain search of all stored
-- entries finds ids and nothing else, in half the time of taking entries apart (0.7, not 1.2 ms, at 1,000 events).
local function is_known(id)
  if not stored_lines then
    stored_lines = table.concat(entries, '\n')
    redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - dedup)
  end
  return added[id] or string.find(stored_lines, '\n' .. id .. '\n', 1, true) or redis.call('ZSCORE', KEYS[2], id)
end

local function push(first)
  for i = first, #entries, 1000 do -- Lua passes some 8,000 arguments at most
    redis.call('RPUSH', KEYS[1], unpack(entries, i, math.min(i + 999, #entries)))
  end
end

while #entries - head + 1 > cap do trim() end
for i = 5, #ARGV do
  local timestamp, id = read(ARGV[i])
  if id ~= '' and is_known(id) then
    outcomes[#outcomes + 1] = 'd'
  else
    local low, high = head, #entries + 1
    while low < high do
      local middle = math.floor((low + high) / 2)
      if timestamp < read(entries[middle]) then high = middle else low = middle + 1 end
    end
    if low == head and #entries - head + 1 == cap then
      outcomes[#outcomes + 1] = 'o'
    else
      if low <= stored then late = true end
      table.insert(entries, low, ARGV[i])
      added[id] = true
      if #entries - head + 1 > cap then trim() end
      outcomes[#outcomes + 1] = 'a'
      accepted = true
    end
  end
end

if late then
  redis.call('DEL', KEYS[1])
  push(head)
else
  push(math.max(head, stored + 1))
  if head > 1 then redis.call('LTRIM', KEYS[1], math.min(head - 1, stored), -1) end
end
if accepted then redis.call('PEXPIRE', KEYS[1], ttl) end
if trimmed then redis.call('PEXPIRE', KEYS[2], dedup) end

local kept = {}
if ARGV[4] == '1' then
  for i = head, #entries do kept[#kept + 1] = entries[i] end
end
return {table.concat(outcomes), kept}
"""
# KEYS: the last version, item id -> `1` or `0` and its attributes, item ids by version.
ITEM_KEYS = ("{sequitur:}:version", "{sequitur:}:items", "{sequitur:}:versions")
CHANGE_ITEM = """
local attributes = ARGV[3]
if attributes == '' then attributes = string.sub(redis.call('HGET', KEYS[2], ARGV[1]) or '', 2) end
local version = redis.call('INCR', KEYS[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. attributes)
redis.call('ZADD', KEYS[3], version, ARGV[1])
return version
"""
ITEM_CHANGES = """
local changed = redis.call('ZRANGEBYSCORE', KEYS[3], '(' .. ARGV[1], '+inf')
local out = {tonumber(redis.call('GET', KEYS[1]) or 0)}
for _, id in ipairs(changed) do
  out[#out + 1] = id
  out[#out + 1] = redis.call('HGET', KEYS[2], id)
end
return out
"""
APPEND_SHA = sha1(APPEND, usedforsecurity=False).hexdigest()
_OUTCOMES: Mapping[int, Outcome] = {ord("a"): "accepted", ord("d"): "duplicate", ord("o"): "too_old"}

# What occurs in the class name or the text of an error from Redis, and what helps.
_REMEDIES = {
    "OutOfMemoryError": "it is full; raise its maxmemory or set an eviction policy",
    "ReadOnlyError": "it is a read-only replica; point SEQUITUR_STORE to the primary",
    "BusyLoadingError": "it is still loading its data; wait",
    "MISCONF": "it cannot write its own disk and refuses changes; free space there",
    "AuthenticationError": "it wants another password; write redis://user:password@host:port/db",
    "NoPermissionError": "its user may not run this; allow @read, @write, @scripting and PING on {sequitur:*",
    "LAYOUT": "a newer version of the service has written here; upgrade this one, or use another database",
    "WRONGTYPE": "a key under {sequitur: belongs to something else; use another database number",
    "MovedError": "it is a cluster, which is not yet supported; use a single primary",
}


class RedisSessionStore:
    """A store in the Redis that `url` names. Redis may be away: calls fail at once, and work again when it is back."""

    name = "redis"
    durable = True

    def __init__(self, url: str, *, cap: int, ttl_s: float, dedup_ttl_s: float, timeout_s: float) -> None:
        self._limits: Command = (cap, round(ttl_s * 1000), round(dedup_ttl_s * 1000))
        self._cap = cap
        try:
            self._pool = ConnectionPool.from_url(
                url,
                max_connections=2,  # one is used at a time
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        except ValueError as error:
            raise ConfigurationError(f"{error}; a Redis URL reads redis://user:password@host:port/db") from error
        options = self._pool.connection_kwargs
        self._where = f"Redis at {options.get('host', 'localhost')}:{options.get('port', 6379)}"
        self._redis = Redis(connection_pool=self._pool)
        self._calls: Coalescer[Sequence[Command], list[Any]] = Coalescer(self._together, timeout_s=timeout_s)

    async def open(self) -> None:
        """Nothing: the first call connects, so that the service starts while Redis is away."""

    async def close(self) -> None:
        await self._calls.close()
        await self._redis.aclose()
        await self._pool.disconnect()

    async def append(self, user_id: str, events: Sequence[StoredEvent]) -> AppendResult:
        return (await self.append_many({user_id: events}))[user_id]

    async def append_many(
        self, batches: Mapping[str, Sequence[StoredEvent]], *, read_back: bool = True
    ) -> Mapping[str, AppendResult]:
        commands: list[Command] = [
            ("EVALSHA", APPEND_SHA, 2, *keys(user_id), *self._limits, int(read_back), *map(_entry, events))
            for user_id, events in batches.items()
        ]
        replies = await self._calls.call(commands, operation="append")
        return {
            user_id: AppendResult(tuple(_OUTCOMES[letter] for letter in outcomes), _events("append", entries))
            for user_id, (outcomes, entries) in zip(batches, replies, strict=True)
        }

    async def history(self, user_id: str) -> list[StoredEvent]:
        (entries,) = await self._calls.call([("LRANGE", keys(user_id)[0], -self._cap, -1)], operation="history")
        return _events("history", entries)

    async def erase(self, user_id: str) -> bool:
        (removed,) = await self._calls.call([("UNLINK", *keys(user_id))], operation="erase")
        return bool(removed)

    async def change_item(self, change: ItemChange) -> int:
        attributes = encode_attributes(change) or b""
        command: Command = ("EVAL", CHANGE_ITEM, 3, *ITEM_KEYS, change.item_id, int(change.available), attributes)
        (version,) = await self._calls.call([command], operation="change_item")
        return int(version)

    async def item_changes(self, since: int = 0) -> ItemChanges:
        command: Command = ("EVAL", ITEM_CHANGES, 3, *ITEM_KEYS, since)
        ((version, *found),) = await self._calls.call([command], operation="item_changes")
        pairs = zip(found[::2], found[1::2], strict=True)
        return ItemChanges(
            int(version), [decode_item(item_id.decode(), kept[:1] == b"1", kept[1:]) for item_id, kept in pairs]
        )

    async def ping(self) -> None:
        await self._calls.call([("PING",)], operation="ping")

    async def _together(self, calls: Sequence[Sequence[Command]]) -> list[list[Any] | Exception]:
        commands = [command for call in calls for command in call]
        try:
            replies = await self._pipeline(commands)
            unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if unknown:  # a new, restarted or flushed Redis; these commands have not run
                _, *again = await self._pipeline([("SCRIPT LOAD", APPEND), *(commands[i] for i in unknown)])
                for i, reply in zip(unknown, again, strict=True):
                    replies[i] = reply
        except (RedisError, OSError) as error:
            raise self._failure(error) from error
        answers: list[list[Any] | Exception] = []
        remaining = iter(replies)
        for call in calls:
            answer = [next(remaining) for _ in call]
            failed = next((reply for reply in answer if isinstance(reply, Exception)), None)
            answers.append(self._failure(failed) if failed else answer)
        return answers

    async def _pipeline(self, commands: Sequence[Command]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error=False)

    def _failure(self, error: Exception) -> StoreFailure:
        said = f"{type(error).__name__}: {error}"
        otherwise = "it refused" if isinstance(error, ResponseError) else "it does not answer; is it running there?"
        remedy = next((text for word, text in _REMEDIES.items() if word in said), otherwise)
        return StoreFailure(f"{self._where}: {remedy} ({said})")


def keys(user_id: str) -> tuple[str, str]:
    """The two keys of a user: the list of events, and the ids of events that have left it.

    Braces inside an id would move the end of the hash tag, and with it one key away from the other.
    """
    tag = check_user_id(user_id).replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
    return f"{{sequitur:{tag}}}:events", f"{{sequitur:{tag}}}:trimmed"


def _entry(event: StoredEvent) -> bytes:
    payload = encode(event)  # first, because it checks the event id as well
    event_id = b"" if event.event_id is None else orjson.dumps(event.event_id)
    return b"\n".join((LAYOUT, repr(float(event.timestamp)).encode(), event_id, payload))


def _events(operation: str, entries: Sequence[bytes]) -> list[StoredEvent]:
    events = []
    for entry in entries:
        if not entry.startswith(LAYOUT + b"\n"):
            raise StoreUnavailable(operation, f"an event of layout {entry[:8]!r}: {_REMEDIES['LAYOUT']}")
        _, timestamp, event_id, payload = entry.split(b"\n", 3)
        events.append(decode(float(timestamp), orjson.loads(event_id) if event_id else None, payload))
    return events
