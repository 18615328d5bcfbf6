"""One thread that writes what the event loop hands over.

Records become lines where they are offered, a few µs each, and the thread only moves bytes: one that encodes a few
dozen at a time holds the interpreter all the while, and every request that is at work stands still. The thread looks
every `linger_s`, or at once where half the room is taken or a user is erased; that much may be lost with the process.
Where writing fails it is tried again every `retry_s` until it works; meanwhile the buffer fills, and what finds no room
is dropped and counted. An outage is said twice in the log, at its beginning and at its end.
"""

import asyncio
import contextlib
import logging
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from service import metrics
from service.journal.records import ServedList, UserEvent, erased_line, event_line, merged_line, served_line

_log = logging.getLogger(__name__)

MAX_RECORDS = 50_000
MAX_BYTES = 32 << 20
TOGETHER = 256  # written at once: what a busy process gathers while the thread lingers
PART = 32  # events of one call that find room together or not at all
LINGER_S = 0.1
RETRY_S = 1.0
CLOSE_S = 5.0  # for what waits at the end
ERASED_S = 1.0  # how long whoever erases waits for the word to be written


class SinkFailure(Exception):
    """Why nothing could be written; the message says what helps."""


class Sink(Protocol):
    """Where lines go. Every call is made by the writer's thread, and may raise `SinkFailure`."""

    where: str

    def write(self, lines: list[bytes]) -> None:
        """Write whole lines, and take out of `lines` those that are written."""

    def sync(self) -> None:
        """Return when all that was written would survive a power cut."""

    def tend(self) -> None:
        """Do what is due, while nothing waits."""

    def close(self) -> None:
        """Leave everything whole."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait, and for how long."""

    records: int = MAX_RECORDS
    bytes: int = MAX_BYTES
    linger_s: float = LINGER_S
    retry_s: float = RETRY_S
    close_s: float = CLOSE_S
    erased_s: float = ERASED_S


class _Waiting(NamedTuple):
    """Lines that were offered together."""

    kind: str
    lines: Sequence[bytes]
    bytes: int
    written: asyncio.Future[bool] | None = None


