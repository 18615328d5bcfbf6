"""One scenario, carried out: everybody's past told, load offered, the trouble in the middle, histories read back."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from loadtests import target, wire
from loadtests.faults import figures
from loadtests.faults.exchanges import Course, Offer, crowd
from loadtests.faults.figures import Judged, Times
from loadtests.faults.people import People, Step
from loadtests.faults.servers import Service
from loadtests.faults.verdicts import Ledger, audited, judged
from loadtests.target import Facts, LoadError
from loadtests.traffic import LONGEST_HISTORY, arrivals
from loadtests.wire import Wire

TIMEOUT_S = 10.0
CONNECTIONS = 1_024  # a user does not wait for a connection of another one
BULK = 500  # events of one call
CROWD = 32
SEARCH_S = 2.0  # of each look for the capacity
SHARES = (1.1, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # of what a crowd gets: rates at which goodput is looked for
CALM = 0.5  # of the capacity: what is offered before and after an overload
READERS = 4  # histories that are asked for at once, in the end: whoever looks should not be what is shed
READS = 20  # times that one is asked for, half a second apart


@dataclass(frozen=True, slots=True)
class Given:
    """What was asked for on the command line.

    Attributes:
        rate: requests per second.
        seconds: of each of before, during and after, where the scenario does not say otherwise.
        warmup: seconds before them.
        cores: of the service and of everything else; None: wherever this process may run.
        swaps: of bundles, `every_s` apart.
    """

    bundle: Path
    rate: float
    seconds: float
    warmup: float
    users: int
    seed: int
    cores: tuple[int, int] | None
    swaps: int
    every_s: float


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the trouble is: the service, and what an outside client knows of it."""

    service: Service
    facts: Facts
    given: Given


