"""Calls that wait while another is under way, and then travel together.

What a store charges for is the trip (a commit, a round trip), not the call. One trip is under way at a time; whoever
arrives meanwhile shares the next one. So a quiet store answers at once, and a busy one gets cheaper per call.

It also makes cancellation harmless by construction: callers never touch the connection, only a future of their own.
Bounded in number and in time, every caller gets an answer, and whoever has gone is not served.

A store that hangs must not cost everybody the whole time-out. A trip that has been under way for too long refuses
whoever comes meanwhile, at once; when it has failed, the next caller's trip is the probe, and only when a trip has
come back in time is everybody welcome again. So one caller in a time-out waits, and recovery is noticed with the first
reply.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import Generic, TypeVar

from service.errors import StoreUnavailable

C = TypeVar("C")
A = TypeVar("A")

MAX_WAITING = 4096  # calls; far above what fits into a second, so only a store that hangs fills it
MAX_TOGETHER = 64  # calls per trip: the price of the trip is spread thin by then, and nobody waits long for the rest


class StoreFailure(Exception):
    """Why a trip, or one call of it, did not work; becomes `StoreUnavailable` for each caller concerned."""


@dataclass(slots=True)
class _Waiter(Generic[C, A]):
    call: C
    operation: str
    future: asyncio.Future[A]
    give_up_at: float


class Coalescer(Generic[C, A]):
    """Gathers calls and hands them to `run`, one list at a time.

    `run` returns one answer per call, in order; an answer that is an exception is raised for that caller alone, and
    an exception that `run` raises for every caller of that list.

    Args:
        run: makes a trip.
        timeout_s: longest time that a caller waits.
        max_waiting: calls that may wait for the next trips.
        max_together: calls that share one trip.
        stall_s: how long a trip may take before others are refused; longer than any healthy one.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        run: Callable[[Sequence[C]], Awaitable[Sequence[A | Exception]]],
        *,
        timeout_s: float,
        max_waiting: int = MAX_WAITING,
        max_together: int = MAX_TOGETHER,
        stall_s: float = inf,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._run = run
        self._timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._max_together = max_together
        self._stall_s = stall_s
        self._clock = clock
        self._under_way: list[_Waiter[C, A]] = []
        self._began_at = inf  # when the trip under way began
        self._has_stalled = False  # the last trip did, and none has come back in time since
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[_Waiter[C, A]] = deque()
        self._worker: asyncio.Task[None] | None = None
        self.is_closed = False

    async def call(self, call: C, *, operation: str) -> A:
        """The answer to one call, which shares its trip with whatever else is waiting.

        Raises:
            StoreUnavailable: the trip failed, took longer than `timeout_s`, or too many wait already.
        """
        if self.is_closed:
            raise StoreUnavailable(operation, "the session store is closed")
        if len(self._waiting) >= self._max_waiting:
            raise StoreUnavailable(
                operation, f"{self._max_waiting} calls are waiting already; it is slower than what it is asked to do"
            )
        now = self._clock()
        if now - self._began_at > self._stall_s or (self._has_stalled and self._worker is not None):
            raise StoreUnavailable(
                operation, f"no answer for more than {self._stall_s:g} s; it is asked again and again"
            )
        loop = asyncio.get_running_loop()
        future: asyncio.Future[A] = loop.create_future()
        self._waiting.append(_Waiter(call, operation, future, now + self._timeout_s))
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        if self._timer is None:  # one for all: a timer for each call was a third of the price of the call
            self._timer = loop.call_later(self._timeout_s, self._expire)
        return await future

    async def close(self) -> None:
        """Serve whoever waits, within `timeout_s`; refuse everyone after."""
        self.is_closed = True
        if self._worker is not None:
            worker = self._worker
            await asyncio.wait([worker], timeout=self._timeout_s)
            worker.cancel()
            await asyncio.wait([worker])
        if self._timer is not None:
            self._timer.cancel()

    async def _work(self) -> None:
        try:
            while together := self._next():
                self._under_way, self._began_at = together, self._clock()
                answers: Sequence[A | Exception]
                try:
                    answers = await self._run([waiter.call for waiter in together])
                except Exception as error:
                    answers = [error] * len(together)
                self._has_stalled = self._clock() - self._began_at > self._stall_s
                for waiter, answer in zip(together, answers, strict=True):
                    _settle(waiter, answer)
        finally:
            self._worker, self._began_at = None, inf
            for waiter in (*self._under_way, *self._waiting):  # nobody, unless this task was cancelled or is broken
                _settle(waiter, StoreFailure("it was closed before it answered"))
            self._under_way = []
            self._waiting.clear()

    def _expire(self) -> None:
        """Send away who has waited for too long, and come back for the next; they stand in the order they came."""
        now = self._clock()
        late = StoreFailure(f"no answer within {self._timeout_s:g} s")
        for waiter in self._under_way:
            if waiter.give_up_at <= now:
                _settle(waiter, late)
        while self._waiting and (self._waiting[0].give_up_at <= now or self._waiting[0].future.done()):
            _settle(self._waiting.popleft(), late)
        left = [waiter.give_up_at for waiter in self._under_way if not waiter.future.done()]
        left += [waiter.give_up_at for waiter in (*self._waiting,)[:1]]
        self._timer = None
        if left:
            self._timer = asyncio.get_running_loop().call_later(max(0.001, min(left) - now), self._expire)

    def _next(self) -> list[_Waiter[C, A]]:
        together: list[_Waiter[C, A]] = []
        while self._waiting and len(together) < self._max_together:
            waiter = self._waiting.popleft()
            if not waiter.future.done():  # done already: the caller was cancelled or has given up
                together.append(waiter)
        return together


def _settle(waiter: _Waiter[C, A], answer: A | Exception) -> None:
    if waiter.future.done():
        return
    if isinstance(answer, StoreFailure):
        waiter.future.set_exception(StoreUnavailable(waiter.operation, str(answer)))
    elif isinstance(answer, Exception):
        waiter.future.set_exception(answer)
    else:
        waiter.future.set_result(answer)
