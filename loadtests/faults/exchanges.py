"""Requests that leave when they are due, and everything that came of them; nothing is looked into before the end.

Latency counts from the moment a request was due. A request whose connection broke before its answer is sent once more,
as every HTTP client does with what may be repeated: a question changes nothing, and an event has an id. Both together
count as one, from when it was due.
"""

import asyncio
import gc
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loadtests import wire
from loadtests.faults.people import Step
from loadtests.wire import Reply, Wire

BROKEN = ("closed", "refused")  # failures of a connection, after which a request is sent again
NEVER = Reply(0, failure="never sent")
AT_ONCE = 16  # requests that a late generator sends before it looks at answers


@dataclass(slots=True)
class Exchange:
    """One request and its answer, in seconds on the clock of the run."""

    step: Step
    request_id: str
    due: float
    left: float = 0.0
    done: float = 0.0
    reply: Reply = NEVER
    again: bool = False

    @property
    def is_question(self) -> bool:
        """Whether it asks for recommendations."""
        return self.step.item_id is None


@dataclass(frozen=True, slots=True)
class Course:
    """A run, carried out."""

    exchanges: list[Exchange]
    generator_cpu: float  # of a core


class Offer:
    """A schedule, encoded beforehand.

    Args:
        steps: one request each.
        due: float64, shape (n,), ascending: seconds on the clock of the run.
        prefix: of request ids.
    """

    def __init__(self, steps: Sequence[Step], due: npt.NDArray[np.float64], *, prefix: str) -> None:
        self._exchanges = [
            Exchange(step, f"{prefix}.{number}", float(moment))
            for number, (step, moment) in enumerate(zip(steps, due, strict=True))
        ]
        self._requests = [encoded(exchange) for exchange in self._exchanges]

    def postpone(self, seconds: float) -> None:
        """Moves the whole schedule."""
        for exchange in self._exchanges:
            exchange.due += seconds

    async def carry(self, line: Wire, *, zero: float) -> Course:
        """Sends everything when it is due; the end is when every answer is here or given up.

        Args:
            line: to the service.
            zero: of the run's clock, on `time.perf_counter`.
        """
        left = len(self._exchanges)
        over = asyncio.Event()

        def send(exchange: Exchange, request: bytes) -> None:
            def done(reply: Reply) -> None:
                nonlocal left
                if reply.failure in BROKEN and not exchange.again:
                    exchange.again = True
                    line.submit(request, done)
                    return
                exchange.done = time.perf_counter() - zero
                exchange.reply = reply
                left -= 1
                if not left:
                    over.set()

            exchange.left = time.perf_counter() - zero
            line.submit(request, done)

        gc.collect()
        gc.freeze()  # what was prepared is not garbage; looking through it during the run would be our lag
        cpu, wall = time.process_time(), time.perf_counter()
        try:
            for number, (exchange, request) in enumerate(zip(self._exchanges, self._requests, strict=True)):
                wait = zero + exchange.due - time.perf_counter()
                if wait > 0 or number % AT_ONCE == 0:
                    await asyncio.sleep(max(0.0, wait))
                send(exchange, request)
            if left:
                await over.wait()
        finally:
            gc.unfreeze()
        busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
        return Course(self._exchanges, round(busy, 3))


def encoded(exchange: Exchange) -> bytes:
    """The request as it goes over the wire; its id comes back with the answer."""
    step = exchange.step
    return wire.encode("POST", step.path, step.body, headers={"x-request-id": exchange.request_id})


async def crowd(line: Wire, steps: Iterable[Step], *, zero: float, seconds: float, size: int, prefix: str) -> Course:
    """Exchanges of a crowd who each wait for their answer before they ask again: as many as the service can take."""
    exchanges: list[Exchange] = []
    numbered = enumerate(steps)
    until = time.perf_counter() + seconds
    cpu, wall = time.process_time(), time.perf_counter()

    async def one() -> None:
        while (now := time.perf_counter()) < until:
            number, step = next(numbered)
            exchange = Exchange(step, f"{prefix}.{number}", now - zero, now - zero)
            exchange.reply = await line.send(encoded(exchange))
            exchange.done = time.perf_counter() - zero
            exchanges.append(exchange)

    await asyncio.gather(*(one() for _ in range(size)))
    return Course(exchanges, round((time.process_time() - cpu) / (time.perf_counter() - wall), 3))
