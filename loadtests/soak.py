"""What stays when a service runs for long: its memory after many swaps and many requests, and latency during swaps.

Mixed traffic of many users: events and questions, rankings, similar items, histories, lists by GET. What is stored is
in Redis, so that what grows in the service is not that. Users come with a past as long as the run will make it longer:
histories that grow from nothing to hundreds of events are more work at the end than they were at the beginning, and
what is looked for is what stays of equal work.

Resident memory is read at rest: after the first requests and two swaps, so that a bundle to go back to is in it; after
all swaps; and after all requests. While bundles are swapped, requests arrive by a schedule; those due from the call to
swap until a moment after its answer are set against the others, and against a stretch before the first swap.
"""

import argparse
import asyncio
import hashlib
import os
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from loadtests import capacity, objectives, report, rivals, stores, target, wire
from loadtests.faults import copies
from loadtests.report import Report, percentile
from loadtests.target import LoadError
from loadtests.traffic import Habits, Readers, arrivals
from loadtests.wire import Reply, Wire

FIRST = 10_000  # requests before memory is read for the first time
PREPARED = 40_000  # requests, asked over and over
BULK = 500  # events of one call
CALLERS = 8
DEADLINE_MS = 2_000  # nothing is shed or degraded because a machine is slow: how long a swap takes is seen in p99
CONNECTIONS = 128
STEADY_S = 20.0  # of scheduled requests before the first swap
AFTERMATH_S = 0.25  # after the answer to a swap, that still counts as part of it
REST_S = 1.0
LOOKS = 5  # at the memory, for one figure
GROWTH = 0.03  # that memory may differ by
P99_RATIO = 1.2
HABITS = Habits(users=20_000, newcomer_share=0.05)
NAMES = ("one", "other")


def requests(
    item_ids: Sequence[str], headers: Mapping[str, str], *, seed: int, count: int, k: int
) -> tuple[list[bytes], list[dict[str, Any]]]:
    """Mixed traffic, encoded, and the events in it: mostly events and questions, as a shop sends them, and a little of
    everything else."""
    readers = Readers(item_ids, seed=seed, prefix=f"soak-{secrets.token_hex(3)}", habits=HABITS)
    rng = np.random.default_rng(seed)
    made, events = [], []
    for step, drawn in zip(islice(readers.steps(100), count), rng.random(count), strict=True):
        user = step.user_id
        body: dict[str, Any] | None = None
        method, path = "POST", "/v1/recommendations"
        if step.item_id is not None:
            path = "/v1/events"
            events.append({"user_id": user, "item_id": step.item_id, "event_type": "click"})
            body = {"events": events[-1:]}
        elif drawn < 0.7:
            body = {"user_id": user, "k": k}
        elif drawn < 0.8:
            body = {"history": step.history, "k": k, "consent": False}
        elif drawn < 0.85:
            path, body = "/v1/rankings", {"user_id": user, "candidates": list(dict.fromkeys(item_ids[:30]))}
        else:
            method = "GET"
            item = item_ids[int(rng.integers(len(item_ids)))]
            gets = (
                f"/v1/users/{user}/recommendations?k={k}",
                f"/v1/items/{item}/similar?k={k}",
                f"/v1/users/{user}/history",
            )
            path = gets[int(rng.integers(len(gets)))]
        made.append(wire.encode(method, path, body, headers=headers))
    return made, events


def resident_mb(pid: int) -> float:
    """Memory of a process that is resident: the median of a few looks at rest."""
    seen = []
    for _ in range(LOOKS):
        time.sleep(REST_S / LOOKS)
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        seen.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
    return round(float(np.median(seen)), 2)