Trouble = Callable[[Ground], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a scenario sets up.

    Attributes:
        service: which is ready.
        trouble: begins it, waits, ends it; what it returns joins the figures.
        lasts_s: about as long as that takes.
        overload: how many times its capacity is offered during it; None: the usual rate.
        is_sudden: whether it happens in a moment, and the rest of the time is spent looking at what follows.
    """

    service: Service
    trouble: Trouble
    lasts_s: float
    overload: float | None = None
    is_sudden: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """A trouble with its objectives, of the form that `objectives` reads."""

    what: str
    objectives: tuple[str, ...]
    build: Callable[[ExitStack, Given, Path], Scene]


def played(scenario: Scenario, given: Given, folder: Path) -> tuple[dict[str, Any], Facts]:
    """The figures of one run, and what was served.

    Raises:
        LoadError: it cannot be run as asked.
        Missing: it cannot be run here.
    """
    with ExitStack() as up:
        scene = scenario.build(up, given, folder)
        facts = target.learn(scene.service.url)
        return wire.run(_played(scene, Ground(scene.service, facts, given))), facts


async def _played(scene: Scene, ground: Ground) -> dict[str, Any]:
    given, service = ground.given, ground.service
    prefix = f"fault-{secrets.token_hex(4)}"
    people = People(ground.facts.item_ids, count=given.users, seed=given.seed, prefix=prefix)
    ledger = Ledger()
    zero = time.perf_counter()
    async with wire.wired(service.url, connections=CONNECTIONS, timeout_s=TIMEOUT_S) as line:
        await _told(line, people, ledger)
        extra: dict[str, Any] = {}
        calm = loud = given.rate
        if scene.overload is not None:
            capacity = await found_capacity(line, people, ledger, zero=zero, seed=given.seed, prefix="before")
            calm, loud = CALM * capacity, scene.overload * capacity
            extra["capacity_per_s"] = round(capacity, 1)
        spans = [(calm, given.warmup + given.seconds), (loud, scene.lasts_s), (calm, given.seconds)]
        due = scheduled(spans, seed=given.seed)
        offer = Offer(list(people.steps(len(due))), due, prefix="run")
        memory = service.resident_mb()
        if scene.overload is not None:
            await line.warm(CONNECTIONS)  # or it is the opening of a thousand connections at once that is looked at
        start = time.perf_counter() - zero + 0.1
        offer.postpone(start)
        carrying = asyncio.create_task(offer.carry(line, zero=zero))
        begin, strike = start + given.warmup, start + given.warmup + given.seconds
        await asyncio.sleep(zero + strike - time.perf_counter())
        struck = time.perf_counter() - zero
        extra |= await scene.trouble(ground)
        lifted = time.perf_counter() - zero
        course = await carrying
        end = start + sum(span for _, span in spans)
        times = Times(begin, struck, lifted, end, struck if scene.is_sudden else None)
        ledger.enter(course.exchanges)
        if scene.overload is not None:
            again = await found_capacity(line, people, ledger, zero=zero, seed=given.seed + 1, prefix="after")
            extra["capacity_after_per_s"] = round(again, 1)
        histories = await _read_back(line, people)
    _refuse_trimmed(ledger)
    run: list[Judged] = [(exchange, judged(exchange, ledger)) for exchange in course.exchanges]
    found = figures.of_run(course, run, times, audited(ledger, histories))
    found |= {"resident_mb": {"before": memory, "after": service.resident_mb()}, **extra}
    if "capacity_per_s" in extra:
        # A shared machine may be another one a minute later; of a search on each side that is half as wrong.
        capacity = (extra["capacity_per_s"] + extra["capacity_after_per_s"]) / 2
        found["goodput_of_capacity"] = round(found["goodput_per_s"]["during"] / capacity, 3)
    return found


def scheduled(spans: list[tuple[float, float]], *, seed: int) -> npt.NDArray[np.float64]:
    """float64, shape (n,): arrivals at one rate after the other; each span is a rate and its seconds."""
    start = 0.0
    parts = []
    for number, (rate, seconds) in enumerate(spans):
        parts.append(start + arrivals(rate, seconds, seed=seed + number))
        start += seconds
    due = np.concatenate(parts)
    if not len(due):
        raise LoadError("no request is due in all that time; raise --rate or --seconds")
    return due


async def _told(line: Wire, people: People, ledger: Ledger) -> None:
    past = people.pasts()
    for start in range(0, len(past), BULK):
        part = past[start : start + BULK]
        events = [event for step in part for event in step.body["events"]]
        reply = await line.send(wire.encode("POST", "/v1/events", {"events": events}))
        if not reply.is_ok:
            raise LoadError(f"the users' past could not be stored: {reply.code} {reply.body[:300]!r}")
        for step in part:
            ledger.remember(step)


async def found_capacity(line: Wire, people: People, ledger: Ledger, *, zero: float, seed: int, prefix: str) -> float:
    """Prompt and right answers per second at the rate that gives the most of them.

    A crowd that waits for its answers shows what the service can carry at all; scheduled rates around that are tried
    from above until nearly everything that was due came in time.
    """
    carried = await crowd(line, _endless(people), zero=zero, seconds=SEARCH_S, size=CROWD, prefix=f"{prefix}-crowd")
    ledger.enter(carried.exchanges)
    most = len(carried.exchanges) / SEARCH_S
    best = 0.0
    for number, share in enumerate(SHARES):
        due = arrivals(share * most, SEARCH_S, seed=seed + 100 + number)
        offer = Offer(list(people.steps(len(due))), due, prefix=f"{prefix}-search{number}")
        offer.postpone(time.perf_counter() - zero + 0.1)
        course: Course = await offer.carry(line, zero=zero)
        ledger.enter(course.exchanges)
        run = [(exchange, judged(exchange, ledger)) for exchange in course.exchanges]
        prompt = sum(map(figures.is_prompt, run))
        best = max(best, prompt / SEARCH_S)
        if prompt >= figures.WELL * len(run):
            break
    if not best:
        raise LoadError("the service answered nothing within 50 ms at any rate; its capacity is not to be had")
    return best


def _endless(people: People) -> Iterator[Step]:
    while True:
        yield from people.steps(BULK)


async def _read_back(line: Wire, people: People) -> dict[str, dict[str, Any] | None]:
    async def read(user_id: str) -> dict[str, Any] | None:
        request = wire.encode("GET", f"/v1/users/{quote(user_id, safe='')}/history")
        for _ in range(READS):
            reply = await line.send(request)
            if reply.status == 200:
                answer: dict[str, Any] = reply.json()
                return answer
            await asyncio.sleep(0.5)  # who is away may come back, and who is busy has said so
        return None

    gate = asyncio.Semaphore(READERS)

    async def gated(user_id: str) -> dict[str, Any] | None:
        async with gate:
            return await read(user_id)

    found = await asyncio.gather(*map(gated, people.ids))
    return dict(zip(people.ids, found, strict=True))


def _refuse_trimmed(ledger: Ledger) -> None:
    """Histories are kept up to a length; what was trimmed would look lost.

    Raises:
        LoadError: somebody clicked more than that.
    """
    longest = max(map(len, ledger.ids.values()))
    if longest > LONGEST_HISTORY:
        raise LoadError(
            f"a user has {longest} events, of which the service keeps {LONGEST_HISTORY}; raise --users, or lower --rate"
        )


def conditions(given: Given) -> dict[str, Any]:
    """The conditions of a run, for its report."""
    return {name: value for name, value in asdict(given).items() if name != "bundle"}
