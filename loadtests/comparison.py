"""Ours beside a plain service on the same bundle: the highest rate that each keeps, on one core, in turns.

Four rivals. *plain* is `loadtests.plain`, a FastAPI service that a good engineer writes in a day. *ours* is the service
with everything of production switched on: histories in Redis, API keys, the log of events and served lists, rate limit
and query budget (too high to bite), metrics, next pages. *no-op* is ours on a bundle whose model does nothing: what the
service costs without the model. *empty* is a route of the plain service that returns a constant: what the framework and
this generator can do at all.

Two kinds of work. `stored`: histories live in Redis for both, half of the requests are events and half questions for
recommendations. This is the product, and the ratio is of it unless `--workload` says otherwise. `body`: every question
brings its history along and no store is asked, which measures encoding and serving alone.

Each rival is a process of its own, all pinned to the first core, where whoever is not asked sleeps; generator and
redis-server run on the second. A rate is held when p90 < 7 ms and p99.5 < 15 ms from when requests were due, see
`loadtests.capacity`. The rivals are searched side by side, probe by probe in turn, because a shared machine changes its
speed within a minute; the ratio is that of the two rates of one repetition. Before anything counts, plain and ours
have to give the same items to the same histories.
"""

import argparse
import asyncio
import hashlib
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from loadtests import bundles, capacity, objectives, report, rivals, stores, target, wire
from loadtests.capacity import Bounds, Probe
from loadtests.report import Report, percentile, spread
from loadtests.rivals import Server
from loadtests.target import PATIENCE_MS, Facts, LoadError
from loadtests.traffic import LONGEST_HISTORY, Habits, Readers, Step
from loadtests.wire import Reply, Wire

WORKLOADS = ("stored", "body")
RIVALS = ("plain", "ours", "no-op")
EMPTY = "empty"
AGREE_ON = 50  # histories
CONNECTIONS = 192
PREPARED = 6_000  # requests per rival and workload, asked over and over
BULK = 500  # events of one call
CROWD = 16
CROWD_S = 1.0
# Many users who come about equally often: over minutes of offered load nobody's history should grow out of all measure.
# No newcomers: without a history the model is not asked, and ours calls such an answer degraded.
HABITS = Habits(users=3_000, user_exponent=0.3, newcomer_share=0.0)
PLENTY = 1_000_000
SAMPLE = 0.01  # of request lines: whoever answers a thousand a second reads no line of each
PATHS = {"plain": "/recommendations"}
TOLD = {"plain": "/events"}


@dataclass(slots=True)
class Work:
    """Requests of one workload to one rival, and what makes their answers good."""

    requests: list[bytes]
    is_event: list[bool]
    k: int
    at: int = field(default=0)

    def is_good(self, number: int, reply: Reply) -> bool:
        """Whether an answer is what was asked for: events accepted, `k` items, nothing degraded."""
        if self.is_event[(self.at + number) % len(self.is_event)]:
            return reply.status == 202
        return reply.status == 200 and reply.body.count(b'"score"') == self.k and b'"degraded":true' not in reply.body

    def next(self) -> list[bytes]:
        """The requests from where the last probe ended."""
        return self.requests[self.at :] + self.requests[: self.at]


def work(rival: str, steps: Sequence[Step], *, is_stored: bool, k: int, headers: Mapping[str, str]) -> Work:
    """The same steps for a rival, in its own words."""
    asks, tells = PATHS.get(rival, "/v1/recommendations"), TOLD.get(rival, "/v1/events")
    requests = []
    for step in steps:
        body: dict[str, Any]
        if step.item_id is not None:
            body = {"events": [{"user_id": step.user_id, "item_id": step.item_id, "event_type": "click"}]}
        elif is_stored:
            body = {"user_id": step.user_id, "k": k}
        else:
            body = {"history": step.history, "k": k}
        path = asks if step.item_id is None else tells
        requests.append(wire.encode("POST", path, body, headers=headers))
    return Work(requests, [step.item_id is not None for step in steps], k)


@contextmanager
def serving(bundle: Path, *, redis: str, folder: Path, key: str, cores: Sequence[int]) -> Iterator[Server]:
    """Our service with everything of production switched on that this version has."""
    folder.mkdir()
    keys = folder / "keys"
    keys.write_text(f"bench:read,write,metrics:{hashlib.sha256(key.encode()).hexdigest()}\n")
    own = {
        "SEQUITUR_STORE": redis,
        "SEQUITUR_CORES": str(len(cores)),
        "SEQUITUR_API_KEYS_FILE": str(keys),
        "SEQUITUR_LOG": f"file://{folder / 'log'}",
        "SEQUITUR_RATE_LIMIT": str(PLENTY),
        "SEQUITUR_QUERY_BUDGET": str(PLENTY),
        "SEQUITUR_LOG_SAMPLE": str(SAMPLE),
    }
    own = {name: value for name, value in own.items() if name in rivals.known_settings()}
    command = [sys.executable, "-m", "service", "--bundle", str(bundle.resolve()), "--port", "0"]
    with rivals.launched(command, {**rivals.clean(), **own}, cores=cores) as server:
        yield server


