"""Work aside: what has to be done while requests are served, and must not be felt by them.

It runs in one thread of low priority. Whatever it computes in native code gives way to everybody else; for what it does
in Python the interpreter is handed over several times a millisecond as long as it lasts, instead of every five.
"""

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from service.batching import Batched, Run
from service.errors import DeadlineExceeded
from service.timing import Timings

R = TypeVar("R")
# Of 0 to 19. At 19 a thread that holds the interpreter may be left without a core for tens of milliseconds while
# another process is busy, and whoever waits for the interpreter waits with it; at 10 it still gets a tenth.
NICE = 10
HANDED_OVER_EVERY_S = 0.0005


class Aside:
    """A thread of low priority; it stands in for the pools where nobody waits for the answer.

    Args:
        clock: seconds from some fixed moment.
        check: raises where the work of a pool should not be begun.
    """

    def __init__(self, clock: Callable[[], float], *, check: Callable[[], None] = lambda: None) -> None:
        self._clock = clock
        self._check = check
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="aside", initializer=_step_back)

    async def run(self, work: Callable[..., R], *arguments: Any) -> R:
        """The result of a function. It is not stopped once begun, whatever becomes of the caller."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, _handing_over, work, *arguments)

    async def submit(self, question: Any, run: Run[Any, Any], *, deadline: float) -> Batched[Any]:
        """The answer to one question, see `MicroBatcher.submit`."""
        self._check()
        asked, timings = self._clock(), Timings(self._clock)
        if asked >= deadline:
            raise DeadlineExceeded("queue")
        (answer,) = await self.run(run, [question], timings)
        return Batched(answer, 0.0, timings.seconds, 1)

    def close(self) -> None:
        """Lets the thread go when it is done with what it does."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _step_back() -> None:
    # Linux keeps a priority for each thread. Where it cannot be lowered the work is done all the same.
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def _handing_over(work: Callable[..., R], *arguments: Any) -> R:
    with _often():
        return work(*arguments)


_lock = threading.Lock()
_inside = 0
_before = 0.0


@contextlib.contextmanager
def _often() -> Iterator[None]:
    """The interpreter is handed over often, for as long as anybody is inside."""
    global _inside, _before
    with _lock:
        if not _inside:
            _before = sys.getswitchinterval()
            sys.setswitchinterval(HANDED_OVER_EVERY_S)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                sys.setswitchinterval(_before)
