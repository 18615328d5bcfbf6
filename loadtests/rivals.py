"""The service and a plain endpoint around the same model, side by side over HTTP on this machine.

Both run as processes of their own, with the same threads for the model, and are asked in turns within one run: whatever
else the machine does slows both. Before anything is measured they have to give the same items.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from loadtests import report
from loadtests.client import Client, connected
from loadtests.report import percentile, spread
from loadtests.target import PATIENCE_MS, LoadError

START_S = 60.0
CROWD = 16  # callers at once, where throughput is measured
PATHS = {"service": "/v1/recommendations", "plain": "/recommendations"}
_READY = re.compile(r"ready on (http://\S+)")


class Server(NamedTuple):
    """A server that was started: where it listens, and its process."""

    url: str
    pid: int


@contextmanager
def launched(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    cores: Collection[int] | None = None,
    says: Path | None = None,
) -> Iterator[Server]:
    """A server for as long as the block lasts; its output goes to a file, as it would in earnest.

    Args:
        command: says `ready on URL` when it is.
        environment: all of it.
        cores: where it may run; where this thread may, when left out.
        says: the file for its output; one without a name, when left out.

    Raises:
        LoadError: it ended, or was not ready in time.
    """
    with says.open("w+") if says else tempfile.TemporaryFile("w+") as log:
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores or mine)  # what is started inherits it, every thread of it
        try:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=report.ROOT)
        finally:
            os.sched_setaffinity(0, mine)
        try:
            yield Server(_address(process, log.fileno()), process.pid)
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextmanager
def started(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[str]:
    """The address of a `launched` server."""
    with launched(command, environment) as server:
        yield server.url


def serving(bundle: Path, *, threads: int, deadline_ms: float = PATIENCE_MS) -> AbstractContextManager[str]:
    """The address of the service on a bundle, histories in its memory; it runs where this thread may run."""
    own = {
        "SEQUITUR_STORE": "memory://",
        "SEQUITUR_CORES": str(threads),
        "SEQUITUR_DEADLINE_MS": f"{deadline_ms:g}",
    }
    command = [sys.executable, "-m", "service", "--bundle", str(bundle.resolve()), "--port", "0"]
    return started(command, {**clean(), **own})


def two_cores(said: str | None) -> tuple[int, int]:
    """The core of the rivals, and that of the generator.

    Raises:
        LoadError: not two cores that this process may use.
    """
    allowed = sorted(os.sched_getaffinity(0))
    try:
        chosen = [int(core) for core in said.split(",")] if said else allowed[:2]
    except ValueError:
        chosen = []
    if len(chosen) != 2 or not set(chosen) <= set(allowed):
        raise LoadError(f"rivals and generator need a core each; say --cores A,B out of {allowed}")
    return chosen[0], chosen[1]


def known_settings() -> set[str]:
    """The variables that this version of the service reads; asked of a process, for this side knows it from outside."""
    code = (
        "from service.settings import Settings\nprint(*(f'SEQUITUR_{name.upper()}' for name in Settings.model_fields))"
    )
    asked = subprocess.run([sys.executable, "-c", code], cwd=report.ROOT, capture_output=True, text=True, check=True)
    return set(asked.stdout.split())


def clean() -> dict[str, str]:
    """The environment without settings of the service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SEQUITUR_")}


def _address(process: subprocess.Popen[bytes], log: int) -> str:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if found := _READY.search(_said(log)):
            return found[1]
        try:
            code = process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
        raise LoadError(f"a server ended with {code} before it was ready: {_said(log)[-500:]}")
    raise LoadError(f"a server was not ready within {START_S:g} s: {_said(log)[-500:]}")


def _said(log: int) -> str:
    return os.pread(log, 1 << 16, 0).decode(errors="replace")


