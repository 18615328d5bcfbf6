"""The highest rate that a service keeps: p90 and p99.5 within bounds, arrivals scheduled, latency from when due.

A *probe* offers one rate for a moment. A request that fails, or is answered worse than asked, counts as infinitely
late, so the two percentiles are all there is to judge. A rate is held when one probe of three holds it, since a machine
hiccups; the search walks up or down from a guess until one rate is held and the next is not, and halves what lies
between.

The generator costs little (`loadtests.wire`, requests encoded beforehand) and is exact: loop timers are rounded up to a
millisecond, in which two or three requests would leave together. How late it was and how busy is part of every figure.
"""

import asyncio
import ctypes
import gc
import math
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from loadtests.report import percentile
from loadtests.traffic import arrivals
from loadtests.wire import Reply, Wire

WARMUP_S = 0.3  # of each probe, not counted
DROWNED_S = 0.15  # a queue of so much work is growing; nothing is learnt by waiting for its end
RESOLUTION = 1.025  # the search ends when the rate that is not held is so near the one that is
MOST_PROBES = 20  # of one search
TRIES = 3  # probes of a rate, of which one has to hold it
LEAST_RATE = 10.0  # per second; below it the percentiles of a short probe mean nothing
LATE_MS = 1.0  # at p99 of a probe: a generator later than this is part of what it measures
BUSY = 0.9  # of its core

_CLOCK_MONOTONIC, _NONBLOCK, _ABSOLUTE = 1, 0o4000, 1  # timerfd_create(2)
IsGood = Callable[[int, Reply], bool]


class Bounds(NamedTuple):
    """What a rate is held by; as published for a session recommender on one core (Serenade, SIGMOD 2022)."""

    p90_ms: float = 7.0
    p99_5_ms: float = 15.0

    def hold(self, probe: "Probe") -> bool:
        """Whether a probe kept them."""
        return not probe.is_drowned and probe.p90_ms < self.p90_ms and probe.p99_5_ms < self.p99_5_ms


BOUNDS = Bounds()


class Alarm:
    """Calls back at moments of `time.monotonic`, tens of microseconds late at most. Linux."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._ring = ring
        self._spec = (ctypes.c_long * 4)()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._file, self._rings)

    def set(self, moment: float) -> None:
        """The one next moment; one that has passed rings at once."""
        nanoseconds = max(1, int(moment * 1e9))
        self._spec[2], self._spec[3] = divmod(nanoseconds, 1_000_000_000)
        self._libc.timerfd_settime(self._file, _ABSOLUTE, self._spec, None)

    def close(self) -> None:
        """Rings no more."""
        self._loop.remove_reader(self._file)
        os.close(self._file)

    def _rings(self) -> None:
        try:
            os.read(self._file, 8)
        except BlockingIOError:
            return
        self._ring()


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of one offered rate.

    Attributes:
        rate: that was offered, per second.
        latencies: seconds from when each request was due; infinite for what failed.
        lag_ms: at p99: how late requests left.
        busy: share of a core that the generator used.
        is_drowned: the queue grew so long that the probe was given up.
        codes: of what failed, a few.
    """

    rate: float
    latencies: Sequence[float]
    lag_ms: float
    busy: float
    is_drowned: bool = False
    codes: tuple[str, ...] = ()

    @property
    def p90_ms(self) -> float:
        """Latency at p90."""
        return percentile(self.latencies, 90) * 1000

    @property
    def p99_5_ms(self) -> float:
        """Latency at p99.5."""
        return percentile(self.latencies, 99.5) * 1000

    @property
    def is_sound(self) -> bool:
        """Whether the generator was not what was measured."""
        return self.lag_ms <= LATE_MS and self.busy <= BUSY