@dataclass(slots=True)
class Soak:
    """A service under way, and what is known of it so far.

    Attributes:
        server: which.
        todo: requests, over and over.
        headers: of the calls that swap.
        sent: requests so far.
        errors: answers that were none, by code.
        swaps: outcomes of the calls that swap, by code.
        swap_s: how long each took.
        memory_mb: what was read, by when.
    """

    server: rivals.Server
    todo: list[bytes]
    headers: Mapping[str, str]
    sent: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    swaps: Counter[str] = field(default_factory=Counter)
    swap_s: list[float] = field(default_factory=list)
    memory_mb: dict[str, float] = field(default_factory=dict)

    def is_good(self, _number: int, reply: Reply) -> bool:
        """Counts, too."""
        self.sent += 1
        if not reply.is_ok:
            self.errors[reply.code] += 1
        return reply.is_ok

    async def remember(self, line: Wire, events: Sequence[Mapping[str, Any]], *, times: int) -> None:
        """Gives the users a past: so many times what they will do.

        Raises:
            LoadError: it is refused.
        """
        parts = [events[start : start + BULK] for start in range(0, len(events), BULK)]
        told = [wire.encode("POST", "/v1/events", {"events": part}, headers=self.headers) for part in parts]
        for number in range(times * len(told)):
            reply = await line.send(told[number % len(told)])
            if not reply.is_ok:
                raise LoadError(f"the users' past could not be stored: {reply.code} {reply.body[:300]!r}")

    async def crowd(self, line: Wire, until: int) -> None:
        """Requests until so many are sent, by callers who wait for their answers."""

        async def caller() -> None:
            while self.sent < until:
                self.is_good(0, await line.send(self.todo[self.sent % len(self.todo)]))

        await asyncio.gather(*(caller() for _ in range(CALLERS)))

    async def swap(self, line: Wire, number: int) -> None:
        """Activates the other bundle.

        Raises:
            LoadError: it is refused; there is nothing to measure then.
        """
        body = {"bundle": NAMES[number % 2]}
        began = time.monotonic()
        reply = await line.send(
            wire.encode("POST", "/v1/admin/bundles/activate", body, headers=self.headers), timeout_s=120
        )
        self.swaps[reply.code] += 1
        self.swap_s.append(time.monotonic() - began)
        if not reply.is_ok:
            raise LoadError(f"bundle {body['bundle']!r} could not be activated: {reply.code} {reply.body[:300]!r}")

    def look(self, when: str) -> None:
        """Reads the memory."""
        self.memory_mb[when] = resident_mb(self.server.pid)

    async def under_swaps(
        self, line: Wire, *, swaps: int, every_s: float, rate: float, seed: int
    ) -> tuple[list[float], list[float], list[float]]:
        """Scheduled requests while bundles are swapped: seconds before the first, between swaps, and during them."""
        lasts_s = STEADY_S + swaps * every_s + 1
        due = arrivals(rate, lasts_s, seed=seed).tolist()
        spans: list[tuple[float, float]] = []
        began = time.monotonic()

        async def swapping() -> None:
            for number in range(swaps):
                await asyncio.sleep(max(0.0, began + STEADY_S + number * every_s - time.monotonic()))
                at = time.monotonic() - began
                await self.swap(line, number)
                spans.append((at, time.monotonic() - began + AFTERMATH_S))

        offered, _ = await asyncio.gather(
            capacity.offer(line, self.todo, due, self.is_good, rate=rate, most_waiting=sys.maxsize), swapping()
        )
        moments = [moment for moment in due if moment >= capacity.WARMUP_S]
        return split(moments, offered.latencies, spans)


def split(
    moments: Sequence[float], latencies: Sequence[float], spans: Sequence[tuple[float, float]]
) -> tuple[list[float], list[float], list[float]]:
    """Latencies of requests that were due before the first span, between spans, and within one."""
    first = spans[0][0] if spans else float("inf")
    before: list[float] = []
    between: list[float] = []
    during: list[float] = []
    at = 0
    for moment, latency in zip(moments, latencies, strict=True):
        while at < len(spans) and spans[at][1] <= moment:
            at += 1
        if moment < first:
            before.append(latency)
        elif at < len(spans) and spans[at][0] <= moment:
            during.append(latency)
        else:
            between.append(latency)
    return before, between, during


