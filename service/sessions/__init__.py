"""Where users' histories live between two requests, and what callers said of items.

One protocol, three stores: `memory` for tests and floors, `sqlite` embedded and durable, `redis` shared by replicas, on
one server or a cluster.
They differ in where the bytes are and in nothing else; `tests/contracts/test_sessions.py` holds all three to it.

The rules of a history, the same everywhere:

- Events are ordered by their timestamp; events of equal time keep the order in which they arrived.
- At most `cap` events are kept. The oldest go first, and an event older than all of a full history is `too_old`.
- An `event_id` already seen for that user is a `duplicate`: as long as its event is kept, and for at least
  `dedup_ttl_s` after it arrived.
- A user without an accepted event for `ttl_s` is forgotten.
- One user merged into another: the events are appended in their order, and an event that both histories hold word for
  word, without an id, counts as the same one. So merging again adds nothing.

A frozen list is a payload and a position, under the id of its recommendation. It belongs to its user: it is erased with
them, and goes over to whoever they are merged into.

The rules of items, the same everywhere: of each item the latest word is kept, for good, under a version number that
grows with every change; attributes that are left out of a change stay as they were said before.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from service.errors import ConfigurationError

HISTORY_CAP = 1000  # events per user; the longest history the API takes and gives
HISTORY_TTL_S = 90 * 86_400.0
DEDUP_TTL_S = 86_400.0  # a client that retries an event does so within the day
STORE_TIMEOUT_S = 1.0  # an upper bound; a caller with less time cancels, which is always safe

Outcome = Literal["accepted", "duplicate", "too_old"]


class StoredEvent(NamedTuple):
    """One interaction as it is kept: `timestamp` in seconds since 1970, `context` anything that JSON can hold.

    A tuple, because a history may be a thousand of these on every request, and a frozen dataclass takes three times
    as long to make (0.8 against 0.25 ms per thousand).
    """

    item_id: str
    event_type: str
    value: float | None
    timestamp: float
    event_id: str | None = None
    recommendation_id: str | None = None
    context: Mapping[str, Any] | None = None


class Columns(NamedTuple):
    """What models read of a history, oldest event first, each field of all events together.

    A request needs neither event ids nor contexts, and no object for each event: by column a history of 50 events is
    read in a third of the time.
    """

    item_ids: Sequence[str]
    event_types: Sequence[str]
    values: Sequence[float | None]
    timestamps: Sequence[float]


NO_EVENTS = Columns((), (), (), ())


@dataclass(frozen=True, slots=True)
class AppendResult:
    """What became of each event, in the order given, and the history after them, oldest first."""

    outcomes: tuple[Outcome, ...]
    history: list[StoredEvent]


class FrozenList(NamedTuple):
    """What was recommended, kept for the next pages: bytes of the caller's, which should not name the user."""

    recommendation_id: str
    user_id: str | None
    payload: bytes


class ItemChange(NamedTuple):
    """What a caller said of an item: whether it may be shown, and its attributes. None: those said before, if any."""

    item_id: str
    available: bool
    attributes: Mapping[str, Any] | None = None


class ItemChanges(NamedTuple):
    """The latest change of each item that changed, oldest first, and the store's version with the last of them."""

    version: int
    changes: list[ItemChange]


class SessionStore(Protocol):
    """Histories by user id, frozen lists, changes of items, and what workers and replicas tell each other.

    Every call may raise `StoreUnavailable`, within the store's `timeout_s`. Cancelling a call is always safe: it
    disturbs no other call, and an append not yet under way is not made.
    """

    name: str
    durable: bool

    async def open(self) -> None:
        """Acquire what the store needs. A store over a network does not connect yet: it may be away and come back."""

    async def close(self) -> None:
        """Finish what is under way and release everything; later calls raise `StoreUnavailable`."""

    async def append(self, user_id: str, events: Sequence[StoredEvent]) -> AppendResult:
        """Add events to one history and read it back, as one atomic step.

        Raises:
            InvalidRequest: an event that cannot be stored (a time that is not finite, a context that is not JSON);
                nothing of the call is stored then.
        """

    async def append_many(
        self, batches: Mapping[str, Sequence[StoredEvent]], *, read_back: bool = True
    ) -> Mapping[str, AppendResult]:
        """`append` for several users in one trip.

        Each user's append is atomic. With `read_back` false the histories come back empty: whoever only wants the
        outcomes of a bulk load should not pay for reading hundreds of histories.
        """

    async def history(self, user_id: str) -> list[StoredEvent]:
        """The events of a user, oldest first, at most `cap`; empty for an unknown user."""

    async def columns(self, user_id: str) -> Columns:
        """The same events as `history` gives, by column."""

    async def erase(self, user_id: str) -> bool:
        """Forget a user: events, de-duplication, frozen lists. True when there was something to forget.

        Where the parts of a user lie on several servers this takes several steps; after an error, repeat it.
        """

    async def merge(self, source: str, target: str) -> int:
        """Move what is known of one user to another and erase the first; how many events came to be kept by that.

        Where the two lie on different servers this takes several steps, in none of which an event is lost; after an
        error, repeat it.
        """

    async def keep_list(self, kept: FrozenList, *, at: int, ttl_s: float) -> None:
        """Keep a list of which `at` items were shown already; it is forgotten after `ttl_s`."""

    async def advance_list(self, recommendation_id: str, by: int) -> tuple[bytes, int] | None:
        """The payload of a list, and the position before it is moved on by `by`, as one atomic step.

        With `by` 0 it only reads. None for a list that is unknown, expired or erased.
        """

    async def count_distinct(self, name: str, members: Sequence[bytes], *, ttl_s: float) -> int:
        """How many distinct members a named set holds after these are added; Redis may be wrong by a percent or two.

        The set is forgotten `ttl_s` after its first member came.
        """

    async def announce(self, name: str, value: bytes) -> None:
        """Keep a word for every worker and replica, for good; the latest one counts."""

    async def announced(self, name: str) -> bytes | None:
        """What was announced last under a name."""

    async def change_item(self, change: ItemChange) -> int:
        """Keep a change; the version that came of it, which is above every other.

        Raises:
            InvalidRequest: attributes that are not JSON.
        """

    async def item_changes(self, since: int = 0) -> ItemChanges:
        """What changed after version `since`; cheap where nothing did."""

    async def ping(self) -> None:
        """Return when the store can serve; raise `StoreUnavailable` with the reason when it cannot."""