async def offer(
    wire: Wire,
    requests: Sequence[bytes],
    due: Sequence[float],
    is_good: IsGood,
    *,
    rate: float,
    most_waiting: int | None = None,
) -> Probe:
    """Sends request n (of `requests`, over and over) when `due[n]` has come, whatever became of the others.

    Args:
        wire: to the service.
        requests: encoded.
        due: seconds from the start, ascending.
        is_good: of the number of a request and its answer, whether it is what was asked for.
        rate: of `due`, per second; those of the first `WARMUP_S` are not counted.
        most_waiting: with more than these on their way the run is given up; `DROWNED_S` of the rate, when left out.
    """
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()
    latencies = [math.inf] * len(due)
    lags = [0.0] * len(due)
    failed: list[str] = []
    most = most_waiting if most_waiting is not None else max(64, int(rate * DROWNED_S))
    at = waiting = 0
    is_drowned = False
    clock = time.monotonic
    started = clock()

    def send() -> None:
        nonlocal at, waiting, is_drowned
        while at < len(due) and waiting <= most and due[at] <= (now := clock() - started):
            lags[at] = now - due[at]
            waiting += 1
            number, at = at, at + 1
            wire.submit(requests[number % len(requests)], partial(answered, number))
        if waiting > most:
            is_drowned, at = True, len(due)
        if at < len(due):
            alarm.set(started + due[at])
        elif not waiting and not finished.done():
            finished.set_result(None)

    def answered(number: int, reply: Reply) -> None:
        nonlocal waiting
        if is_good(number, reply):
            latencies[number] = clock() - started - due[number]
        elif len(failed) < 5:
            failed.append(reply.code)
        waiting -= 1
        if not waiting and at >= len(due) and not finished.done():
            finished.set_result(None)

    alarm = Alarm(send)
    gc.collect()
    gc.disable()
    spent = time.process_time()
    try:
        send()
        await finished
    finally:
        alarm.close()
        gc.enable()
    busy = (time.process_time() - spent) / max(clock() - started, 1e-9)
    counted = [number for number, moment in enumerate(due) if moment >= WARMUP_S] or list(range(len(due)))
    lag_ms = percentile([lags[number] for number in counted], 99) * 1000
    return Probe(rate, [latencies[n] for n in counted], lag_ms, busy, is_drowned, tuple(failed))


async def probe(
    wire: Wire, requests: Sequence[bytes], is_good: IsGood, *, rate: float, seconds: float, seed: int
) -> Probe:
    """`offer` with Poisson arrivals."""
    due = arrivals(rate, WARMUP_S + seconds, seed=seed).tolist() or [0.0]
    return await offer(wire, requests, due, is_good, rate=rate)


async def crowd(wire: Wire, requests: Sequence[bytes], is_good: IsGood, *, callers: int, seconds: float) -> float:
    """Good answers per second that `callers` get, each waiting for its own: where a search may begin."""
    until = time.monotonic() + seconds
    good = at = 0

    async def caller() -> None:
        nonlocal good, at
        while time.monotonic() < until:
            number, at = at, at + 1
            reply = await wire.send(requests[number % len(requests)])
            good += is_good(number, reply)  # only now: whoever adds across a wait loses what others added meanwhile

    await asyncio.gather(*(caller() for _ in range(callers)))
    return good / seconds


async def highest(
    ask: Callable[[float], Awaitable[Probe]], guess: float, *, step: float, bounds: Bounds = BOUNDS
) -> Probe:
    """The probe of the highest rate that was held; of rate 0 when none was.

    Args:
        ask: offers a rate.
        guess: where to begin.
        step: factor by which to walk until one rate is held and one is not.
        bounds: what holding is.
    """
    best: Probe | None = None
    asked = 0
    above = math.inf

    async def try_out(rate: float) -> None:
        nonlocal best, asked, above
        for _ in range(TRIES):
            asked += 1
            got = await ask(rate)
            if bounds.hold(got):
                best = got
                return
        above = rate

    rate, ups = guess, 0
    while asked < MOST_PROBES and rate >= LEAST_RATE:
        await try_out(rate)
        if best is not None and above < math.inf:
            if above / best.rate <= RESOLUTION:
                break
            rate = math.sqrt(best.rate * above)
        elif best is not None:
            ups += 1  # a guess that was far too low must not use up all the probes
            rate = best.rate * step**ups
        else:
            rate = above / step**2  # too much by an unknown amount: down faster than up
    return best or Probe(0.0, [math.inf], 0.0, 0.0)
