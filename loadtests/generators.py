"""A generator behind the service, on one core: how long a request takes, where the time goes, how many it can take.

Served are the given bundle at several beam widths and, beside it, an encoder: the bundle's own, which answers when the
generator is late, or that of another bundle. A width is written into the manifest of a copy, for a request cannot ask
for one. Each has a process of its own, all of them on one core, where whoever is not asked sleeps; this side runs on
another core.

First one caller at a time, in turns by blocks of calls: latency, and its parts as the service times them. `model` is
what runs the graphs (`prefill`, `decode`, `encode`), `mask` what chooses among items (`beam`, `retrieve`), and `rest`
everything else until the answer is here, HTTP on both sides included. Then an open loop at rising rates, until one is
not *held*: sustained, no error, p99 from the due moment within the bound in every repetition, and at most one answer in
a hundred given by something simpler than the model that was asked.
"""

import argparse
import asyncio
import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from loadtests import objectives, open_loop, replay, report, rivals, target
from loadtests.client import Client, connected
from loadtests.report import Report, percentile
from loadtests.target import PATIENCE_MS, Facts, LoadError
from loadtests.traffic import LONGEST_HISTORY, Readers, Step, arrivals

MANIFEST = "manifest.json"
DENSE = "dense"
PARTS = {"model": ("prefill", "decode", "encode"), "mask": ("beam", "retrieve")}
SIMPLER = 0.01  # of the answers: with more than this given by something simpler, a rate is not held
SYNTHETIC = 2_000  # histories, where there are no cases
TIMEOUT_S = 30.0
History = tuple[str, ...]
N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request got. `stages` are the service's own milliseconds, `generated` the share of its items."""

    seconds: float
    code: str
    wrong: str | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    generated: float = 0.0
    exact: bool = False
    degraded: tuple[str, ...] = ()


