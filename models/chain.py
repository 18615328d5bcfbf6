"""The whole chain: what a retriever finds, what becomes of it when a ranker orders it, and where a good item is lost.

All rankers are given the same lists of the same retriever, so that every difference is between orders of the same
candidates and is paired by user.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models import calibration, metrics
from models.evaluate import Measure, OnProgress, Report, report
from models.lists import Lists
from models.metrics import MISS
from models.splits import Cases
from retrieval.errors import InvalidInput
from retrieval.ranking import OnnxRanker, Ranker
from retrieval.sequences import FloatArray, IntArray

RETRIEVAL = "retrieval alone"
BATCH = 64  # lists that are ranked at a time
HEADLINE = "ndcg@10"
TASK_HEAD = ("task", "share", "AUC", "AUC in a list", "calibration error before", "after", "log loss")


@dataclass(frozen=True, slots=True)
class TaskFigures:
    """How well a task's probabilities order candidates, and how true they are.

    Attributes:
        name: of the task.
        share: of the candidates that fulfil it.
        auc: over all candidates of all lists.
        list_auc: the mean over lists that hold both outcomes.
        error, error_before: expected calibration error with and without calibration.
        log_loss: with it.
    """

    name: str
    share: float
    auc: float
    list_auc: float
    error: float
    error_before: float
    log_loss: float

    @property
    def cells(self) -> tuple[str, ...]:
        """A line of a table under `TASK_HEAD`."""
        areas = (f"{self.auc:.4f}", f"{self.list_auc:.4f}")
        errors = (f"{self.error_before:.5f}", f"{self.error:.5f}", f"{self.log_loss:.5f}")
        return (self.name, f"{self.share:.5f}", *areas, *errors)


@dataclass(frozen=True, eq=False)
class ChainLine:
    """One order of the candidates.

    Attributes:
        report: of the lists that come out.
        difference: of the headline to retrieval alone, paired; None for retrieval itself.
        found: share of the cases whose item stands among the first k.
        lost_in_ranking: share whose item was retrieved and stands further down.
        lost_in_retrieval: share whose item was not retrieved.
        tasks: of a ranker.
        milliseconds: that ranking took per list, in batches.
    """

    report: Report
    difference: Measure | None
    found: float
    lost_in_ranking: float
    lost_in_retrieval: float
    tasks: tuple[TaskFigures, ...] = ()
    milliseconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Chain:
    """Orders of the same candidates, retrieval alone first.

    Attributes:
        lines: one per order.
        candidates: longest list.
        k: of the stage losses.
    """

    lines: Sequence[ChainLine]
    candidates: int
    k: int

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {
            "protocol": self.lines[0].report.protocol,
            "candidates": self.candidates,
            "orders": [
                line.report.to_json()
                | {
                    "difference": None if line.difference is None else line.difference.to_json(),
                    f"found@{self.k}": line.found,
                    "lost_in_ranking": line.lost_in_ranking,
                    "lost_in_retrieval": line.lost_in_retrieval,
                    "tasks": {one.name: _rounded(one) for one in line.tasks},
                    "milliseconds_per_list": round(line.milliseconds, 4),
                }
                for line in self.lines
            ],
        }

    def __str__(self) -> str:
        """Two Markdown tables: the lists, and the tasks."""
        first = self.lines[0].report
        base = first.measures[HEADLINE].value
        head = ["order", *first.measures, f"{HEADLINE} - {RETRIEVAL}", "relative", f"found@{self.k}", "lost in ranking"]
        rows = [
            [
                line.report.name,
                *(str(measure) for measure in line.report.measures.values()),
                "" if line.difference is None else _signed(line.difference),
                "" if line.difference is None or not base else f"{line.difference.value / base:+.1%}",
                f"{line.found:.4f}",
                f"{line.lost_in_ranking:.4f}",
            ]
            for line in self.lines
        ]
        text = [
            f"{first.protocol}; {first.n_cases:,} cases of {first.n_users:,} users; "
            f"{self.lines[0].lost_in_retrieval:.4f} of the items are lost in retrieval",
            "",
            *_table(head, rows),
        ]
        told = [
            [
                line.report.name,
                one.name,
                f"{one.share:.5f}",
                f"{one.auc:.4f}",
                f"{one.list_auc:.4f}",
                f"{one.error_before:.5f}",
                f"{one.error:.5f}",
                f"{one.log_loss:.5f}",
                f"{line.milliseconds:.2f}",
            ]
            for line in self.lines
            for one in line.tasks
        ]
        if told:
            names = [
                "ranker",
                "task",
                "share",
                "AUC",
                "AUC in a list",
                "calibration error before",
                "after",
                "log loss",
                "ms",
            ]
            text += ["", *_table(names, told)]
        return "\n".join(text)


def judge(
    cases: Cases,
    lists: Lists,
    rankers: Mapping[str, OnnxRanker],
    *,
    n_items: int,
    how: str,
    ks: Sequence[int] = (10, 20),
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Chain:
    """What each ranker makes of the same lists.

    Args:
        cases: C questions.
        lists: the candidates of each, in the order in which they were retrieved.
        rankers: by name.
        n_items: catalog size N.
        how: where the lists come from, for the protocol.
        ks: list lengths; stage losses are taken at the first.
        seed: of the intervals.

    Raises:
        InvalidInput: not one list per case.
    """
    if len(lists) != len(cases) or not len(cases):
        raise InvalidInput(f"{len(lists)} lists for {len(cases)} cases; one each, and at least one, is needed")
    longest = int(np.diff(lists.offsets).max(initial=0))

    def line(name: str, order: Sequence[IntArray], began: float) -> tuple[Report, IntArray]:
        ranks = np.full(len(cases), MISS, dtype=np.int64)
        shown = {k: np.zeros(n_items + 1, dtype=np.bool_) for k in ks}
        for case, rows in enumerate(order):
            place = np.flatnonzero(rows == cases.targets[case])
            if len(place):
                ranks[case] = place[0] + 1
            for k in ks:
                shown[k][rows[:k]] = True
        made = report(
            name,
            ranks,
            cases,
            protocol=f"{cases.words}; {how}",
            n_items=n_items,
            ks=ks,
            coverage={f"coverage@{k}": metrics.coverage(shown[k]) for k in ks},
            seen_targets=0,
            seconds=time.perf_counter() - began,
            seed=seed,
        )
        return made, ranks

    found = [lists.rows[lists.span(r)] for r in range(len(lists))]
    base, base_ranks = line(RETRIEVAL, found, time.perf_counter())
    lines = [ChainLine(base, None, *_losses(base_ranks, ks[0]))]
    for name, ranker in rankers.items():
        began = time.perf_counter()
        raw = ranked(ranker.uncalibrated(), lists, on_progress)
        seconds = time.perf_counter() - began
        said = [ranker.settings.calibrated(own) for own in raw]
        weights = ranker.settings.weights(ranker.settings.goals)
        orders = [rows[np.argsort(-np.vecdot(p, weights), kind="stable")] for rows, p in zip(found, said, strict=True)]
        made, ranks = line(name, orders, began)
        change = metrics.per_case(ranks, ks)[HEADLINE] - metrics.per_case(base_ranks, ks)[HEADLINE]
        ((low, high),) = metrics.intervals(change[:, None], cases.users, seed=seed)
        lines.append(
            ChainLine(
                made,
                Measure(float(change.mean()), float(low), float(high)),
                *_losses(ranks, ks[0]),
                tasks=_tasks(ranker.settings.tasks, lists, raw, said),
                milliseconds=1e3 * seconds / len(lists),
            )
        )
    return Chain(lines, longest, ks[0])


def tasks_table(ranker: OnnxRanker, lists: Lists, places: FloatArray | None = None) -> str:
    """The figures of each task over lists with labels, as a Markdown table.

    Args:
        places: float32, shape (P + 1, T): what a place on the page adds to a logit. Without them lists that were shown
            are judged as if every candidate had stood first.
    """
    raw = ranked(ranker.uncalibrated(), lists)
    if places is not None:
        at = places[lists.positions.clip(0, len(places) - 1)]
        raw = [calibration.shifted(own, at[lists.span(r)]) for r, own in enumerate(raw)]
    said = [ranker.settings.calibrated(own) for own in raw]
    return "\n".join(_table(TASK_HEAD, [one.cells for one in _tasks(ranker.settings.tasks, lists, raw, said)]))


def ranked(ranker: Ranker, lists: Lists, on_progress: OnProgress | None = None) -> list[FloatArray]:
    """For each list float32 of shape (n, T): what a ranker says of its candidates."""
    said: list[FloatArray] = []
    for start in range(0, len(lists), BATCH):
        said += ranker.rank(lists.candidates(range(start, min(start + BATCH, len(lists)))))
        if on_progress is not None:
            on_progress(len(said), len(lists))
    return said


def _losses(ranks: IntArray, k: int) -> tuple[float, float, float]:
    """Shares of the cases: found among the first k, retrieved and further down, not retrieved."""
    found, missed = float((ranks <= k).mean()), float((ranks == MISS).mean())
    return found, 1.0 - found - missed, missed


def _tasks(
    tasks: Sequence[str], lists: Lists, raw: Sequence[FloatArray], said: Sequence[FloatArray]
) -> tuple[TaskFigures, ...]:
    """Figures of each task, where both outcomes occur."""
    before, after = np.concatenate(raw), np.concatenate(said)
    group = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    figures = []
    for t, name in enumerate(tasks):
        labels = lists.labels[:, lists.tasks.index(name)]
        known = ~np.isnan(labels)
        labels, own = labels[known], after[known, t]
        if not len(labels) or not 0 < labels.mean() < 1:
            continue
        figures.append(
            TaskFigures(
                name,
                float(labels.mean()),
                calibration.auc(own, labels),
                calibration.group_auc(own, labels, group[known]),
                calibration.expected_error(own, labels),
                calibration.expected_error(before[known, t], labels),
                calibration.log_loss(own, labels),
            )
        )
    return tuple(figures)


def _rounded(one: TaskFigures) -> dict[str, float]:
    return {name: round(getattr(one, name), 6) for name in TaskFigures.__slots__ if name != "name"}


def _signed(measure: Measure) -> str:
    return f"{measure.value:+.4f} [{measure.low:+.4f}, {measure.high:+.4f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cells[at]) for cells in [head, *rows]) for at in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in lines]
