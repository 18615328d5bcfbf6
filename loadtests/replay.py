"""Held-out users over HTTP: the quality of what is served, measured where it is served.

Offline evaluation and serving are two paths through the same model. This asks the running service what it recommends
to test users and scores the answers: the figures have to be those of `python -m models evaluate` on the same bundle.

Each line of the cases is `{"history": [item ids, oldest first], "target": item id}`. What a request cannot carry of a
long history (it takes 1,000 events) is excluded by the filter where seen items are excluded, so that both paths rank
the same items.

    recall@k = share of cases whose target is among the k items
    ndcg@k   = mean of 1 / log2(1 + rank of the target), 0 where it is not among them
"""

import argparse
import asyncio
import json
import math
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests import objectives, report, target
from loadtests.client import Client, Outcome, connected
from loadtests.report import Report
from loadtests.target import PATIENCE_MS, Facts, LoadError
from loadtests.traffic import LONGEST_HISTORY

BULK = 500  # events of one call


@dataclass(frozen=True, slots=True)
class Case:
    """One held-out user."""

    history: tuple[str, ...]
    target: str


@dataclass(frozen=True, slots=True)
class Served:
    """What one case got: the rank of its target from 1 on, 0 where it is missing."""

    rank: int
    seconds: float
    code: str
    is_ok: bool
    wrong: str | None = None
    degraded: tuple[str, ...] = ()


def read_cases(path: Path) -> list[Case]:
    """The cases of a file.

    Raises:
        LoadError: a line that is none, by its number; no file; no case.
    """
    cases = []
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise LoadError(f"{path} cannot be read ({error.strerror}); `python -m models cases` writes it") from error
    for number, line in enumerate(lines, start=1):
        try:
            raw = json.loads(line)
            history, wanted = raw["history"], raw["target"]
        except (ValueError, TypeError, KeyError) as error:
            raise LoadError(f"{path}:{number} is not a case with `history` and `target` ({error!r})") from error
        if not isinstance(history, list) or not all(isinstance(item, str) for item in (*history, wanted)):
            raise LoadError(f"{path}:{number}: `history` is a list of item ids and `target` is one")
        cases.append(Case(tuple(history), wanted))
    if not cases:
        raise LoadError(f"{path} holds no case; `python -m models cases` writes some")
    return cases


class Replay:
    """Asks for one case after another.

    Args:
        client: to the service.
        facts: about it.
        k: items of each answer.
        through: `body`: histories travel in the request, and nothing is stored; `events`: they are stored first, read
            back by the service, and erased afterwards.
        exclude_seen: as in the request; None leaves it to the model.
    """

    def __init__(self, client: Client, facts: Facts, *, k: int, through: str, exclude_seen: bool | None) -> None:
        self._client = client
        self._facts = facts
        self._k = k
        self._through = through
        self._exclude_seen = exclude_seen
        self._hides = bool(facts.model.get("exclude_seen")) if exclude_seen is None else exclude_seen
        self._prefix = f"replay-{secrets.token_hex(6)}"

    async def serve(self, number: int, case: Case) -> Served:
        """What the service recommends to one user."""
        user_id = f"{self._prefix}-{number}"
        body = self._body(case)
        if self._through == "body":
            body |= {"history": case.history[-LONGEST_HISTORY:], "consent": False}
            return await self._ask(case, body)
        try:
            got = await self._remember(user_id, case.history[-LONGEST_HISTORY:])
            return await self._ask(case, body | {"user_id": user_id}) if got.is_ok else Served(0, 0.0, got.code, False)
        finally:
            await self._client.request("DELETE", f"/v1/users/{user_id}")

    def _body(self, case: Case) -> dict[str, Any]:
        body: dict[str, Any] = {"k": self._k, "deadline_ms": PATIENCE_MS}  # quality is asked for, not speed
        if self._exclude_seen is not None:
            body["exclude_seen"] = self._exclude_seen
        if self._hides and len(case.history) > LONGEST_HISTORY:
            body["filter"] = {"exclude_ids": sorted(set(case.history[:-LONGEST_HISTORY]))}
        return body

    async def _remember(self, user_id: str, history: Sequence[str]) -> Outcome:
        first = time.time() - len(history)
        got = Outcome("202")
        for start in range(0, len(history), BULK):
            events = [
                {"user_id": user_id, "item_id": item_id, "timestamp": first + place}
                for place, item_id in enumerate(history[start : start + BULK], start)
            ]
            got = await self._client.post("/v1/events", {"events": events})
            if not got.is_ok or got.body["accepted"] != len(events):
                return Outcome(got.code if not got.is_ok else "events refused")
        return got

    async def _ask(self, case: Case, body: dict[str, Any]) -> Served:
        started = time.perf_counter()
        got = await self._client.post("/v1/recommendations", body)
        seconds = time.perf_counter() - started
        if not got.is_ok:
            return Served(0, seconds, got.code, False)
        items = got.body["items"]
        rank = next((place for place, item in enumerate(items, 1) if item["item_id"] == case.target), 0)
        wrong = self._facts.wrong_with(got.body, k=self._k, hidden=case.history if self._hides else ())
        return Served(rank, seconds, got.code, True, wrong, tuple(got.body["degraded_reasons"]))


