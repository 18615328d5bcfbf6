"""Numbers that can be trusted later: percentiles, spreads, and the conditions that every result travels with.

A result is one JSON document, the last line of a command's output. Above it stands the same as a table for people.
`--record` adds both to `RESULTS.md`, and refuses where the work tree holds changes that no commit names.
"""

import argparse
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.target import LoadError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
QUANTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "p99_5_ms": 99.5, "max_ms": 100.0}
BUSY_SHARE = 0.1  # of the cores: with more than this in use before the run, the machine was not quiet
LOOK_S = 0.3
SPREAD = {"median", "low", "high"}


def percentile(values: npt.ArrayLike, q: float) -> float:
    """The smallest value that at least `q` percent of all values do not exceed (nearest rank); NaN of nothing."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not len(ordered):
        return math.nan
    rank = math.ceil(q / 100 * len(ordered) - 1e-9)  # 99.5 % of 200 is 199, whatever the last bit says
    return float(ordered[max(rank, 1) - 1])


def latencies(seconds: npt.ArrayLike) -> dict[str, float]:
    """The usual percentiles, in milliseconds."""
    return {name: round(percentile(seconds, q) * 1000, 4) for name, q in QUANTILES.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    """What repetitions of one measurement gave: median, lowest, highest."""
    figures = {"median": float(np.median(values)), "low": float(min(values)), "high": float(max(values))}
    return {name: round(value, 6) for name, value in figures.items()}


def spreads(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Repetitions of one measurement, name by name: numbers as their spread, mappings likewise, counts added up."""
    merged: dict[str, Any] = {}
    for name, first in runs[0].items():
        values = [run[name] for run in runs]
        if isinstance(first, Mapping):
            merged[name] = {key: sum(v.get(key, 0) for v in values) for key in sorted({k for v in values for k in v})}
        elif isinstance(first, bool):
            merged[name] = all(values)
        elif isinstance(first, int):
            merged[name] = sum(values)
        else:
            merged[name] = spread(values)
    return merged


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it ran."""

    cpu: str
    cores: int
    system: str
    python: str
    busy_before: float  # cores in use by others while this command did nothing for a moment

    @classmethod
    def here(cls) -> "Machine":
        """This one, now."""
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        except (OSError, StopIteration):
            cpu = platform.machine()
        busy = _busy_cores()
        cores = len(os.sched_getaffinity(0))
        return cls(cpu, cores, platform.system(), platform.python_version(), busy)

    @property
    def is_quiet(self) -> bool:
        """Whether little else was running."""
        return self.busy_before <= BUSY_SHARE * self.cores


def _busy_cores() -> float:
    """Cores that were in use over `LOOK_S` seconds; a load average would still remember the benchmark before."""

    def jiffies() -> tuple[int, int]:
        spent = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(spent), spent[3] + spent[4]  # idle, and waiting for a disk

    try:
        all_before, idle_before = jiffies()
        time.sleep(LOOK_S)
        all_after, idle_after = jiffies()
    except OSError:
        return round(os.getloadavg()[0], 2)
    whole = max(1, all_after - all_before)
    return round((os.cpu_count() or 1) * (1 - (idle_after - idle_before) / whole), 2)


def commit() -> str:
    """The commit of this work tree, with `-dirty` where it holds changes; `unknown` outside one."""
    try:
        head = _git("rev-parse", "HEAD").strip()
        # Results are written between two measurements of one commit; they change nothing that is measured.
        changed = _git("status", "--porcelain", "--", ".", ":(exclude)*RESULTS.md").strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@dataclass(frozen=True, slots=True)
class Report:
    """One result with its conditions.

    Attributes:
        benchmark: which command.
        conditions: every setting that moves the numbers: two results compare when these are equal.
        bundle: what was served.
        results: the numbers.
        table: header and rows for people.
        machine: as it was before the run.
        notes: what a reader has to know, in sentences.
        headline: what the document says at its top, for those who read one number.
    """

    benchmark: str
    conditions: Mapping[str, Any]
    bundle: Mapping[str, Any]
    results: Mapping[str, Any]
    table: Sequence[Sequence[str]]
    machine: Machine
    notes: Sequence[str] = ()
    headline: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """What is kept for machines."""
        return {
            "benchmark": self.benchmark,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "command": command(),
            "machine": asdict(self.machine),
            "conditions": dict(self.conditions),
            "bundle": dict(self.bundle),
            "results": dict(self.results),
            "notes": list(self.notes),
            **self.headline,
        }


def command(arguments: Sequence[str] | None = None) -> str:
    """The command that is running, paths relative to where it runs: where a checkout lies is nobody's business."""
    words = sys.argv[1:] if arguments is None else arguments
    shown = [os.path.relpath(word) if os.path.isabs(word) else word for word in words]
    return shlex.join(["python", "-m", "loadtests", *shown])


