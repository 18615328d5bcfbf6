"""`python -m loadtests faults SCENARIO`: one failure under load, or all of them one after the other.

A line of JSON per scenario as it is done, then a table, then one JSON document. The exit status is 1 where an objective
of a scenario is missed; a scenario that cannot be run here is skipped, and says why.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtests import objectives, report
from loadtests.faults.figures import TIMES
from loadtests.faults.play import Given, conditions, played
from loadtests.faults.scenarios import SCENARIOS
from loadtests.faults.servers import Missing
from loadtests.objectives import Objective
from loadtests.report import Report
from loadtests.target import LoadError

ALL = "all"


def run_one(name: str, given: Given, logs: Path | None = None) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The figures of a scenario with the objectives that it missed, and the bundle that it ran on."""
    with tempfile.TemporaryDirectory(prefix="sequitur-faults-") as folder:
        try:
            figures, facts = played(SCENARIOS[name], given, Path(folder))
        except Missing as missing:
            return {"skipped": str(missing)}, {}
        finally:
            if logs is not None:
                (logs / name).mkdir(parents=True, exist_ok=True)
                for log in Path(folder).glob("*.log"):
                    shutil.copy(log, logs / name)
    missed = [line for text in SCENARIOS[name].objectives for line in Objective.parse(text).missed({name: figures})]
    return {**figures, "passed": not missed, "missed": missed}, facts.bundle


def table(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The results for people; a scenario a row. Three figures in one cell are those before, during and after."""
    head = ["scenario", "requests", "failed", "refused e/q", "degraded %", "p99 ms", "goodput/s"]
    rows = [[*head, "recover s", "lost/kept", "foreign", "lag p99 ms", "passed"]]
    for name, figures in results.items():
        if "requests" not in figures:
            rows.append([name, *["-"] * 10, "skipped" if "skipped" in figures else "NO"])
            continue
        recovered = figures["recover_s"]
        rows.append(
            [
                name,
                str(figures["requests"]),
                str(figures["failed"]),
                f"{figures['refused_events']}/{figures['refused_questions']}",
                _three(figures["degraded_share"], 100),
                _three(figures["p99_ms"]),
                _three(figures["goodput_per_s"]),
                "never" if recovered is None else f"{recovered:.2f}",
                f"{figures['lost']}/{figures['acknowledged']}",
                str(figures["foreign"]),
                f"{figures['lag_p99_ms']:.1f}",
                "yes" if figures["passed"] else "NO",
            ]
        )
    return rows


def _three(value: Mapping[str, float], factor: float = 1.0) -> str:
    return " ".join(f"{value[name] * factor:.1f}" for name in TIMES)


def notes(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences on what did not hold or could not be run."""
    said = [f"{name} was skipped: {figures['skipped']}" for name, figures in results.items() if "skipped" in figures]
    said += [line for figures in results.values() for line in figures.get("missed", ())]
    for name, figures in results.items():
        if figures.get("generator_cpu", 0) > 0.85:
            said.append(f"{name}: the caller used {figures['generator_cpu']:.0%} of a core, its limit")
    return [*said, "refused e/q: events and questions that got a 503 with the time to come back"]


def main(arguments: Sequence[str]) -> int:
    """The exit status: 1 when an objective is missed."""
    listed = "\n".join(f"  {name:<18} {scenario.what}" for name, scenario in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="python -m loadtests faults",
        description=f"{__doc__}\nscenarios:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenario", choices=(*SCENARIOS, ALL), metavar="SCENARIO", help="one of the above, or all")
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/demo"), help="what is served")
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=5.0, help="before, during and after the trouble, each")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds before that are sent and not counted")
    parser.add_argument("--users", type=int, default=1_000, help="each with a history of their own")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and users")
    parser.add_argument("--cores", type=int, nargs=2, metavar=("SERVICE", "REST"), help="the service on one core, this "
                        "generator, Redis and the line on another (0 1 where there are two)")  # fmt: skip
    parser.add_argument("--swaps", type=int, default=5, help="of bundles")
    parser.add_argument("--every", type=float, default=10.0, help="seconds from one swap to the next")
    parser.add_argument("--logs", type=Path, help="keep what the processes said in this directory")
    objectives.add_requirements(parser)
    report.add_record(parser)
    asked = parser.parse_args(arguments)
    if min(asked.rate, asked.seconds, asked.every, asked.users, asked.swaps) <= 0 or asked.warmup < 0:
        raise LoadError("rate, seconds, users, swaps and their distance have to be above 0")
    if asked.record:
        report.refuse_dirty()
    machine = report.Machine.here()
    cores = _cores(asked.cores)
    given = Given(
        asked.bundle,
        rate=asked.rate,
        seconds=asked.seconds,
        warmup=asked.warmup,
        users=asked.users,
        seed=asked.seed,
        cores=cores,
        swaps=asked.swaps,
        every_s=asked.every,
    )
    results: dict[str, dict[str, Any]] = {}
    bundle: Mapping[str, Any] = {}
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, {cores[1]})
    try:
        for name in SCENARIOS if asked.scenario == ALL else (asked.scenario,):
            try:
                results[name], served = run_one(name, given, asked.logs)
            except LoadError as error:
                if asked.scenario != ALL:
                    raise
                results[name], served = {"passed": False, "missed": [f"{name} could not be run: {error}"]}, {}
            bundle = bundle or served
            print(json.dumps({"scenario": name, **report.finite(results[name])}, allow_nan=False), flush=True)
    finally:
        os.sched_setaffinity(0, before)
    done = Report("faults", conditions(given), bundle, results, table(results), machine, notes(results))
    report.emit(done, record=asked.record)
    status = objectives.judge(results, asked.require)
    for line in (line for figures in results.values() for line in figures.get("missed", ())):
        sys.stderr.write(f"missed: {line}\n")
    return 1 if status or not all(figures.get("passed", True) for figures in results.values()) else 0


def _cores(asked: Sequence[int] | None) -> tuple[int, int] | None:
    """The core of the service and that of everything else; None where there is only one.

    Raises:
        LoadError: they are not ours to run on.
    """
    ours = sorted(os.sched_getaffinity(0))
    if asked is None:
        return (ours[0], ours[1]) if len(ours) > 1 else None
    if not set(asked) <= set(ours):
        raise LoadError(f"cores {asked[0]} and {asked[1]} are not both ours to run on; there are {ours}")
    return asked[0], asked[1]