class Writer:
    """A journal that writes to `sink`.

    Args:
        now: seconds since 1970.
    """

    def __init__(self, sink: Sink, *, now: Callable[[], float], limits: Limits | None = None) -> None:
        self._sink = sink
        self._now = now
        self._limits = limits or Limits()
        self._latest = 0.0
        self._waiting: deque[_Waiting] = deque()
        # Offered counts on the event loop, done on the thread: one writer each, so neither needs a lock.
        self._offered = [0, 0]  # records, bytes
        self._done = [0, 0]
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_away = self._has_given_up = False
        self._dropped = 0  # since the outage began

    async def open(self) -> None:
        self._closing.clear()
        self._has_given_up = False
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        self._closing.set()
        self._wake.set()
        if self._thread is None:
            return
        await asyncio.to_thread(self._thread.join, self._limits.close_s)
        if self._thread.is_alive():  # inside a call that does not come back
            left = self._offered[0] - self._done[0]
            metrics.JOURNAL_DROPPED.labels("closed").inc(left)
            _log.error("%s: %d records could not be written before the end", self._sink.where, left)
        self._thread = None

    def events(self, events: Sequence[UserEvent]) -> None:
        time = self._time()
        for start in range(0, len(events), PART):
            part = [_encoded("event", event_line, time, *event) for event in events[start : start + PART]]
            self._offer("event", [line for line in part if line])

    def served(self, served: ServedList) -> None:
        line = _encoded("served", served_line, self._time(), served)
        self._offer("served", [line] if line else [])

    def erased(self, user_id: str) -> Awaitable[bool]:
        written = asyncio.get_running_loop().create_future()
        line = erased_line(self._time(), user_id)
        self._append(_Waiting("erased", [line], len(line), written))
        self._wake.set()
        written.get_loop().call_later(self._limits.erased_s, _settle, written, False)
        return written

    def merged(self, source: str, target: str) -> None:
        line = merged_line(self._time(), source, target)
        self._append(_Waiting("merged", [line], len(line)))

    def _time(self) -> float:
        self._latest = max(self._latest, self._now())
        return self._latest

    def _offer(self, kind: str, lines: Sequence[bytes]) -> None:
        if not lines:
            return
        limits = self._limits
        own = sum(map(len, lines))
        records = self._offered[0] - self._done[0] + len(lines)
        size = self._offered[1] - self._done[1] + own
        if self._closing.is_set() or records > limits.records or size > limits.bytes:
            metrics.JOURNAL_DROPPED.labels("closed" if self._closing.is_set() else "full").inc(len(lines))
            self._dropped += len(lines)
            return
        self._append(_Waiting(kind, lines, own))
        if 2 * records > limits.records or 2 * size > limits.bytes:
            self._wake.set()

    def _append(self, waiting: _Waiting) -> None:
        self._offered[0] += len(waiting.lines)
        self._offered[1] += waiting.bytes
        self._waiting.append(waiting)

    # What follows runs on the thread.

    def _work(self) -> None:
        is_last = False
        while not is_last:
            self._wake.wait(self._limits.linger_s)
            self._wake.clear()
            is_last = self._closing.is_set()  # before the last look, so that nothing slips in behind it
            while self._waiting:
                self._write(self._taken())
            self._show()
            self._try(self._sink.tend)
        self._try(self._sink.close)

    def _taken(self) -> list[_Waiting]:
        return [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]

    def _write(self, taken: Sequence[_Waiting]) -> None:
        """Writes lines, however long it takes; gives up only at the end of the process."""
        lines = [line for waiting in taken for line in waiting.lines]
        told = [waiting.written for waiting in taken if waiting.written]

        def write() -> None:
            if lines:
                self._sink.write(lines)
            if told:
                self._sink.sync()

        is_written = not self._has_given_up and self._try(write)
        while not is_written and not self._has_given_up:
            self._show()
            is_last = self._closing.wait(self._limits.retry_s)
            is_written = self._try(write)
            self._has_given_up = is_last and not is_written
        counts: Counter[str] = Counter()
        for kind, own, size, _ in taken:
            counts[kind] += len(own)
            self._done[1] += size
        self._done[0] += counts.total()
        for kind, count in counts.items():
            if is_written:
                metrics.JOURNAL_RECORDS.labels(kind).inc(count)
            else:
                metrics.JOURNAL_DROPPED.labels("closed").inc(count)
        for written in told:
            with contextlib.suppress(RuntimeError):  # its event loop is closed: nobody waits any more
                written.get_loop().call_soon_threadsafe(_settle, written, is_written)

    def _show(self) -> None:
        metrics.JOURNAL_BUFFER.set(self._offered[0] - self._done[0])

    def _try(self, call: Callable[[], None]) -> bool:
        """Whether it worked; says when that changes."""
        try:
            call()
        except Exception as error:
            if not self._is_away:
                self._is_away, self._dropped = True, 0
                known = isinstance(error, SinkFailure)
                _log.error("%s cannot be written: %s", self._sink.where, error, exc_info=None if known else error)
            return False
        if self._is_away:
            self._is_away = False
            _log.warning("%s can be written again; %d records found no room", self._sink.where, self._dropped)
        return True


def settled(value: bool) -> asyncio.Future[bool]:
    """A future that has its result."""
    future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    future.set_result(value)
    return future


def _settle(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)


def _encoded(kind: str, encode: Callable[..., bytes], *record: Any) -> bytes:
    """The line of a record; one that cannot be said in JSON is counted and left out: nothing."""
    try:
        return encode(*record)
    except Exception as error:  # whatever a record holds, the request goes on
        metrics.JOURNAL_DROPPED.labels("invalid").inc()
        _log.error("a record of kind %s is no JSON: %s", kind, type(error).__name__)
        return b""