async def soaked(
    soak: Soak,
    events: Sequence[Mapping[str, Any]],
    *,
    total: int,
    first: int,
    swaps: int,
    every_s: float,
    rate: float,
    seed: int,
) -> dict[str, Any]:
    """The whole run, and its numbers."""
    async with wire.wired(soak.server.url, connections=CONNECTIONS, timeout_s=30) as line:
        await soak.remember(line, events, times=max(1, total // len(soak.todo)))
        soak.look("start")
        await soak.crowd(line, first // 2)
        for number in range(2 if swaps else 0):
            await soak.swap(line, number)
        await soak.crowd(line, first)
        soak.look("first")
        before, between, during = await soak.under_swaps(line, swaps=swaps, every_s=every_s, rate=rate, seed=seed)
        soak.look("after_swaps")
        began, sent = time.monotonic(), soak.sent
        await soak.crowd(line, max(total, soak.sent))
        per_s = (soak.sent - sent) / max(time.monotonic() - began, 1e-9)
        soak.look("after_requests")
    steady = [*before, *between]
    base = soak.memory_mb["first"]
    p99 = {name: percentile(of, 99) * 1000 for name, of in (("steady", steady), ("before", before), ("during", during))}
    return {
        "requests": soak.sent,
        "errors": soak.errors.total(),
        "errors_by": dict(soak.errors),
        "swaps": sum(count for code, count in soak.swaps.items() if code.startswith("2")),
        "swap_p50_ms": round(percentile(soak.swap_s, 50) * 1000, 1),
        "swap_max_ms": round(max(soak.swap_s, default=0.0) * 1000, 1),
        "memory_mb": soak.memory_mb,
        "growth_after_swaps": round(soak.memory_mb["after_swaps"] / base - 1, 4),
        "growth_after_requests": round(soak.memory_mb["after_requests"] / base - 1, 4),
        "p99_before_ms": round(p99["before"], 3),
        "p99_steady_ms": round(p99["steady"], 3),
        "p99_during_swaps_ms": round(p99["during"], 3),
        "p99_ratio": round(p99["during"] / p99["steady"], 3) if during else None,
        "requests_during_swaps": len(during),
        "crowd_per_s": round(per_s, 1),
    }


def table(results: Mapping[str, Any]) -> list[list[str]]:
    """The results for people."""
    memory = results["memory_mb"]
    return [
        ["", "start", "first", "after swaps", "after requests"],
        ["resident MB", *(f"{memory[name]:.1f}" for name in ("start", "first", "after_swaps", "after_requests"))],
        ["against first", "", "", *(f"{results[f'growth_after_{of}']:+.2%}" for of in ("swaps", "requests"))],
        ["p99 ms", f"{results['p99_before_ms']:.2f} before", f"{results['p99_steady_ms']:.2f} steady",
         f"{results['p99_during_swaps_ms']:.2f} during", f"ratio {results['p99_ratio']}"],
    ]  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """The exit status: 1 when memory grew, requests failed, or swaps were felt."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/demo"), help="twins of it are swapped")
    parser.add_argument("--requests", type=int, default=1_000_000, help="in all")
    parser.add_argument("--first", type=int, default=FIRST, help="of them before memory is read for the first time")
    parser.add_argument("--swaps", type=int, default=100, help="while requests arrive; 0: none, for their cost alone")
    parser.add_argument("--swap-every", type=float, default=2.0, metavar="S", help="seconds from one to the next")
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second while bundles are swapped")
    parser.add_argument("--k", type=int, default=20, help="items per answer")
    parser.add_argument("--seed", type=int, default=1, help="of readers and arrivals")
    parser.add_argument("--cores", help="one for the service and one for the rest, for example 0,1")
    objectives.add_requirements(parser)
    report.add_record(parser)
    given = parser.parse_args(arguments)
    if given.record:
        report.refuse_dirty()
    machine = report.Machine.here()
    cores = rivals.two_cores(given.cores)
    os.sched_setaffinity(0, {cores[1]})
    key = secrets.token_urlsafe(24)
    headers = {"authorization": f"Bearer {key}"}
    with ExitStack() as up:
        folder = Path(up.enter_context(tempfile.TemporaryDirectory(prefix="sequitur-soak-")))
        bundles = folder / "bundles"
        bundles.mkdir()
        served = [copies.twin(given.bundle, bundles, name) for name in NAMES][1]
        (folder / "keys").write_text(f"soak:read,write,metrics,admin:{hashlib.sha256(key.encode()).hexdigest()}\n")
        own = {
            "SEQUITUR_STORE": up.enter_context(stores.redis()),
            "SEQUITUR_CORES": "1",
            "SEQUITUR_API_KEYS_FILE": str(folder / "keys"),
            "SEQUITUR_BUNDLES": str(bundles),
            "SEQUITUR_LOG": f"file://{folder / 'log'}",
            "SEQUITUR_LOG_LEVEL": "warning",
            "SEQUITUR_DEADLINE_MS": f"{DEADLINE_MS}",
        }
        command = [sys.executable, "-m", "service", "--bundle", str(served), "--port", "0"]
        server = up.enter_context(rivals.launched(command, {**rivals.clean(), **own}, cores=cores[:1]))
        facts = target.learn(server.url, headers)
        todo, events = requests(
            facts.item_ids, headers, seed=given.seed, count=min(PREPARED, given.requests), k=given.k
        )
        soak = Soak(server, todo, headers)
        results = wire.run(
            soaked(
                soak,
                events,
                total=given.requests,
                first=given.first,
                swaps=given.swaps,
                every_s=given.swap_every,
                rate=given.rate,
                seed=given.seed,
            )
        )
    notes = [
        f"memory is that after {given.first} requests and two swaps, so that the bundle to go back to is in it",
        f"during: due from the call to swap until {AFTERMATH_S:g} s after its answer; steady: all others",
    ]
    names = ("requests", "first", "swaps", "swap_every", "rate", "k", "seed")
    conditions = {"cores": list(cores), **{name: getattr(given, name) for name in names}}
    done = Report("soak", conditions, facts.bundle, results, table(results), machine, notes)
    report.emit(done, record=given.record)
    sound = ["errors==0", f"growth_after_swaps<={GROWTH}", f"growth_after_requests<={GROWTH}"]
    if given.swaps:
        sound += [f"swaps=={given.swaps + 2}", f"p99_ratio<={P99_RATIO}"]
    return objectives.judge(results, [*sound, *given.require])
