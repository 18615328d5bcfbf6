"""A limit in time for a piece of a coroutine, at half of what `asyncio.timeout` costs: every request has several."""

import asyncio
from types import TracebackType


class Within:
    """`with Within(0.04): await ...` raises TimeoutError where the block takes longer; it is cancelled then.

    Whoever cancels the task meanwhile is not mistaken for the limit, and is not swallowed either.
    """

    __slots__ = ("_cancelling", "_is_over", "_limit_s", "_task", "_timer")

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # a coroutine runs in one
        self._task, self._cancelling, self._is_over = task, task.cancelling(), False
        self._timer = loop.call_later(max(0.0, self._limit_s), self._end)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None, /
    ) -> None:
        self._timer.cancel()
        if self._is_over and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _end(self) -> None:
        self._is_over = True
        self._task.cancel()
