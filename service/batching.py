"""The micro-batcher: many callers, one worker thread, one run of the model for all who are waiting.

It owes three things. It is **bounded**: a full queue refuses. It **always resolves**: every waiter gets a result, an
error or its own cancellation, also when the worker fails and at shutdown. It **skips the abandoned**: who was cancelled
or is out of time is dropped while the batch is built, before anything is computed.

One task owns the queue; the others only append to it, all on the event loop, so there are no locks. A batch leaves when
the worker is free: under load batches grow by themselves, and an idle service adds no waiting.

What a batch will take is known from recent ones (`pace`). So the queue is bounded by time and not only by count, a
batch is filled by what it costs, and whoever cannot be answered in time any more is told at once, while there is time
for something simpler.

The work of a generator grows with every request in its batch. Where that is so, batches are paced: the freshest go
first, as many as are done in time together. First come, first served would make a crowd late one and all: each would
be begun when most of its time is over.

Where nobody else is at work there is nobody to travel with, and the loop's way to the owner and back would only take
time: such a question is answered where it is asked.

Each caller says what is to be run: the recommender of the edition that its request holds, or a ranking. Those who want
the same travel together.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from retrieval.recommenders import Stage
from service import metrics
from service.errors import DeadlineExceeded, NotReady, Overloaded
from service.pace import Pace
from service.timing import Timings

_log = logging.getLogger(__name__)

Q = TypeVar("Q")
A = TypeVar("A")
AT_ONCE = 4  # answers that go on together: a whole batch of them would keep the event loop from whoever comes
TIMER_S = 0.001  # event loops count in milliseconds, and may ring so much too early
Run = Callable[[Sequence[Q], Stage], Sequence[A]]  # in the worker thread; one answer per question, in order


_DISPATCH = {reason: metrics.DISPATCH.labels(reason) for reason in metrics.DISPATCH_REASONS}


class Batched(NamedTuple, Generic[A]):
    """An answer, and what it cost.

    Attributes:
        answer: of the model.
        queue_s: from arrival to the start of its batch.
        stages_s: seconds by stage, of the whole batch: everybody in it waited for all of it.
        batch_size: how many travelled together.
    """

    answer: A
    queue_s: float
    stages_s: Mapping[str, float]
    batch_size: int


class Pool(Protocol):
    """Whatever carries questions to what answers them."""

    async def submit(self, question: Q, run: Run[Q, A], *, deadline: float) -> Batched[A]:
        """See `MicroBatcher.submit`."""
        ...


@dataclass(slots=True)
class _Entry:
    question: Any
    run: Run[Any, Any]
    deadline: float  # on the batcher's clock
    arrived: float
    waiter: asyncio.Future[Batched[Any]]
    is_dispatched: bool = False


class MicroBatcher:
    """See the module.

    Args:
        max_batch: most questions of one run.
        queue_limit: most questions that may wait.
        wait_s: how long the oldest question may wait for others while the worker is free.
        clock: seconds from some fixed moment.
        pool: its name in metrics.
        is_paced: whether a batch takes as much longer as it is larger.
        batch_s: how long a batch may take by the same reckoning, unless it is of one question.
        felt: hears how long the oldest question of each batch waited, and for what.
        inline_s: a batch that recent ones say takes no longer than this is run on the event loop itself. Where there is
            one core, handing work to a thread and back takes as long as a small model does, and nothing else could be
            done meanwhile. A batch that takes longer than it should is the last one for a while.
        is_alone: whether whoever asks is the only one at work.

    Attributes:
        longest_s: how long a question may have to wait, by what recent batches took; who would wait longer is refused.
    """

    def __init__(
        self,
        *,
        max_batch: int,
        queue_limit: int,
        wait_s: float,
        clock: Callable[[], float],
        pool: str = "encoder",
        is_paced: bool = False,
        batch_s: float = math.inf,
        felt: Callable[[float, str], None] | None = None,
        inline_s: float = 0.0,
        is_alone: Callable[[], bool] = lambda: False,
    ) -> None:
        self._max_batch = max_batch
        self._queue_limit = queue_limit
        self._wait_s = wait_s
        self._clock = clock
        self._queue: deque[_Entry] = deque()
        self._arrival: asyncio.Future[None] | None = None  # what the owner waits for, where it waits for somebody
        self._running: list[_Entry] = []
        self._worker = ThreadPoolExecutor(1, thread_name_prefix=pool)
        self._owner: asyncio.Task[None] | None = None
        self._is_closing = False
        self._is_paced = is_paced
        self.longest_s = math.inf
        self._batch_s = batch_s
        self._felt = felt
        self._inline_s = inline_s
        self._is_alone = is_alone
        self._pool = pool
        self._pace = Pace(clock)
        self._free_at = 0.0  # on the clock: when the batch that is running should be done
        self._is_away = False  # while others wait for the owner: only then time may run out for them
        self._expiry: asyncio.TimerHandle | None = None
        self._expires_at = math.inf  # on the clock: the earliest deadline that the timer is set for
        metrics.watch(metrics.QUEUE_DEPTH.labels(pool), self, lambda batcher: len(batcher._queue))

    @property
    def is_alive(self) -> bool:
        """Whether somebody serves the queue."""
        return self._owner is not None and not self._owner.done()

    def start(self) -> None:
        """Begins to serve; call it on the event loop."""
        self._owner = asyncio.create_task(self._own(), name="micro-batcher")

    async def submit(self, question: Q, run: Run[Q, A], *, deadline: float) -> Batched[A]:
        """The answer to one question.

        Args:
            question: what to work on.
            run: what works on it, with everybody else's who wants the same.
            deadline: on the batcher's clock, after which nobody wants the answer any more.

        Raises:
            Overloaded: the queue is full, or the service shuts down.
            NotReady: nobody serves the queue.
            DeadlineExceeded: the deadline came first.
            Exception: what `run` raised for this question.
        """
        if self._is_closing:
            metrics.SHED.labels("shutdown").inc()
            raise Overloaded("the service is shutting down; another replica will answer", reason="shutdown")
        if not self.is_alive:
            raise NotReady("the recommender's queue is not being served; the process has to be restarted")
        if len(self._queue) >= self._queue_limit:
            metrics.SHED.labels("queue_full").inc()
            raise Overloaded(f"{self._queue_limit} requests are waiting for the model already", reason="queue_full")
        now = self._clock()
        if self._queue and self.wait_s(now) > self.longest_s:
            metrics.SHED.labels("queue_slow").inc()
            raise Overloaded(
                f"{len(self._queue)} requests are waiting for the model, more than it answers in {self.longest_s:g} s",
                reason="queue_slow",
            )
        if now < deadline and self._may_go_alone():
            return self._at_once(question, run, now)
        waiter: asyncio.Future[Batched[A]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Entry(question, run, deadline, now, waiter))
        self._wake()
        if self._is_away and deadline < self._expires_at:
            self._set_timer(deadline, now)
        return await waiter

    def _is_quick(self, expected_s: float) -> bool:
        """Whether what should take so long is run on the event loop; what nothing is known of is not."""
        return 0 < expected_s <= self._inline_s

    def _may_go_alone(self) -> bool:
        return (
            not (self._queue or self._running or self._wait_s)
            and self._is_quick(self._pace.expected(1))
            and self._is_alone()
        )

    def _at_once(self, question: Q, run: Run[Q, A], now: float) -> Batched[A]:
        """The answer to a question that is a batch by itself."""
        _DISPATCH["idle"].inc()
        metrics.BATCH.observe(1)
        if self._felt is not None:
            self._felt(0.0, self._pool)
        ((outcome, timings),) = self._work(run, [question])
        self._pace.learn(1, self._clock() - now)
        if isinstance(outcome, Exception):
            raise outcome
        return Batched(outcome, 0.0, timings.seconds, 1)

    def wait_s(self, now: float) -> float:
        """How long a question that comes now should have to wait before it is begun."""
        return max(0.0, self._free_at - now) + self._pace.expected(len(self._queue))

    async def close(self) -> None:
        """Serves whoever waits, refuses everyone after, and lets the worker go."""
        self._is_closing = True
        self._wake()
        if self._owner is not None:
            await asyncio.wait([self._owner])
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def _own(self) -> None:
        """Builds batches for as long as the service lives, then until nobody waits."""
        try:
            while True:
                if self._queue:
                    reason = await self._gather()
                    self._running = batch = self._next_batch()
                    if batch:
                        _DISPATCH[reason].inc()
                        await self._run(batch)
                        self._running = batch = []  # it holds the bundle that it was run by
                elif self._is_closing:
                    return
                else:
                    await self._arrived()
        finally:
            # Reached with somebody still waiting only when this task was cancelled or is broken.
            self._come_back()
            for entry in (*self._running, *self._queue):
                if not entry.waiter.done():
                    entry.waiter.set_exception(NotReady("the recommender's queue is no longer served"))
            self._queue.clear()

    async def _arrived(self) -> None:
        """Waits until somebody comes, or the service shuts down."""
        self._arrival = asyncio.get_running_loop().create_future()
        await self._arrival

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)
        self._arrival = None

    def _go_away(self) -> None:
        """From here to `_come_back` the event loop goes on without the owner, and whoever is late has to be told by a
        timer: one for all, as most batches are done before the first deadline."""
        self._is_away = True
        earliest = min([entry.deadline for entry in (*self._running, *self._queue)], default=math.inf)
        self._set_timer(earliest, self._clock())

    def _come_back(self) -> None:
        self._is_away = False
        self._set_timer(math.inf, 0.0)

    def _set_timer(self, at: float, now: float) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        self._expires_at = at
        if at < math.inf:
            self._expiry = asyncio.get_running_loop().call_later(max(0.0, at - now), self._expire)

    def _expire(self) -> None:
        """Tells everybody whose time is over, and waits for the next deadline."""
        now, earliest = self._clock(), math.inf
        for entry in (*self._running, *self._queue):
            if entry.waiter.done():
                continue
            if entry.deadline <= now + TIMER_S:
                entry.waiter.set_exception(DeadlineExceeded("model" if entry.is_dispatched else "queue"))
            else:
                earliest = min(earliest, entry.deadline)
        self._set_timer(earliest, now)

    async def _gather(self) -> str:
        """Waits for a fuller batch where that is wanted; returns what ended the waiting."""
        if len(self._queue) >= self._max_batch:
            return "full"
        if self._wait_s == 0 or self._is_closing:
            return "idle"
        remaining = self._queue[0].arrived + self._wait_s - self._clock()
        self._go_away()
        try:
            async with asyncio.timeout(max(0.0, remaining)):
                while len(self._queue) < self._max_batch and not self._is_closing:
                    await self._arrived()
        except TimeoutError:
            return "waited"
        finally:
            self._come_back()
        return "full"

    def _next_batch(self) -> list[_Entry]:
        """The waiters that go next, of those who still want an answer and want the same run."""
        now = self._clock()
        waiting: list[_Entry] = []
        for entry in self._queue:
            if entry.waiter.done():  # its caller was cancelled or gave up
                metrics.SHED.labels("abandoned").inc()
            elif entry.deadline <= now:
                _shed_late(entry)
            else:
                waiting.append(entry)
        if waiting and self._go_together(waiting, now):
            for entry in waiting:
                entry.is_dispatched = True
            self._queue.clear()
            return waiting
        batch: list[_Entry] = []
        for entry in sorted(waiting, key=_deadline, reverse=True) if self._is_paced else waiting:
            # The first one goes in any case, or a pace that is wrong would never be found to be.
            if batch:
                if len(batch) == self._max_batch:
                    break
                took_s = self._pace.expected(len(batch) + 1)
                is_same = entry.run is batch[0].run or entry.run == batch[0].run
                if not is_same or took_s > self._batch_s or now + took_s > entry.deadline:
                    continue
            entry.is_dispatched = True
            batch.append(entry)
        self._queue.clear()
        next_s = self._pace.expected(len(batch) + 1)
        for entry in waiting:
            if entry.is_dispatched:
                continue
            if now + next_s <= entry.deadline:
                self._queue.append(entry)
            else:  # too late by the time that this batch is done: told now, while there is time for something simpler
                _shed_late(entry)
        return batch

    def _go_together(self, waiting: list[_Entry], now: float) -> bool:
        """Whether all are one batch, as nearly always; a larger one never takes less time than a smaller one."""
        if len(waiting) == 1:
            return True
        if len(waiting) > self._max_batch or self._is_paced:  # a paced batch has an order
            return False
        took_s, run = self._pace.expected(len(waiting)), waiting[0].run
        return took_s <= self._batch_s and all(
            [now + took_s <= one.deadline and (one.run is run or one.run == run) for one in waiting[1:]]
        )

    async def _run(self, batch: list[_Entry]) -> None:
        """Carries one batch through the worker and resolves everybody in it."""
        started = self._clock()
        expected_s = self._pace.expected(len(batch))
        self._free_at = started + expected_s
        metrics.BATCH.observe(len(batch))
        if self._felt is not None:
            self._felt(started - min([entry.arrived for entry in batch]), self._pool)
        outcomes: Sequence[tuple[Any, Timings]]
        try:
            questions = [entry.question for entry in batch]
            if self._is_quick(expected_s):
                outcomes = self._work(batch[0].run, questions)
            else:
                loop = asyncio.get_running_loop()
                self._go_away()
                try:
                    outcomes = await loop.run_in_executor(self._worker, self._work, batch[0].run, questions)
                finally:
                    self._come_back()
        except Exception as error:  # the executor itself: it is shut down, or cannot start its thread
            _log.exception("the worker thread failed")
            outcomes = [(error, Timings(self._clock))] * len(batch)
        self._pace.learn(len(batch), self._clock() - started)
        self._free_at = 0.0
        for n, (entry, (outcome, timings)) in enumerate(zip(batch, outcomes, strict=True), start=1):
            if n % AT_ONCE == 0:
                await asyncio.sleep(0)
            if entry.waiter.done():
                continue
            if isinstance(outcome, Exception):
                entry.waiter.set_exception(outcome)
            else:
                queue_s = started - entry.arrived
                entry.waiter.set_result(Batched(outcome, queue_s, timings.seconds, len(batch)))

    def _work(self, run: Run[Any, Any], questions: list[Any]) -> Sequence[tuple[Any, Timings]]:
        """In the worker thread: everybody together and, where that fails, each alone, so that one does not harm all."""
        timings = Timings(self._clock)
        try:
            answers = run(questions, timings)
            if len(answers) != len(questions):
                raise RuntimeError(f"the model gave {len(answers)} answers to {len(questions)} questions")
        except BaseException as error:
            if len(questions) > 1:
                return [outcome for question in questions for outcome in self._work(run, [question])]
            if isinstance(error, Exception):
                return [(error, timings)]
            return [(RuntimeError(f"the recommender's worker was stopped by {type(error).__name__}"), timings)]
        return [(answer, timings) for answer in answers]


def _deadline(entry: _Entry) -> float:
    return entry.deadline


def _shed_late(entry: _Entry) -> None:
    metrics.SHED.labels("late").inc()
    entry.waiter.set_exception(DeadlineExceeded("queue"))
