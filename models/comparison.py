"""Scorers side by side: one table, the baselines always in it, and a plain word for whoever does not beat them."""

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models import baselines, metrics
from models.evaluate import Measure, OnProgress, Report, Scorer, Seen, evaluate
from models.histories import Histories
from models.splits import Cases
from retrieval.errors import InvalidInput

RESULTS_HEADER = """\
# Results

Measured by `python -m models compare`, appended and never edited. Each section names the command, the commit and the
digest of the data, so that it can be run again. Brackets are 95 % bootstrap intervals over users; a difference is
paired, and a model has beaten the best baseline only where the interval of the difference lies above 0.
"""


@dataclass(frozen=True, eq=False)
class Line:
    """One scorer of a comparison.

    Attributes:
        report: what it reached.
        difference: of the headline measure to the best baseline, paired; None for that baseline itself.
        verdict: the difference in words.
        remark: what else is to be said, for example training minutes.
    """

    report: Report
    difference: Measure | None
    verdict: str
    remark: str = ""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Scorers on the same cases, baselines first.

    Attributes:
        lines: one per scorer.
        headline: the measure by which the best baseline is chosen and differences are taken.
        best: name of the best baseline.
    """

    lines: Sequence[Line]
    headline: str
    best: str

    @property
    def protocol(self) -> str:
        """What was asked of every line."""
        return self.lines[0].report.protocol

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {
            "protocol": self.protocol,
            "headline": self.headline,
            "best_baseline": self.best,
            "models": [
                line.report.to_json()
                | {
                    "difference": None if line.difference is None else line.difference.to_json(),
                    "verdict": line.verdict,
                    "remark": line.remark,
                }
                for line in self.lines
            ],
        }

    def __str__(self) -> str:
        """A Markdown table, its columns aligned so that a terminal shows it as well."""
        first = self.lines[0].report
        names = [*first.measures, *first.coverage]
        head = ["model", *names, f"{self.headline} - {self.best}", "", "remark"]
        body = [
            [
                line.report.name,
                *(str(line.report.measures[n]) for n in first.measures),
                *(f"{line.report.coverage[n]:.3f}" for n in first.coverage),
                "" if line.difference is None else _signed(line.difference),
                line.verdict,
                line.remark.replace("|", "/"),
            ]
            for line in self.lines
        ]
        if not any(line.remark for line in self.lines):
            head, body = head[:-1], [cells[:-1] for cells in body]
        widths = [max(len(cells[at]) for cells in [head, *body]) for at in range(len(head))]
        rows = [head, ["-" * width for width in widths], *body]
        table = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
        asked = f"{first.n_cases:,} cases of {first.n_users:,} users"
        return "\n".join([f"{self.protocol}; {asked}", "", *table])


def compare(
    scorers: Sequence[Scorer],
    train: Histories,
    cases: Cases,
    *,
    n_items: int,
    ks: Sequence[int] = (10, 20),
    seen: Seen = "filtered",
    negatives: int | None = None,
    seed: int = 0,
    lists: Sequence[Report] = (),
    remarks: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
) -> Comparison:
    """The comparison of scorers and of every baseline, fitted on the same training part.

    Args:
        scorers: what is judged; none at all compares the baselines.
        train: what the baselines learn from.
        cases, n_items, ks, seen, negatives, seed, on_progress: as in `evaluate`.
        lists: reports on the same cases of models that give lists and no scores; what is not in a list is a miss.
        remarks: by name.

    Raises:
        InvalidInput: two scorers bear the same name, or `evaluate` refuses.
    """
    counted = baselines.fitted(train, n_items)
    everyone: list[Scorer] = [*counted, *scorers]
    names = [*(scorer.name for scorer in everyone), *(listed.name for listed in lists)]
    if len(set(names)) < len(names):
        raise InvalidInput(f"the scorers {names} do not all have names of their own; rename one")
    reports = [
        evaluate(
            scorer,
            cases,
            n_items=n_items,
            ks=ks,
            seen=seen,
            negatives=negatives,
            seed=seed,
            on_progress=on_progress,
        )
        for scorer in everyone
    ]
    for listed in lists:
        if not listed.protocol.endswith(f"seen items {seen}") or listed.users is not cases.users:
            raise InvalidInput(f"{listed.name} was not judged on these cases with seen items {seen}; evaluate it again")
        reports.append(replace(listed, protocol=reports[0].protocol))
    return beside(reports, {scorer.name for scorer in counted}, headline=f"ndcg@{ks[0]}", seed=seed, remarks=remarks)


def beside(
    reports: Sequence[Report],
    baseline_names: set[str],
    *,
    headline: str,
    seed: int = 0,
    remarks: Mapping[str, str] | None = None,
) -> Comparison:
    """Reports on the same cases, put beside the best of those that are baselines.

    Raises:
        InvalidInput: the reports are not on the same cases, or none is of a baseline.
    """
    known = [report for report in reports if report.name in baseline_names]
    if not known:
        raise InvalidInput("there is no baseline among the reports, so there is nothing to be better than")
    if any(report.protocol != reports[0].protocol or len(report.ranks) != len(known[0].ranks) for report in reports):
        raise InvalidInput("the reports are not on the same cases under the same protocol; evaluate them again")
    best = max(known, key=lambda report: report.measures[headline].value)
    lines = []
    for report in reports:
        verdict, difference = "best baseline", None
        if report is not best:
            difference = paired(report, best, headline, seed=seed)
            verdict = _verdict(difference, best.name, is_baseline=report.name in baseline_names)
        lines.append(Line(report, difference, verdict, (remarks or {}).get(report.name, "")))
    return Comparison(lines, headline, best.name)


def paired(report: Report, other: Report, measure: str, *, seed: int = 0) -> Measure:
    """By how much a report exceeds another on the same cases, with the paired interval."""
    k = int(measure.partition("@")[2])
    mine, theirs = (metrics.per_case(r.ranks, (k,))[measure] for r in (report, other))
    values = (mine - theirs)[:, None]
    low, high = metrics.intervals(values, report.users, seed=seed)[0]
    return Measure(float(values.mean()), float(low), float(high))


def append_results(
    path: Path, comparison: object, *, title: str, date: str, command: str, commit: str, data_digest: str
) -> None:
    """Adds a section to a results file, which is made where it is missing; what stands there stays.

    The file is replaced in one step: a killed run leaves it as it was.

    Args:
        path: `models/RESULTS.md`.
        comparison: what was found; its text is the body of the section.
        title: the data set in a word or two.
        date: ISO 8601.
        command: what was typed.
        commit: of the code, with `-dirty` where it had changes.
        data_digest: of the event log.
    """
    before = path.read_text() if path.exists() else RESULTS_HEADER
    section = f"""
## {date}: {title}

`{command}`

Commit `{commit}`, data `{data_digest}`.

{comparison}
"""
    beside_it = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with beside_it.open("w") as out:
            out.write(before.rstrip("\n") + "\n" + section)
            out.flush()
            os.fsync(out.fileno())
        beside_it.replace(path)
    finally:
        beside_it.unlink(missing_ok=True)


def _verdict(difference: Measure, best: str, *, is_baseline: bool) -> str:
    if is_baseline:
        return "baseline"
    if difference.low > 0:
        return f"beats {best}"
    return f"loses to {best}" if difference.high < 0 else f"does not beat {best}"


def _signed(measure: Measure) -> str:
    return f"{measure.value:+.4f} [{measure.low:+.4f}, {measure.high:+.4f}]"
