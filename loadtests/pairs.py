"""Two service processes on one Redis: an event through one, the question through the other, and no answer is stale.

A reader clicks the first item of the list that was shown. The click goes to one process and, as soon as it is
acknowledged, the next question goes to the other, as a load balancer does it. Stale is a list in which the item stands
again, and a history whose newest event is another. The two take turns, and several readers are at it at once.
"""

import argparse
import asyncio
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests import objectives, report, rivals, stores, target, wire
from loadtests.report import Report
from loadtests.target import PATIENCE_MS, LoadError
from loadtests.wire import Wire

VISIT = 20  # clicks of a reader, after whom another comes: the catalog may be small
K = 20
READERS = 8  # at once


@dataclass(slots=True)
class Tally:
    """What came of the pairs; latencies in seconds, from the acknowledged event to the answer."""

    pairs: int = 0
    stale: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    degraded: int = 0
    seconds: list[float] = field(default_factory=list)


async def visit(user_id: str, lines: Sequence[Wire], first: str, tickets: Iterator[int], tally: Tally) -> None:
    """One reader's clicks, as long as there are tickets; each through one line, and seen through the other."""
    item_id, clicked = first, []
    for number in tickets:
        tells, asks = lines if number % 2 else lines[::-1]
        told = await tells.send(_event(user_id, item_id))
        if told.status != 202:
            tally.errors[told.code] += 1
            return
        acknowledged = time.monotonic()
        clicked.append(item_id)
        answered = await asks.send(_question(user_id))
        tally.seconds.append(time.monotonic() - acknowledged)
        history = await asks.send(wire.encode("GET", f"/v1/users/{user_id}/history"))
        tally.pairs += 1
        for reply in (answered, history):
            if reply.status != 200:
                tally.errors[reply.code] += 1
                return
        answer = answered.json()
        shown = [item["item_id"] for item in answer["items"]]
        tally.degraded += answer["degraded"]
        if item_id in shown:
            tally.stale["shown again"] += 1
        if [event["item_id"] for event in history.json()["events"]] != clicked:
            tally.stale["another history"] += 1
        if not shown or len(clicked) == VISIT:
            return
        item_id = shown[0]


def _event(user_id: str, item_id: str) -> bytes:
    return wire.encode("POST", "/v1/events", {"events": [{"user_id": user_id, "item_id": item_id}]})


def _question(user_id: str) -> bytes:
    body = {"user_id": user_id, "k": K, "exclude_seen": True, "deadline_ms": PATIENCE_MS}
    return wire.encode("POST", "/v1/recommendations", body)


async def told(urls: Sequence[str], item_ids: Sequence[str], *, pairs: int, readers: int) -> Tally:
    """All of it."""
    tally = Tally()
    tickets = iter(range(pairs))
    run = secrets.token_hex(4)
    numbers = iter(range(sys.maxsize))
    async with AsyncExitStack() as up:
        lines = [await up.enter_async_context(wire.wired(url, connections=readers, timeout_s=30)) for url in urls]

        async def reader() -> None:
            while tally.pairs < pairs and not tally.errors:
                number = next(numbers)
                before = tally.pairs
                await visit(f"pairs-{run}-{number}", lines, item_ids[number % len(item_ids)], tickets, tally)
                if tally.pairs == before:
                    return  # no tickets are left

        await asyncio.gather(*(reader() for _ in range(readers)))
    return tally


def results_of(tally: Tally) -> dict[str, Any]:
    """The numbers."""
    return {
        "pairs": tally.pairs,
        "stale": tally.stale.total(),
        "stale_by": dict(tally.stale),
        "errors": tally.errors.total(),
        "errors_by": dict(tally.errors),
        "degraded": tally.degraded,
        **report.latencies(tally.seconds),
    }


def table(results: Mapping[str, Any]) -> list[list[str]]:
    """The results for people."""
    names = ("pairs", "stale", "errors", "degraded", "p50_ms", "p99_ms", "max_ms")
    return [list(names), [f"{results[name]:g}" for name in names]]


def main(arguments: Sequence[str]) -> int:
    """The exit status: 1 when anything was stale or failed."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests pairs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/demo"), help="what both serve")
    parser.add_argument("--pairs", type=int, default=10_000, help="events with the question after each")
    parser.add_argument("--readers", type=int, default=READERS, help="at once")
    objectives.add_requirements(parser)
    report.add_record(parser)
    given = parser.parse_args(arguments)
    if given.pairs < 1 or given.readers < 1:
        raise LoadError("at least one pair and one reader are needed")
    if given.record:
        report.refuse_dirty()
    machine = report.Machine.here()
    with ExitStack() as up:
        redis = up.enter_context(stores.redis())
        command = [sys.executable, "-m", "service", "--bundle", str(given.bundle.resolve()), "--port", "0"]
        # Whether it is right is asked here and not how fast: the machine may be busy.
        own = {"SEQUITUR_STORE": redis, "SEQUITUR_DEADLINE_MS": f"{PATIENCE_MS}", "SEQUITUR_CORES": "1"}
        servers = [up.enter_context(rivals.launched(command, {**rivals.clean(), **own})) for _ in range(2)]
        facts = target.learn(servers[0].url)
        urls = [server.url for server in servers]
        tally = wire.run(told(urls, facts.item_ids, pairs=given.pairs, readers=given.readers))
    results = results_of(tally)
    notes = ["latency is from the acknowledged event to the answer through the other process"]
    conditions = {"pairs": given.pairs, "readers": given.readers, "k": K, "visit": VISIT}
    done = Report(
        "pairs", conditions, facts.bundle, results, table(results), machine, notes, {"stale": results["stale"]}
    )
    report.emit(done, record=given.record)
    sound = ["stale==0", "errors==0", "degraded==0", f"pairs=={given.pairs}"]
    return objectives.judge(results, [*sound, *given.require])