class Contest:
    """The rivals, what they are asked, and what came of it.

    Args:
        facts: of the catalog.
        servers: by rival.
        headers: of requests to ours and no-op.
        seconds: of a probe.
        k: items of an answer.
        seed: of everything that is drawn.
        bounds: what holding a rate is.
    """

    def __init__(
        self,
        facts: Facts,
        servers: Mapping[str, Server],
        *,
        headers: Mapping[str, str],
        seconds: float,
        k: int,
        seed: int,
        bounds: Bounds,
    ) -> None:
        self._bounds = bounds
        self._facts, self._servers, self._headers = facts, servers, headers
        self._seconds, self._k, self._seed = seconds, k, seed
        self._wires: dict[str, Wire] = {}
        self._work: dict[tuple[str, str], Work] = {}
        self._guess: dict[tuple[str, str], float] = {}
        self.probes = 0
        self._turn = asyncio.Lock()  # one probe at a time; whoever has had one stands behind the others
        readers = Readers(facts.item_ids, seed=seed, prefix=f"compare-{secrets.token_hex(4)}", habits=HABITS)
        self._pasts = readers.pasts
        self._steps = {"stored": list(islice(readers.steps(100), PREPARED))}
        asking = (step for step in readers.steps(100) if step.item_id is None)
        self._steps["body"] = [
            replace(step, history=step.history[-LONGEST_HISTORY:]) for step in islice(asking, PREPARED)
        ]

    async def open(self, up: AsyncExitStack) -> None:
        """Connects, tells the stores what happened before, and makes the requests."""
        for name, server in self._servers.items():
            self._wires[name] = await up.enter_async_context(wire.wired(server.url, connections=CONNECTIONS))
        for name in RIVALS:
            headers = {} if name == "plain" else self._headers
            for workload, steps in self._steps.items():
                is_stored = workload == "stored"
                self._work[name, workload] = work(name, steps, is_stored=is_stored, k=self._k, headers=headers)
        request = wire.encode("GET", "/empty")
        self._wires[EMPTY] = self._wires["plain"]
        empty = Work([request], [False], 0)
        for workload in WORKLOADS:
            self._work[EMPTY, workload] = empty
        await self._tell("plain", {})
        await self._tell("ours", self._headers)  # which shares its store with no-op

    async def _tell(self, rival: str, headers: Mapping[str, str]) -> None:
        present = {step.user_id for step in self._steps["stored"]}
        now = time.time()
        events = [
            {"user_id": user, "item_id": item_id, "event_type": "view"}
            | ({} if rival == "plain" else {"timestamp": now - len(past) + place})
            for user, past in self._pasts.items()
            if user in present
            for place, item_id in enumerate(past)
        ]
        for start in range(0, len(events), BULK):
            body = {"events": events[start : start + BULK]}
            request = wire.encode("POST", TOLD.get(rival, "/v1/events"), body, headers=headers)
            reply = await self._wires[rival].send(request)
            if reply.status != 202:
                raise LoadError(f"{rival} could not be told the readers' past: {reply.code} {reply.body[:300]!r}")

    async def agree(self) -> int:
        """Asks plain and ours the same; how often.

        Raises:
            LoadError: they do not answer the same.
        """
        asked = 0
        for workload in WORKLOADS:
            questions = [step for step in self._steps[workload] if step.item_id is None and step.user_id in self._pasts]
            if workload == "stored":
                questions = list({step.user_id: step for step in questions}.values())
            for step in questions[:AGREE_ON]:
                body: dict[str, Any] = {"k": self._k}
                body |= {"user_id": step.user_id} if workload == "stored" else {"history": step.history}
                lists = {
                    "plain": await self._items("plain", body, {}),
                    "ours": await self._items("ours", {**body, "deadline_ms": PATIENCE_MS}, self._headers),
                }
                if lists["plain"] != lists["ours"]:
                    raise LoadError(f"the rivals disagree, so comparing them means nothing: {body} gave {lists}")
                asked += 1
        return asked

    async def _items(self, rival: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> list[str]:
        path = PATHS.get(rival, "/v1/recommendations")
        reply = await self._wires[rival].send(wire.encode("POST", path, body, headers=headers))
        if not reply.is_ok:
            raise LoadError(f"{rival} answers {reply.code}: {reply.body[:300]!r}")
        return [item["item_id"] for item in reply.json()["items"]]

    async def highest(self, rival: str, workload: str) -> Probe:
        """The highest rate that a rival holds now."""
        line, todo = self._wires[rival], self._work[rival, workload]
        guess = self._guess.get((rival, workload))
        if guess is None:
            async with self._turn:
                at_once = await capacity.crowd(line, todo.next(), todo.is_good, callers=CROWD, seconds=CROWD_S)
            if not at_once:
                raise LoadError(f"{rival} gives no good answer to {workload!r} at all")

        async def ask(rate: float) -> Probe:
            async with self._turn:
                self.probes += 1
                got = await capacity.probe(
                    line, todo.next(), todo.is_good, rate=rate, seconds=self._seconds, seed=self._seed + self.probes
                )
            todo.at = (todo.at + len(got.latencies)) % len(todo.requests)
            return got

        best = await capacity.highest(ask, guess or 0.8 * at_once, step=1.06 if guess else 1.12, bounds=self._bounds)
        self._guess[rival, workload] = max(best.rate, 1.0)
        return best


async def measured(contest: Contest, *, repeats: int) -> dict[str, dict[str, list[Probe]]]:
    """By workload and rival: the probe of each repetition, everybody in turns."""
    found: dict[str, dict[str, list[Probe]]] = {workload: {} for workload in WORKLOADS}
    for repeat in range(repeats):
        order = RIVALS if repeat % 2 == 0 else tuple(reversed(RIVALS))
        for workload in WORKLOADS:
            # A floor for orientation: every other repetition is enough.
            asked = [rival for rival in order if rival != "no-op" or repeat % 2 == 0]
            probes = await asyncio.gather(*(contest.highest(rival, workload) for rival in asked))
            for rival, probe in zip(asked, probes, strict=True):
                found[workload].setdefault(rival, []).append(probe)
        if repeat % 2 == 0:
            probe = await contest.highest(EMPTY, "body")
            for workload in WORKLOADS:
                found[workload].setdefault(EMPTY, []).append(probe)
    return found


def figures(found: Mapping[str, Mapping[str, Sequence[Probe]]]) -> dict[str, Any]:
    """The numbers of a contest: by workload and rival, and the ratios."""
    out: dict[str, Any] = {}
    for workload, by_rival in found.items():
        out[workload] = {
            rival: {
                "per_s": spread([probe.rate for probe in probes]),
                "p90_ms": spread([probe.p90_ms for probe in probes]),
                "p99_5_ms": spread([probe.p99_5_ms for probe in probes]),
                "lag_p99_ms": spread([probe.lag_ms for probe in probes]),
                "generator_cpu": spread([probe.busy for probe in probes]),
            }
            for rival, probes in by_rival.items()
        }
        for name, over in (("ratio", "plain"), ("of_no_op", "no-op")):
            pairs = zip(by_rival["ours"], by_rival[over], strict=False)
            ratios = [ours.rate / other.rate for ours, other in pairs if other.rate]
            if name == "of_no_op":  # which has fewer repetitions
                ratios = [percentile([p.rate for p in by_rival["ours"]], 50) / p.rate for p in by_rival[over] if p.rate]
            out[workload][name] = spread(ratios) if ratios else spread([0.0])
    return out


def table(results: Mapping[str, Any]) -> list[list[str]]:
    """The results for people."""
    rows = [["workload, rival", "held/s [low high]", "p90 ms", "p99.5 ms", "lag p99 ms", "generator cpu", "of plain"]]
    for workload, by_rival in results.items():
        for rival in (*RIVALS, EMPTY):
            values = by_rival[rival]
            ratio = report.shown(by_rival["ratio"]) if rival == "ours" else ""
            rows.append(
                [
                    f"{workload}, {rival}",
                    report.shown(values["per_s"], 0),
                    f"{values['p90_ms']['median']:.2f}",
                    f"{values['p99_5_ms']['median']:.2f}",
                    f"{values['lag_p99_ms']['median']:.3f}",
                    f"{values['generator_cpu']['median']:.2f}",
                    ratio,
                ]
            )
    return rows


def doubts(found: Mapping[str, Mapping[str, Sequence[Probe]]]) -> list[str]:
    """Sentences on where the generator, and not a rival, may have been the limit."""
    said = []
    for workload, by_rival in found.items():
        for rival, probes in by_rival.items():
            if rival == EMPTY and workload != WORKLOADS[0]:
                continue  # the same probes
            unsound = [probe for probe in probes if not probe.is_sound]
            if unsound:
                late, busy = max(p.lag_ms for p in unsound), max(p.busy for p in unsound)
                said.append(
                    f"{workload}, {rival}: in {len(unsound)} of {len(probes)} repetitions the generator was up to "
                    f"{late:.2f} ms late at p99 and {busy:.0%} busy: a lower bound for this rival"
                )
        fastest = max(percentile([p.rate for p in by_rival[rival]], 50) for rival in RIVALS)
        empty = percentile([p.rate for p in by_rival[EMPTY]], 50)
        if fastest:
            said.append(
                f"{workload}: the empty route, asked by this generator, keeps {empty / fastest:.1f} times the rate "
                "of the fastest rival"
            )
    return said


async def contested(
    bundle_path: Path,
    *,
    cores: tuple[int, int],
    seconds: float,
    repeats: int,
    k: int,
    seed: int,
    bounds: Bounds,
    pooled: bool,
) -> tuple[dict[str, dict[str, list[Probe]]], dict[str, Any], list[str]]:
    """Starts everybody, and measures: the probes, what is served, and sentences."""
    bundle = bundles.opened(bundle_path)
    key = secrets.token_urlsafe(24)
    headers = {"authorization": f"Bearer {key}"}
    with ExitStack() as up:
        folder = Path(up.enter_context(tempfile.TemporaryDirectory(prefix="sequitur-compare-")))
        redis = up.enter_context(stores.redis())
        first = (cores[0],)
        plain = [sys.executable, "-m", "loadtests.plain", *bundles.plain_command(bundle, folder, threads=1)]
        plain += ["--redis", redis, *(["--pooled"] if pooled else [])]
        ours = serving(bundle.path, redis=redis, folder=folder / "ours", key=key, cores=first)
        no_op = serving(
            bundles.hollow(bundle, folder / "hollow"), redis=redis, folder=folder / "no-op", key=key, cores=first
        )
        servers = {
            "plain": up.enter_context(rivals.launched(plain, rivals.clean(), cores=first)),
            "ours": up.enter_context(ours),
            "no-op": up.enter_context(no_op),
        }
        facts = target.learn(servers["ours"].url, headers)
        contest = Contest(facts, servers, headers=headers, seconds=seconds, k=k, seed=seed, bounds=bounds)
        async with AsyncExitStack() as connected:
            await contest.open(connected)
            agreed = await contest.agree()
            found = await measured(contest, repeats=repeats)
    notes = [
        f"plain and ours gave the same {k} items to {agreed} histories before the run; {contest.probes} probes",
        *doubts(found),
    ]
    return found, facts.bundle, notes


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/demo"), help="what everybody serves")
    parser.add_argument("--workload", choices=WORKLOADS, default="stored", help="whose ratio is the result")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions of plain and ours")
    parser.add_argument("--seconds", type=float, default=1.5, help="measured time of a probe")
    parser.add_argument("--p90-ms", type=float, default=capacity.BOUNDS.p90_ms, help="bound of a rate that is held")
    parser.add_argument("--p99-5-ms", type=float, default=capacity.BOUNDS.p99_5_ms, help="the same")
    parser.add_argument("--k", type=int, default=20, help="items per answer")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and readers")
    parser.add_argument("--pooled", action="store_true", help="plain runs its model in the thread pool")
    parser.add_argument("--cores", help="one for the rivals and one for the generator, for example 0,1")
    objectives.add_requirements(parser)
    report.add_record(parser)
    given = parser.parse_args(arguments)
    if given.record:
        report.refuse_dirty()
    machine = report.Machine.here()
    cores = rivals.two_cores(given.cores)
    os.sched_setaffinity(0, {cores[1]})  # whatever is started from here on runs beside the generator, or says where
    bounds = Bounds(given.p90_ms, given.p99_5_ms)
    found, about, notes = wire.run(
        contested(
            given.bundle,
            cores=cores,
            seconds=given.seconds,
            repeats=given.repeats,
            k=given.k,
            seed=given.seed,
            bounds=bounds,
            pooled=given.pooled,
        )
    )
    results = figures(found)
    ratio = results[given.workload]["ratio"]
    headline = {
        "ratio": ratio["median"],
        "ratio_low": ratio["low"],
        "ratio_high": ratio["high"],
        "workload": given.workload,
    }
    notes.append(
        f"held: p90 < {bounds.p90_ms:g} ms and p99.5 < {bounds.p99_5_ms:g} ms from when due, failures counted as "
        f"infinitely late; the ratio is of {given.workload!r}; [lowest highest] of the repetitions"
    )
    names = ("workload", "repeats", "seconds", "p90_ms", "p99_5_ms", "k", "seed", "pooled")
    conditions = {"cores": list(cores), **{name: getattr(given, name) for name in names}}
    done = Report("compare", conditions, about, results, table(results), machine, notes, headline)
    report.emit(done, record=given.record)
    return objectives.judge(results, given.require)