def compare(
    bundle: Path,
    *,
    graph: str,
    items: Path,
    window: int,
    threads: int,
    ask: Mapping[str, Any],
    rounds: int,
    calls: int,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Figures of both, their ratios, and sentences.

    Args:
        bundle: what the service serves.
        graph: the encoder's file in it.
        items: JSON with `ids` and `available` of the catalog.
        window: of the encoder.
        threads: cores that each may use for the model.
        ask: `history` and `k` of the request.
        rounds: repetitions.
        calls: of each rival in each repetition.

    Raises:
        LoadError: they do not give the same items, or one fails.
    """
    plain = [sys.executable, "-m", "loadtests.plain", "--graph", str((bundle / graph).resolve())]
    plain += ["--vectors", str((bundle / "item_vectors.npy").resolve()), "--items", str(items.resolve())]
    plain += ["--window", str(window), "--threads", str(threads)]
    with ExitStack() as up:
        urls = {
            "service": up.enter_context(serving(bundle, threads=threads)),
            "plain": up.enter_context(started(plain, clean())),
        }
        return asyncio.run(_measured(urls, ask, rounds=rounds, calls=calls))


async def _measured(
    urls: Mapping[str, str], ask: Mapping[str, Any], *, rounds: int, calls: int
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    bodies = {
        "service": json.dumps({**ask, "consent": False, "exclude_seen": True, "deadline_ms": PATIENCE_MS}).encode(),
        "plain": json.dumps(ask).encode(),
    }
    async with (
        connected(urls["service"], connections=CROWD, timeout_s=30) as service,
        connected(urls["plain"], connections=CROWD, timeout_s=30) as endpoint,
    ):
        clients = {"service": service, "plain": endpoint}
        shown = {name: await _ask(client, name, bodies[name]) for name, client in clients.items()}
        if shown["service"] != shown["plain"]:
            raise LoadError(f"the rivals disagree, so comparing them means nothing: {shown}")
        for name, client in clients.items():  # unmeasured
            await _crowd(client, name, bodies[name], calls=max(CROWD, calls // 4))

        alone: dict[str, list[list[float]]] = {name: [] for name in clients}
        rates: dict[str, list[float]] = {name: [] for name in clients}
        for _ in range(rounds):
            taken: dict[str, list[float]] = {name: [] for name in clients}
            for _ in range(calls):
                for name, client in clients.items():
                    begun = time.perf_counter()
                    await _ask(client, name, bodies[name])
                    taken[name].append(time.perf_counter() - begun)
            for name, client in clients.items():
                alone[name].append(taken[name])
                rates[name].append(await _crowd(client, name, bodies[name], calls=max(CROWD, calls)))

    figures: dict[str, dict[str, Any]] = {}
    for name in clients:
        label = "service" if name == "service" else "plain endpoint"
        figures[f"HTTP, {label}, one caller"] = {
            "ms": spread([percentile(values, 50) * 1000 for values in alone[name]]),
            "p99_ms": spread([percentile(values, 99) * 1000 for values in alone[name]]),
        }
        figures[f"HTTP, {label}, {CROWD} callers"] = {"per_s": spread(rates[name])}
    slower = [percentile(s, 50) / percentile(p, 50) for s, p in zip(alone["service"], alone["plain"], strict=True)]
    more = [s / p for s, p in zip(rates["service"], rates["plain"], strict=True)]
    figures["HTTP, service / plain endpoint"] = {"latency_ratio": spread(slower), "rate_ratio": spread(more)}
    return figures, [
        f"over HTTP with one caller the service takes {report.shown(spread(slower))} times as long as the plain "
        f"endpoint; with {CROWD} callers it answers {report.shown(spread(more))} times as many requests per second "
        f"({report.shown(spread(rates['service']), 0)} against {report.shown(spread(rates['plain']), 0)})",
        "the callers share the machine with both servers, so requests per second are a lower bound for each",
    ]


async def _ask(client: Client, name: str, body: bytes) -> list[str]:
    got = await client.request("POST", PATHS[name], body)
    if not got.is_ok:
        raise LoadError(f"the {name} answers {got.code}: {got.body}")
    return [item["item_id"] for item in got.body["items"]]


async def _crowd(client: Client, name: str, body: bytes, *, calls: int) -> float:
    """Requests per second that `CROWD` callers get, each waiting for its answer."""
    tickets = iter(range(calls))

    async def caller() -> None:
        for _ in tickets:
            await _ask(client, name, body)

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CROWD)))
    return calls / (time.perf_counter() - begun)
