"""The durable log: what users did and what they were served, kept for the next model to learn from.

It never holds up a request. Records go into a bounded buffer and a thread writes them (see `writer`): into files
(`segments`) or a Redis stream (`stream`). What finds no room is dropped and counted. `python -m models` reads the files
back as layout `log`; `python -m service.journal drain` brings a stream into files.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from service.errors import ConfigurationError
from service.journal.records import ServedList, UserEvent
from service.journal.writer import Sink, Writer, settled

__all__ = ["Journal", "NoJournal", "ServedList", "UserEvent", "open_journal"]

_KNOWN = "file://directory, redis-stream://host:port/db/name and rediss-stream://host:port/db/name"


class Journal(Protocol):
    """Where records go. None of the calls waits or raises, whatever became of the disk or the stream."""

    async def open(self) -> None:
        """Begin to write. What is written to may be away, and come back."""

    async def close(self) -> None:
        """Write what waits, within a bound; what could not be written is counted."""

    def events(self, events: Sequence[UserEvent]) -> None:
        """Events that a user's history accepted."""

    def served(self, served: ServedList) -> None:
        """A list that went out."""

    def erased(self, user_id: str) -> Awaitable[bool]:
        """Nothing that came of this user before this moment may be learnt from.

        It is never dropped for want of room, and tried for as long as the process lives. To be awaited by whoever
        wants to know: true when it is on the disk or in the stream, false when that takes too long.
        """

    def merged(self, source: str, target: str) -> None:
        """What came of `source` until now is `target`'s; it goes when `target` is erased."""


class NoJournal:
    """Keeps nothing."""

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def events(self, events: Sequence[UserEvent]) -> None: ...

    def served(self, served: ServedList) -> None: ...

    def erased(self, user_id: str) -> Awaitable[bool]:  # noqa: ARG002
        return settled(True)

    def merged(self, source: str, target: str) -> None: ...


def open_journal(url: str, *, now: Callable[[], float] = time.time) -> Journal:
    """The journal that a URL names; call its `open` before use and its `close` after.

    Args:
        url: `file://relative/directory`, `file:///absolute/directory`, `redis-stream://host:port/db/name`, or nothing.
        now: seconds since 1970.

    Raises:
        ConfigurationError: an unknown scheme, or a URL without its parts.
    """
    if not url:
        return NoJournal()
    scheme, _, rest = url.partition("://")
    sink: Sink
    if scheme == "file":
        from service.journal.segments import Segments

        if not rest.strip("/"):
            raise ConfigurationError(
                f"SEQUITUR_LOG={url!r} names no directory; write file://log or file:///var/log/shop"
            )
        sink = Segments(Path(unquote(rest)), now=now)
    elif scheme in ("redis-stream", "rediss-stream"):
        from service.journal.stream import Stream

        sink = Stream(url)
    else:
        # The rest of the URL is not repeated: it may hold a password.
        raise ConfigurationError(f"SEQUITUR_LOG: {scheme!r} is not the scheme of a log; there are {_KNOWN}")
    return Writer(sink, now=now)