async def run(replay: Replay, cases: Sequence[Case], *, concurrency: int) -> list[Served]:
    """All cases, `concurrency` of them at a time."""
    waiting: Iterator[tuple[int, Case]] = iter(enumerate(cases))
    served: list[Served] = []

    async def work() -> None:
        for number, case in waiting:  # one iterator for all workers: each case is taken once
            served.append(await replay.serve(number, case))

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return served


def scored(served: Sequence[Served]) -> dict[str, Any]:
    """The figures. A case without an answer counts as a miss: errors must never look like quality."""
    n = len(served)
    hits = [one.rank for one in served if one.rank]
    fine = [one for one in served if one.is_ok]
    timed = report.latencies([one.seconds for one in fine])
    return {
        "cases": n,
        "recall": round(len(hits) / n, 6),
        "ndcg": round(math.fsum(1 / math.log2(1 + rank) for rank in hits) / n, 6),
        "errors": n - len(fine),
        "wrong": sum(one.wrong is not None for one in served),
        **{name: timed[name] for name in ("p50_ms", "p99_ms", "max_ms")},
        "codes": dict(Counter(one.code for one in served)),
        "wrong_by": dict(Counter(one.wrong for one in served if one.wrong is not None)),
        "degraded_by": dict(Counter(reason for one in served for reason in one.degraded)),
    }


def main(arguments: Sequence[str]) -> int:
    """The exit status: 1 when an answer was missing or wrong, or an objective is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service")
    parser.add_argument("--cases", type=Path, required=True, help="JSON lines with `history` and `target`")
    parser.add_argument("--k", type=int, default=10, help="items per answer")
    parser.add_argument("--through", choices=("body", "events"), default="body", help="how histories get there")
    parser.add_argument("--exclude-seen", action=argparse.BooleanOptionalAction, help="left out: as the model says")
    parser.add_argument("--limit", type=int, help="only the first cases")
    parser.add_argument("--concurrency", type=int, default=8, help="cases at a time")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds until an answer is given up")
    objectives.add_requirements(parser)
    report.add_record(parser)
    given = parser.parse_args(arguments)
    if given.concurrency < 1:
        raise LoadError(f"--concurrency {given.concurrency} asks nobody; it must be at least 1")
    if given.record:
        report.refuse_dirty()
    machine = report.Machine.here()
    cases = read_cases(given.cases)[: given.limit]
    facts = target.learn(given.url)

    async def measure() -> list[Served]:
        async with connected(given.url, connections=given.concurrency, timeout_s=given.timeout) as client:
            replay = Replay(client, facts, k=given.k, through=given.through, exclude_seen=given.exclude_seen)
            return await run(replay, cases, concurrency=given.concurrency)

    results = scored(asyncio.run(measure()))
    head = [f"R@{given.k}", f"NDCG@{given.k}", "cases", "errors", "wrong", "p50 ms", "p99 ms"]
    row = [f"{results['recall']:.4f}", f"{results['ndcg']:.4f}", str(results["cases"]), str(results["errors"])]
    row += [str(results["wrong"]), f"{results['p50_ms']:.2f}", f"{results['p99_ms']:.2f}"]
    seen = facts.model.get("exclude_seen") if given.exclude_seen is None else given.exclude_seen
    notes = [f"full ranking, seen items {'left out' if seen else 'kept in'}; latency in a closed loop"]
    long = sum(len(case.history) > LONGEST_HISTORY for case in cases)
    if long:
        notes.append(f"{long} histories are longer than the {LONGEST_HISTORY} events of a request")
    if results["degraded_by"]:
        notes.append(f"degraded answers, which are no measure of the model: {results['degraded_by']}")
    conditions = {
        "k": given.k,
        "through": given.through,
        "exclude_seen": seen,
        "cases": len(cases),
        "concurrency": given.concurrency,
    }
    report.emit(Report("replay", conditions, facts.bundle, results, [head, row], machine, notes), record=given.record)
    return objectives.judge(results, [*objectives.SOUND, *given.require])
