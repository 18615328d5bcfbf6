"""One thread that writes what the event loop hands over.

Offering costs the event loop a tuple and an append: records are encoded here, a few at a time, so that the interpreter
is never held for long. The thread looks every `linger_s`, or at once where half the room is taken or a user is erased;
that much may be lost with the process. Where writing fails it is tried again every `retry_s` until it works; meanwhile
the buffer fills, and what finds no room is dropped and counted. An outage is said twice in the log, at its beginning
and at its end.
"""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from service import metrics
from service.journal.records import (
    EVENT_BYTES,
    ServedList,
    UserEvent,
    erased_line,
    event_bytes,
    event_line,
    merged_line,
    served_bytes,
    served_line,
)

_log = logging.getLogger(__name__)

MAX_RECORDS = 50_000
MAX_BYTES = 32 << 20  # as lines, about; the objects that wait take some three times as much
TOGETHER = 32  # records encoded and written at once: well under a millisecond of the interpreter
LINGER_S = 0.1
RETRY_S = 1.0
CLOSE_S = 5.0  # for what waits at the end
ENCODERS: Mapping[str, Callable[..., bytes]] = {
    "event": event_line,
    "served": served_line,
    "erased": erased_line,
    "merged": merged_line,
}
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
    """Records that were offered together: what `ENCODERS[kind]` takes, beside the time."""

    kind: str
    time: float
    records: Sequence[tuple[Any, ...]]
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
        for start in range(0, len(events), TOGETHER):
            part = events[start : start + TOGETHER]
            self._offer(_Waiting("event", self._time(), part, sum([event_bytes(event) for _, event in part])))

    def served(self, served: ServedList) -> None:
        self._offer(_Waiting("served", self._time(), ((served,),), served_bytes(served)))

    def erased(self, user_id: str) -> Awaitable[bool]:
        written = asyncio.get_running_loop().create_future()
        self._append(_Waiting("erased", self._time(), ((user_id,),), EVENT_BYTES, written))
        self._wake.set()
        written.get_loop().call_later(self._limits.erased_s, _settle, written, False)
        return written

    def merged(self, source: str, target: str) -> None:
        self._append(_Waiting("merged", self._time(), ((source, target),), EVENT_BYTES))

    def _time(self) -> float:
        self._latest = max(self._latest, self._now())
        return self._latest

    def _offer(self, waiting: _Waiting) -> None:
        limits = self._limits
        records = self._offered[0] - self._done[0] + len(waiting.records)
        size = self._offered[1] - self._done[1] + waiting.bytes
        if self._closing.is_set() or records > limits.records or size > limits.bytes:
            metrics.JOURNAL_DROPPED.labels("closed" if self._closing.is_set() else "full").inc(len(waiting.records))
            self._dropped += len(waiting.records)
            return
        self._append(waiting)
        if 2 * records > limits.records or 2 * size > limits.bytes:
            self._wake.set()

    def _append(self, waiting: _Waiting) -> None:
        self._offered[0] += len(waiting.records)
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
        taken = [self._waiting.popleft()]
        count = len(taken[0].records)
        while self._waiting and (count := count + len(self._waiting[0].records)) <= TOGETHER:
            taken.append(self._waiting.popleft())
        return taken

    def _write(self, taken: Sequence[_Waiting]) -> None:
        """Writes records, however long it takes; gives up only at the end of the process."""
        encoded = [_encoded(waiting) for waiting in taken]
        lines = [line for own in encoded for line in own]
        must_last = any(waiting.written for waiting in taken)

        def write() -> None:
            if lines:
                self._sink.write(lines)
            if must_last:
                self._sink.sync()

        is_written = not self._has_given_up and self._try(write)
        while not is_written and not self._has_given_up:
            self._show()
            is_last = self._closing.wait(self._limits.retry_s)
            is_written = self._try(write)
            self._has_given_up = is_last and not is_written
        for waiting, own in zip(taken, encoded, strict=True):
            self._done[0] += len(waiting.records)
            self._done[1] += waiting.bytes
            if is_written:
                metrics.JOURNAL_RECORDS.labels(waiting.kind).inc(len(own))
            else:
                metrics.JOURNAL_DROPPED.labels("closed").inc(len(own))
            if waiting.written is not None:
                with contextlib.suppress(RuntimeError):  # its event loop is closed: nobody waits any more
                    waiting.written.get_loop().call_soon_threadsafe(_settle, waiting.written, is_written)

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


def _encoded(waiting: _Waiting) -> list[bytes]:
    """The lines of records; one that cannot be said in JSON is counted and left out."""
    lines = []
    for record in waiting.records:
        try:
            lines.append(ENCODERS[waiting.kind](waiting.time, *record))
        except Exception as error:  # whatever a record holds, the thread lives on
            metrics.JOURNAL_DROPPED.labels("invalid").inc()
            _log.error("a record of kind %s is no JSON: %s", waiting.kind, type(error).__name__)
    return lines