def read_manifest(bundle: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """A generating bundle's manifest, and what a report says of the bundle.

    Raises:
        LoadError: there is none, or the bundle does not generate.
    """
    try:
        raw = (bundle / MANIFEST).read_bytes()
        manifest = json.loads(raw)
        kind, model = manifest["kind"], manifest["model"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise LoadError(f"{bundle} holds no manifest that can be read ({error!r}); give a bundle directory") from error
    if kind != "generative":
        raise LoadError(f"{bundle} is of kind {kind!r} and generates nothing; give a bundle of kind 'generative'")
    digest = hashlib.sha256(raw).hexdigest()
    return manifest, {"name": model, "bundle": f"{bundle.resolve().name}@{digest[:12]}", "digest": digest}


def variants(bundle: Path, beams: Sequence[int], dense: Path | None, folder: Path) -> dict[str, Path]:
    """What is to be served, by name: copies in `folder` that differ in the manifest, and `dense` where it is given.

    The manifest lists the digests of all other files, and nothing lists its own.
    """
    manifest, _ = read_manifest(bundle)

    def copy(name: str, **changes: Any) -> Path:
        shutil.copytree(bundle, folder / name)
        (folder / name / MANIFEST).write_text(json.dumps({**manifest, **changes}))
        return folder / name

    made = {f"M={m}": copy(f"beams-{m}", generation={**manifest["generation"], "beams": m}) for m in beams}
    if dense is not None:
        made[DENSE] = dense
    elif "encoder" in manifest["graphs"]:
        made[DENSE] = copy(DENSE, kind="encoder", generation={})
    return made


@contextmanager
def running_on(core: int) -> Iterator[None]:
    """This thread, and processes that it starts meanwhile, on one core.

    Raises:
        LoadError: there is no such core for us.
    """
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {core})
    except OSError as error:
        raise LoadError(f"core {core} is not ours to run on; there are {sorted(before)}") from error
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def drawn(facts: Facts, cases: Path | None, *, seed: int) -> list[History]:
    """Histories to ask with, in an order that depends on the seed: those of the cases, else of synthetic readers."""
    if cases is None:
        steps = (step.history for step in Readers(facts.item_ids, seed=seed).steps(rate=100.0) if step.item_id is None)
        return list(islice((history for history in steps if history), SYNTHETIC))
    known = [case.history[-LONGEST_HISTORY:] for case in replay.read_cases(cases)]
    return [known[at] for at in np.random.default_rng(seed).permutation(len(known))]


async def ask(client: Client, facts: Facts, history: History, *, k: int) -> Asked:
    """One request, and what came of it."""
    body = json.dumps({"history": history, "k": k, "consent": False}).encode()
    begun = time.perf_counter()
    got = await client.request("POST", rivals.PATHS["service"], body)
    seconds = time.perf_counter() - begun
    if not got.is_ok:
        return Asked(seconds, got.code)
    sources = [item["source"] for item in got.body["items"]]
    return Asked(
        seconds,
        got.code,
        facts.wrong_with(got.body, k=k, hidden=history if facts.model.get("exclude_seen") else ()),
        got.body["timings_ms"],
        sources.count("generated") / max(1, len(sources)),
        got.body.get("exact", False),
        tuple(got.body["degraded_reasons"]),
    )


async def one_by_one(
    urls: Mapping[str, str], facts: Facts, histories: Sequence[History], *, k: int, rounds: int, calls: int
) -> dict[str, dict[str, Any]]:
    """One caller: each variant is asked with the same histories, block by block, in every round in another order."""
    runs: dict[str, list[list[Asked]]] = {name: [] for name in urls}
    async with AsyncExitStack() as up:
        clients = {
            name: await up.enter_async_context(connected(url, connections=1, timeout_s=TIMEOUT_S))
            for name, url in urls.items()
        }
        for turn in range(-1, rounds):  # the first one is not measured
            block = [histories[(max(turn, 0) * calls + n) % len(histories)] for n in range(calls)]
            names = list(clients)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                asked = [await ask(clients[name], facts, history, k=k) for history in block]
                if turn >= 0:
                    runs[name].append(asked)
    figures = {}
    for name, blocks in runs.items():
        stages = {stage for asked in blocks for one in asked for stage in one.stages}
        figures[name] = report.spreads([parts(asked, sorted(stages)) for asked in blocks])
    return figures


def parts(asked: Sequence[Asked], stages: Sequence[str]) -> dict[str, Any]:
    """The figures of one block: latency, and where the time went, with the mean milliseconds of some stages.

    Raises:
        LoadError: nothing was answered.
    """
    fine = [one for one in asked if one.code == "200"]
    if not fine:
        raise LoadError(f"not one of {len(asked)} requests was answered: {dict(Counter(one.code for one in asked))}")
    spent = sum(one.seconds for one in fine) * 1000
    taken: Counter[str] = Counter()
    for one in fine:
        taken.update(one.stages)
    shares = {part: sum(taken[stage] for stage in own) / spent for part, own in PARTS.items()}
    return {
        "requests": len(asked),
        "p50_ms": percentile([one.seconds for one in fine], 50) * 1000,
        "p99_ms": percentile([one.seconds for one in fine], 99) * 1000,
        "per_s": 1000 * len(fine) / spent,
        **{f"{part}_share": share for part, share in shares.items()},
        "rest_share": 1 - sum(shares.values()),
        **{f"{stage}_ms": taken[stage] / len(fine) for stage in stages},
        "generated": sum(one.generated for one in fine) / len(fine),
        "exact": sum(one.exact for one in fine) / len(fine),
        "errors": len(asked) - len(fine),
        "wrong": sum(one.wrong is not None for one in fine),
        "degraded_by": dict(Counter(reason for one in fine for reason in one.degraded)),
    }


async def offered(
    url: str,
    facts: Facts,
    histories: Sequence[History],
    *,
    rate: float,
    seconds: float,
    warmup: float,
    seed: int,
    k: int,
) -> dict[str, Any]:
    """One run of an open loop."""
    due = arrivals(rate, warmup + seconds, seed=seed)
    steps = [Step("", None, histories[(seed * 1_000 + n) % len(histories)]) for n in range(len(due))]
    async with connected(url, connections=256, timeout_s=TIMEOUT_S) as client:
        session = open_loop.Session(client, facts, steps, k=k, is_stored=False)
        return await open_loop.driven(session, due, begin=warmup, end=warmup + seconds)


def is_held(figures: Mapping[str, Any], bound_ms: float) -> bool:
    """Whether a rate is; see the module."""
    simpler = sum(count for reason, count in figures["degraded_by"].items() if reason != "no_history")
    is_own = simpler <= SIMPLER * figures["requests"]
    return bool(figures["sustained"] and not figures["errors"] and is_own and figures["p99_ms"]["high"] <= bound_ms)


def climb(
    urls: Mapping[str, str],
    facts: Facts,
    histories: Sequence[History],
    *,
    rates: Sequence[float],
    repeats: int,
    bound_ms: float,
    **run: Any,
) -> dict[str, dict[str, Any]]:
    """Figures by variant and rate: each variant as far as the first rate that it does not hold, in turns."""
    figures: dict[str, dict[str, Any]] = {}
    climbing = list(urls)
    for rate in rates:
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in climbing}
        for repeat in range(repeats):
            for name in climbing:
                runs[name].append(asyncio.run(offered(urls[name], facts, histories, rate=rate, seed=repeat, **run)))
        for name, own in runs.items():
            found = report.spreads(own)
            figures[f"{name}, {rate:g}/s"] = {**found, "held": is_held(found, bound_ms)}
        climbing = [name for name in climbing if figures[f"{name}, {rate:g}/s"]["held"]]
    return figures


