"""Offered load: requests leave when they are due, whether or not earlier ones have come back.

A client that waits for its answers slows down with the service and so hides its worst moments. Here arrivals are a
Poisson process fixed before the run, and latency counts from the moment a request was due: waiting for a connection,
and being late oneself, is in it. How late the generator was is reported beside, so that one sees who was slow.

A rate is *sustained* when at least 98 % of what was due in the measured time was answered well in that time.
"""

import argparse
import asyncio
import gc
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests import objectives, report, target
from loadtests.client import Client, connected
from loadtests.report import Report, percentile
from loadtests.target import Facts, LoadError
from loadtests.traffic import Readers, Step, arrivals

SUSTAINED = 0.98
MOST_REQUESTS = 200_000  # of one run; all of them are prepared before it
LATE_MS = 5.0  # a generator later than this for one request in a hundred measures itself
BULK = 500  # events of one call


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of one request, `done` on the clock of the run; `wrong` is the promise that its answer broke."""

    code: str
    is_ok: bool
    done: float
    wrong: str | None = None
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Timed:
    """One request, in seconds from the start of the run: when it was due, when it left, when its answer was there."""

    due: float
    left: float
    done: float
    got: Checked

    @property
    def is_good(self) -> bool:
        """Whether the answer came and kept the promise."""
        return self.got.is_ok and self.got.wrong is None


Send = Callable[[int], Awaitable[Checked]]


async def offer(
    due: npt.NDArray[np.float64], send: Send, *, clock: Callable[[], float] = time.perf_counter
) -> list[Timed]:
    """Sends request n when `due[n]` has come, and never waits for an answer before the next one.

    Args:
        due: float64, shape (n,), ascending: seconds from the start.
        send: carries one request out; its `done` is on `clock`.
        clock: seconds from some fixed moment.
    """
    started = clock()

    async def carry(number: int) -> Timed:
        left = clock() - started
        got = await send(number)
        return Timed(float(due[number]), left, got.done - started, got)

    tasks = []
    for number, moment in enumerate(due):
        # A late generator still lets answers in before it sends the next request.
        await asyncio.sleep(max(0.0, started + moment - clock()))
        tasks.append(asyncio.create_task(carry(number)))
    return list(await asyncio.gather(*tasks))


def measured(run: Sequence[Timed], *, begin: float, end: float) -> dict[str, Any]:
    """The figures of one run.

    Args:
        run: all requests, those of the warm-up included.
        begin: seconds; latency is that of requests due from here on, until `end`.
        end: seconds; answers that came between `begin` and `end` are what was achieved.
    """
    counted = [one for one in run if begin <= one.due < end]
    if not counted:
        raise LoadError(f"no request was due within {end - begin:g} s; raise --rate or --seconds")
    good = [one for one in counted if one.is_good]
    arrived = sum(one.is_good and begin <= one.done < end for one in run)
    lags = [one.left - one.due for one in counted]
    offered, achieved = len(counted) / (end - begin), arrived / (end - begin)
    return {
        "requests": len(counted),
        "offered_per_s": round(offered, 2),
        "achieved_per_s": round(achieved, 2),
        "sustained": achieved >= SUSTAINED * offered,
        **report.latencies([one.done - one.due for one in good]),
        "from_leaving_p50_ms": round(percentile([one.done - one.left for one in good], 50) * 1000, 4),
        "from_leaving_p99_ms": round(percentile([one.done - one.left for one in good], 99) * 1000, 4),
        "lag_p99_ms": round(percentile(lags, 99) * 1000, 4),
        "lag_max_ms": round(max(lags) * 1000, 4),
        "errors": sum(not one.got.is_ok for one in counted),
        "wrong": sum(one.got.wrong is not None for one in counted),
        "codes": dict(Counter(one.got.code for one in counted)),
        "wrong_by": dict(Counter(one.got.wrong for one in counted if one.got.wrong is not None)),
        "degraded_by": dict(Counter(reason for one in counted for reason in one.got.degraded)),
    }


class Session:
    """Carries steps of readers out, and holds each answer to what the service knew when it was asked.

    Args:
        client: to the service.
        facts: about it.
        steps: one per request.
        k: items of each question.
        is_stored: whether histories live in the service; else each question carries its own.
        pasts: what the service has been told before the run.
    """

    def __init__(
        self,
        client: Client,
        facts: Facts,
        steps: Sequence[Step],
        *,
        k: int,
        is_stored: bool,
        pasts: dict[str, list[str]] | None = None,
    ) -> None:
        self._client = client
        self._facts = facts
        self._steps = steps
        self._k = k
        self._is_stored = is_stored
        self._hides = bool(facts.model.get("exclude_seen"))
        self._bodies = [self._body(step) for step in steps]
        # By user: what the service has confirmed, and what has been sent to it.
        self._confirmed: dict[str, set[str]] = {user: set(past) for user, past in (pasts or {}).items()}
        self._sent: dict[str, set[str]] = {user: set(past) for user, past in (pasts or {}).items()}

    def _body(self, step: Step) -> bytes:
        body: dict[str, Any]
        if step.item_id is not None:
            body = {"events": [{"user_id": step.user_id, "item_id": step.item_id, "event_type": "click"}]}
        elif self._is_stored:
            body = {"user_id": step.user_id, "k": self._k}
        else:
            body = {"history": step.history, "k": self._k, "consent": False}
        return json.dumps(body).encode()

    async def send(self, number: int) -> Checked:
        """Carries one step out."""
        step, body = self._steps[number], self._bodies[number]
        if step.item_id is not None:
            self._sent.setdefault(step.user_id, set()).add(step.item_id)
            got = await self._client.request("POST", "/v1/events", body)
            done = time.perf_counter()
            if got.is_ok:
                self._confirmed.setdefault(step.user_id, set()).add(step.item_id)
            return Checked(got.code, got.is_ok, done)
        hidden = self._hidden(step)
        got = await self._client.request("POST", "/v1/recommendations", body)
        done = time.perf_counter()
        if not got.is_ok:
            return Checked(got.code, False, done)
        perhaps = self._sent.get(step.user_id, set()) if self._is_stored and self._hides else set()
        wrong = self._facts.wrong_with(got.body, k=self._k, hidden=hidden, perhaps=perhaps)
        return Checked(got.code, True, done, wrong, tuple(got.body["degraded_reasons"]))

    def _hidden(self, step: Step) -> set[str]:
        if not self._hides:
            return set()
        return set(self._confirmed.get(step.user_id, ())) if self._is_stored else set(step.history)


async def run(
    url: str,
    facts: Facts,
    *,
    rate: float,
    seconds: float,
    warmup: float,
    seed: int,
    k: int,
    is_stored: bool,
    connections: int,
    timeout_s: float,
) -> dict[str, Any]:
    """One run at one offered rate."""
    due = arrivals(rate, warmup + seconds, seed=seed)
    readers = Readers(facts.item_ids, seed=seed, prefix=f"load-{secrets.token_hex(4)}")
    pasts = readers.pasts
    wanted = (step for step in readers.steps(rate) if is_stored or step.item_id is None)
    steps = list(islice(wanted, len(due)))
    async with connected(url, connections=connections, timeout_s=timeout_s) as client:
        if is_stored:
            # Only those who will come: the store has to hold them, not everybody who might have come.
            pasts = {user: pasts[user] for user in {step.user_id for step in steps} if user in pasts}
            await _tell(client, pasts)
        session = Session(client, facts, steps, k=k, is_stored=is_stored, pasts=pasts if is_stored else None)
        return await driven(session, due, begin=warmup, end=warmup + seconds)


async def driven(session: Session, due: npt.NDArray[np.float64], *, begin: float, end: float) -> dict[str, Any]:
    """Carries a session out; the figures of what was due between `begin` and `end`, and how busy we were."""
    gc.collect()
    gc.freeze()  # the prepared requests are not garbage; looking through them during the run would be our lag
    cpu, wall = time.process_time(), time.perf_counter()
    timed = await offer(due, session.send)
    busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
    gc.unfreeze()
    return {**measured(timed, begin=begin, end=end), "generator_cpu": round(busy, 3)}


async def _tell(client: Client, pasts: dict[str, list[str]]) -> None:
    now = time.time()
    events = [
        # A second apart and all of them before now, so that the order is the one of the past.
        {"user_id": user, "item_id": item_id, "event_type": "view", "timestamp": now - len(past) + place}
        for user, past in pasts.items()
        for place, item_id in enumerate(past)
    ]
    for start in range(0, len(events), BULK):
        got = await client.post("/v1/events", {"events": events[start : start + BULK]})
        if not got.is_ok:
            raise LoadError(f"the readers' past could not be stored: {got.code} {got.body}")


def bottlenecks(figures: Mapping[str, Any], rate: float) -> list[str]:
    """Sentences on what the caller itself may have spoiled."""
    found = []
    if figures["lag_p99_ms"]["median"] > LATE_MS:
        found.append(
            f"{rate:g}/s: at p99 requests left {figures['lag_p99_ms']['median']:.1f} ms late, which is the caller's "
            "share of the latency; give it a core of its own (--cores)"
        )
    if figures["generator_cpu"]["median"] > 0.85:
        found.append(f"{rate:g}/s: the caller used {figures['generator_cpu']['median']:.0%} of a core: its limit")
    if not figures["sustained"]:
        found.append(f"{rate:g}/s was NOT SUSTAINED; its percentiles describe a growing queue")
    return found


def table(results: dict[str, Any]) -> list[list[str]]:
    """The results for people; a rate a row."""
    head = ["offered/s", "achieved/s", "sustained", "p50 ms", "p90 ms", "p99 ms", "p99.5 ms", "max ms"]
    rows = [[*head, "lag p99 ms", "errors", "wrong"]]
    for figures in results.values():
        timed = [report.shown(figures[name]) for name in (*report.QUANTILES, "lag_p99_ms")]
        rows.append(
            [
                f"{figures['offered_per_s']['median']:.1f}",
                f"{figures['achieved_per_s']['median']:.1f}",
                "yes" if figures["sustained"] else "NO",
                *timed,
                str(figures["errors"]),
                str(figures["wrong"]),
            ]
        )
    return rows


def main(arguments: Sequence[str]) -> int:
    """The exit status: 1 when an objective is missed."""
    parser = argparse.ArgumentParser(prog="python -m loadtests open-loop", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service")
    parser.add_argument("--rate", default="50", help="requests per second offered; several: 50,100,200")
    parser.add_argument("--seconds", type=float, default=30.0, help="measured time of a run")
    parser.add_argument("--warmup", type=float, default=5.0, help="seconds before it that are sent and not counted")
    parser.add_argument("--repeats", type=int, default=3, help="runs at each rate")
    parser.add_argument("--connections", type=int, default=64, help="requests on their way at once")
    parser.add_argument("--history", choices=("body", "stored"), default="body", help="where histories live; stored: "
                        "half of the requests are events")  # fmt: skip
    parser.add_argument("--k", type=int, default=20, help="items per answer")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and readers")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds until an answer is given up")
    parser.add_argument("--cores", help="run this generator on these cores only, for example 1 or 2,3")
    objectives.add_requirements(parser)
    report.add_record(parser)
    given = parser.parse_args(arguments)
    rates = [float(rate) for rate in given.rate.split(",")]
    for rate in rates:
        if rate <= 0 or given.seconds <= 0 or rate * (given.warmup + given.seconds) > MOST_REQUESTS:
            raise LoadError(
                f"{rate:g}/s for {given.warmup + given.seconds:g} s is not a run of 1 to {MOST_REQUESTS} requests; "
                "change --rate or --seconds"
            )
    if given.record:
        report.refuse_dirty()
    machine = report.Machine.here()
    if given.cores:
        os.sched_setaffinity(0, {int(core) for core in given.cores.split(",")})
    facts = target.learn(given.url)
    results: dict[str, Any] = {}
    notes: list[str] = []
    for rate in rates:
        runs = [
            asyncio.run(
                run(
                    given.url,
                    facts,
                    rate=rate,
                    seconds=given.seconds,
                    warmup=given.warmup,
                    seed=given.seed + repeat,
                    k=given.k,
                    is_stored=given.history == "stored",
                    connections=given.connections,
                    timeout_s=given.timeout,
                )
            )
            for repeat in range(given.repeats)
        ]
        results[f"{rate:g}/s"] = figures = report.spreads(runs)
        notes += bottlenecks(figures, rate)
    notes.append("latency counts from when a request was due; [lowest highest] of the repetitions")
    names = ("seconds", "warmup", "repeats", "connections", "history", "k", "seed", "cores")
    conditions = {"rates": rates, **{name: getattr(given, name) for name in names}}
    done = Report("open-loop", conditions, facts.bundle, results, table(results), machine, notes)
    report.emit(done, record=given.record)
    return objectives.judge(results, [*objectives.SOUND, "sustained==1", *given.require])