def add_record(parser: argparse.ArgumentParser) -> None:
    """The option of every verb that measures."""
    parser.add_argument("--record", action="store_true", help="add the result to loadtests/RESULTS.md")


def refuse_dirty() -> None:
    """Stops a run whose result could be traced to no commit.

    Raises:
        LoadError: uncommitted changes, or no commit at all.
    """
    state = commit()
    if state == "unknown" or state.endswith("-dirty"):
        raise LoadError(f"a recorded result names the commit that gave it, and this is {state}; commit first")


def emit(report: Report, *, record: bool = False) -> None:
    """Prints a result, its document last; adds it to `RESULTS.md` when it is to be recorded."""
    notes = list(report.notes)
    if not report.machine.is_quiet:
        notes.append(
            f"{report.machine.busy_before} of {report.machine.cores} cores were in use before the run: not quiet"
        )
    table = format_table(report.table)
    document = {**report.document(), "notes": notes}
    line = json.dumps(finite(document), allow_nan=False)
    print("\n".join([table, *(f"note: {note}" for note in notes)]))
    print(line, flush=True)
    if record:
        text = f"\n## {report.benchmark}, {document['date'][:10]}\n\n`{document['command']}`\n\n"
        text += f"Commit {document['commit'][:12]}, {report.machine.cpu}, {report.machine.cores} cores, "
        text += f"bundle {report.bundle.get('name')} {str(report.bundle.get('digest'))[:12]}.\n\n"
        text += "\n".join(f"- {note}" for note in notes) + ("\n\n" if notes else "")
        text += f"```\n{table}\n```\n\n<details><summary>JSON</summary>\n\n```json\n{line}\n```\n\n</details>\n"
        with RESULTS.open("a") as out:
            out.write(text)


def finite(value: Any) -> Any:
    """The same with null for what was not measured: JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns that line up: the first to the left, the others to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def shown(value: Mapping[str, float], digits: int = 2) -> str:
    """A spread for a table: the median, and the range in brackets."""
    return f"{value['median']:.{digits}f} [{value['low']:.{digits}f} {value['high']:.{digits}f}]"


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every number of a result with its path; a spread counts as one, and None is a number that was not measured."""
    if isinstance(value, Mapping) and set(value) != SPREAD:
        for name, inner in value.items():
            yield from leaves(inner, (*path, str(name)))
    elif value is None or isinstance(value, Mapping | bool | int | float):
        yield path, value


def read(path: Path) -> dict[str, Any]:
    """A document from a file that holds it, or whose last line does.

    Raises:
        LoadError: there is none.
    """
    try:
        lines = path.read_text().strip().splitlines()
        document = json.loads(lines[-1])
        if not isinstance(document, dict) or "results" not in document:
            raise ValueError("no results in it")
    except (OSError, ValueError, IndexError) as error:
        raise LoadError(f"{path} does not end in the JSON line of a result ({error})") from error
    return document