def most_held(loaded: Mapping[str, Mapping[str, Any]], name: str) -> float:
    """The highest rate that a variant held, as achieved; 0 when it held none."""
    rates = [
        own["achieved_per_s"]["median"] for at, own in loaded.items() if at.startswith(f"{name}, ") and own["held"]
    ]
    return float(max(rates, default=0.0))


def table(alone: Mapping[str, Mapping[str, Any]], loaded: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The results for people."""
    rows = [["", "per s", "p50 ms", "p99 ms", "model", "mask", "rest", "generated", "exact", "held"]]
    for name, own in alone.items():
        timed = [report.shown(own[key]) for key in ("per_s", "p50_ms", "p99_ms")]
        shares = [own[key]["median"] for key in ("model_share", "mask_share", "rest_share", "generated", "exact")]
        rows.append([f"{name}, one caller", *timed, *(f"{share:.1%}" for share in shares), ""])
    for name, own in loaded.items():
        timed = [report.shown(own[key]) for key in ("achieved_per_s", "p50_ms", "p99_ms")]
        rows.append([name, *timed, *[""] * 5, "yes" if own["held"] else "NO"])
    return rows


def said(alone: Mapping[str, Mapping[str, Any]], loaded: Mapping[str, Mapping[str, Any]], bound_ms: float) -> list[str]:
    """What a reader has to know, in sentences."""
    notes = ["shares are of the time of one caller, from sending a request to having its answer"]
    for name, own in alone.items():
        held = own["held_per_s"]
        notes.append(f"{name}: {held:.0f} requests per second with a p99 of at most {bound_ms:g} ms")
        if all(figures["held"] for at, figures in loaded.items() if at.startswith(f"{name}, ")):
            notes.append(f"{name} held all rates that were offered; --rate goes no further")
    for name, figures in {**alone, **loaded}.items():
        if figures["degraded_by"]:
            notes.append(f"{name}: degraded answers, {figures['degraded_by']} of {figures['requests']}")
    for name, figures in loaded.items():
        variant, _, rate = name.rpartition(", ")
        notes += [f"{variant}: {line}" for line in open_loop.bottlenecks(figures, float(rate.removesuffix("/s")))]
    return notes


def numbers(text: str, kind: Callable[[str], N]) -> list[N]:
    """The numbers of an option, ascending."""
    try:
        found = sorted({kind(word) for word in text.split(",")})
    except ValueError:
        found = []
    if not found or not 0 < found[0] <= found[-1] < math.inf:
        raise LoadError(f"{text!r} is not a list of positive numbers; separate them by commas, as in 20,50")
    return found


def main(arguments: Sequence[str]) -> int:
    """The exit status: 1 when an objective is missed, errors and wrong answers at rates that were held among them."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests generators", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="of kind generative")
    parser.add_argument(
        "--dense", type=Path, help="bundle to stand beside it; left out: its own encoder, if it has one"
    )
    parser.add_argument("--beams", default="20,50", help="widths")
    parser.add_argument("--cases", type=Path, help="JSON lines with `history`, from `models cases`; left out: "
                        "synthetic readers")  # fmt: skip
    parser.add_argument("--k", type=int, default=10, help="items per answer")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of calls by one caller, for each variant")
    parser.add_argument("--calls", type=int, default=400, help="of a block")
    parser.add_argument("--rate", default="20,30,40,60,80,100,150,200,300,400,600,800", help="per second, open loop")
    parser.add_argument("--bound-ms", type=float, default=100.0, help="p99 that a rate has to keep")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured time of a run at a rate")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds before it that are sent and not counted")
    parser.add_argument("--repeats", type=int, default=3, help="runs at each rate")
    parser.add_argument("--deadline-ms", type=float, default=PATIENCE_MS, help="of a request; as it is, every answer "
                        "waits for its model")  # fmt: skip
    parser.add_argument("--cores", type=int, nargs=2, metavar=("SERVICE", "OURS"), help="left out: the first and the "
                        "last of this machine")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of the histories")
    objectives.add_requirements(parser)
    report.add_record(parser)
    given = parser.parse_args(arguments)
    beams, rates = numbers(given.beams, int), numbers(given.rate, float)
    for name in ("rounds", "calls", "repeats"):
        if getattr(given, name) < 1:
            raise LoadError(f"--{name} {getattr(given, name)} measures nothing; it must be at least 1")
    if given.record:
        report.refuse_dirty()
    _, about = read_manifest(given.bundle)
    machine = report.Machine.here()
    ours = sorted(os.sched_getaffinity(0))
    cores = given.cores or [ours[0], ours[-1]]
    with tempfile.TemporaryDirectory(prefix="sequitur-generators-") as folder, ExitStack() as up:
        served = variants(given.bundle, beams, given.dense, Path(folder))
        with running_on(cores[0]):
            urls = {
                name: up.enter_context(rivals.serving(path, threads=1, deadline_ms=given.deadline_ms))
                for name, path in served.items()
            }
        up.enter_context(running_on(cores[1]))
        facts = target.learn(next(iter(urls.values())))
        histories = drawn(facts, given.cases, seed=given.seed)
        alone = asyncio.run(one_by_one(urls, facts, histories, k=given.k, rounds=given.rounds, calls=given.calls))
        loaded = climb(
            urls,
            facts,
            histories,
            rates=rates,
            repeats=given.repeats,
            bound_ms=given.bound_ms,
            seconds=given.seconds,
            warmup=given.warmup,
            k=given.k,
        )
    for name, own in alone.items():
        own["held_per_s"] = most_held(loaded, name)
    notes = said(alone, loaded, given.bound_ms)
    if DENSE not in urls:
        notes.append("the bundle has no encoder and --dense names none, so nothing stands beside it")
    if cores[0] == cores[1]:
        notes.append("there is one core for both sides, so each slows the other")
    names = ("k", "rounds", "calls", "bound_ms", "seconds", "warmup", "repeats", "deadline_ms", "seed")
    conditions = {
        "beams": beams,
        "rates": rates,
        "histories": f"{len(histories)} {'synthetic' if given.cases is None else 'of cases'}",
        "history_median": float(np.median([len(history) for history in histories])),
        "cores": cores,
        **{name: getattr(given, name) for name in names},
    }
    results = {**alone, **loaded}
    report.emit(
        Report("generators", conditions, about, results, table(alone, loaded), machine, notes), record=given.record
    )
    judged = {name: own for name, own in results.items() if own.get("held", True)}
    return objectives.judge(judged, [*objectives.SOUND, *given.require])
