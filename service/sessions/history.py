"""The rules by which events enter a history: ordered, de-duplicated, capped.

The memory and the SQLite store call this; the Redis store says the same in Lua, where it must be atomic, and the
contract suite compares the three on random input.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from service.sessions import Outcome


class Dated(Protocol):
    """What the rules need to know of an event."""

    @property
    def timestamp(self) -> float: ...

    @property
    def event_id(self) -> str | None: ...


E = TypeVar("E", bound=Dated)
_timestamp = attrgetter("timestamp")


@dataclass(frozen=True, slots=True)
class Merged(Generic[E]):
    """A history after new events: their outcomes, what is kept (oldest first), what had to leave."""

    outcomes: tuple[Outcome, ...]
    history: list[E]
    trimmed: list[E]


def merge(history: Sequence[E], events: Sequence[E], *, cap: int, was_trimmed: Callable[[str], bool]) -> Merged[E]:
    """The history after `events` arrived one by one.

    Args:
        history: what is kept so far, oldest first.
        events: what arrives, in order of arrival.
        cap: how many are kept.
        was_trimmed: whether an event id belongs to an event that has left and is still remembered.
    """
    kept = list(history)
    trimmed = kept[:-cap]  # more than cap only when the cap was lowered since
    del kept[:-cap]
    seen = {event.event_id for event in history}
    outcomes: list[Outcome] = []
    for event in events:
        if event.event_id is not None and (event.event_id in seen or was_trimmed(event.event_id)):
            outcomes.append("duplicate")
            continue
        place = bisect_right(kept, event.timestamp, key=_timestamp)
        if place == 0 and len(kept) == cap:
            outcomes.append("too_old")
            continue
        kept.insert(place, event)
        seen.add(event.event_id)
        if len(kept) > cap:
            trimmed.append(kept.pop(0))
        outcomes.append("accepted")
    return Merged(tuple(outcomes), kept, trimmed)


def newcomers(history: Sequence[E], events: Sequence[E], *, words: Callable[[E], Hashable]) -> list[E]:
    """Those of `events` that a history does not hold word for word; what it holds twice matches two.

    Args:
        words: what an event says, all of it.
    """
    held = Counter(map(words, history))
    new = []
    for event in events:
        said = words(event)
        if held[said]:
            held[said] -= 1
        else:
            new.append(event)
    return new