def open_store(
    url: str,
    *,
    cap: int = HISTORY_CAP,
    ttl_s: float = HISTORY_TTL_S,
    dedup_ttl_s: float = DEDUP_TTL_S,
    timeout_s: float = STORE_TIMEOUT_S,
    clock: Callable[[], float] = time,
) -> SessionStore:
    """The store that a URL names; call its `open` before use and its `close` after.

    Args:
        url: `memory://`, `sqlite:///relative.db`, `sqlite:////absolute.db`, `redis://...`, `redis+cluster://...`,
            or, over TLS, `rediss://...?ssl_ca_certs=path` and `rediss+cluster://...`.
        cap: events kept per user, at least 1.
        ttl_s: seconds without an accepted event after which a user is forgotten.
        dedup_ttl_s: seconds for which an `event_id` is remembered at least; not more than `ttl_s`.
        timeout_s: longest time that any call waits.
        clock: wall-clock seconds since 1970. Redis keeps its own time, so that replicas agree.

    Raises:
        ConfigurationError: an unknown scheme, a URL without its parts, or limits that contradict each other.
    """
    if cap < 1:
        raise ConfigurationError(f"a history of {cap} events cannot be kept; the cap must be at least 1")
    if not 0 < dedup_ttl_s <= ttl_s:
        raise ConfigurationError(
            f"event ids cannot be remembered for {dedup_ttl_s:g} s in histories kept for {ttl_s:g} s; "
            "the first must be above 0 and no longer than the second"
        )
    if timeout_s <= 0:
        raise ConfigurationError(f"a store timeout of {timeout_s:g} s leaves no time for an answer; it must be above 0")
    scheme = url.partition("://")[0].lower()
    # Each store is imported when it is asked for: the Redis client alone takes longer to import than the service.
    if scheme == "memory":
        from service.sessions.memory import MemorySessionStore

        return MemorySessionStore(cap=cap, ttl_s=ttl_s, dedup_ttl_s=dedup_ttl_s, clock=clock)
    if scheme == "sqlite":
        from service.sessions.sqlite import SqliteSessionStore

        return SqliteSessionStore(
            sqlite_path(url), cap=cap, ttl_s=ttl_s, dedup_ttl_s=dedup_ttl_s, timeout_s=timeout_s, clock=clock
        )
    if scheme in ("redis", "rediss", "redis+cluster", "rediss+cluster"):
        from service.sessions.redis import RedisSessionStore

        return RedisSessionStore(url, cap=cap, ttl_s=ttl_s, dedup_ttl_s=dedup_ttl_s, timeout_s=timeout_s)
    known = "memory://, sqlite:///path, redis://host:port/db and redis+cluster://host:port,host:port"
    # The rest of the URL is not repeated: it may hold a password.
    raise ConfigurationError(f"{scheme!r} is not the scheme of a session store; there are {known}")


def sqlite_path(url: str) -> str:
    """The file that a `sqlite:` URL names: three slashes for a relative path, four for an absolute one."""
    parts = urlsplit(url)
    path = unquote(parts.path[1:])
    if parts.netloc:
        raise ConfigurationError(f"{url!r} has a host where none belongs; write sqlite:///{parts.netloc}{parts.path}")
    if parts.query or parts.fragment:
        raise ConfigurationError(
            f"{url!r} has options, and a sqlite URL takes none; write a '?' in the path as %3F, a '#' as %23"
        )
    if not path or path.endswith("/") or path == ":memory:":
        raise ConfigurationError(f"{url!r} names no file; write sqlite:///relative.db, or memory:// to keep nothing")
    return path
