"""Calls that wait while another is under way, and then travel together.

What a store charges for is the trip (a commit, a round trip), not the call. One trip is under way at a time; whoever
arrives meanwhile shares the next one. So a quiet store answers at once, and a busy one gets cheaper per call.

It also makes cancellation harmless by construction: callers never touch the connection, only a future of their own.
Bounded in number and in time, every caller gets an answer, and whoever has gone is not served.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
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


class Coalescer(Generic[C, A]):
    """Gathers calls and hands them to `run`, one list at a time.

    `run` returns one answer per call, in order; an answer that is an exception is raised for that caller alone, and
    an exception that `run` raises for every caller of that list.
    """

    def __init__(
        self,
        run: Callable[[Sequence[C]], Awaitable[Sequence[A | Exception]]],
        *,
        timeout_s: float,
        max_waiting: int = MAX_WAITING,
        max_together: int = MAX_TOGETHER,
    ) -> None:
        self._run = run
        self._timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._max_together = max_together
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
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiter(call, operation, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        try:
            async with asyncio.timeout(self._timeout_s):
                return await future
        except TimeoutError:
            raise StoreUnavailable(operation, f"no answer within {self._timeout_s:g} s") from None

    async def close(self) -> None:
        """Serve whoever waits, within `timeout_s`; refuse everyone after."""
        self.is_closed = True
        if self._worker is not None:
            worker = self._worker
            await asyncio.wait([worker], timeout=self._timeout_s)
            worker.cancel()
            await asyncio.wait([worker])

    async def _work(self) -> None:
        together: list[_Waiter[C, A]] = []
        try:
            while together := self._next():
                answers: Sequence[A | Exception]
                try:
                    answers = await self._run([waiter.call for waiter in together])
                except Exception as error:
                    answers = [error] * len(together)
                for waiter, answer in zip(together, answers, strict=True):
                    _settle(waiter, answer)
        finally:
            self._worker = None
            for waiter in (*together, *self._waiting):  # nobody, unless this task was cancelled or is broken
                _settle(waiter, StoreFailure("it was closed before it answered"))
            self._waiting.clear()

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
