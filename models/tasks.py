"""What a ranker is to predict, as an option says it: `click; like: value >= 4; buy: event_type == purchase`.

    tasks      = task { ";" task }
    task       = name [ ":" comparison [ "and" comparison ] ]
    comparison = "value" op number | "value" op "q" share | "event_type" "==" type

A name alone means any event: the item was taken at all. `q0.8` is the value that 80 % of the training events with a
value (and of the type, where one is named) do not exceed; it becomes a number here, and the number is what a manifest
stores. Nothing is guessed from the log: without the option a ranker predicts `DEFAULT` alone.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from models.errors import InvalidOption
from models.histories import Histories
from retrieval.features import ALL
from retrieval.sequences import FloatArray, History
from retrieval.tasks import COMPARE, Task

DEFAULT = "click"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_OPS = "|".join(sorted(COMPARE, key=len, reverse=True))
_VALUE = re.compile(rf"value\s*({_OPS})\s*(q?)(-?\d*\.?\d+(?:[eE][+-]?\d+)?)")
_TYPE = re.compile(r"event_type\s*==\s*(\S.*)")


def parse(text: str, event_types: Sequence[str], histories: Histories) -> tuple[Task, ...]:
    """The tasks of an option.

    Args:
        text: see the module.
        event_types: the log's vocabulary.
        histories: the training part: where quantiles are taken, and where every task must occur.

    Raises:
        InvalidOption: the text is none of the grammar, a name stands twice, an event type is unknown, values are
            compared where there are none, or no training event fulfils a task.
    """
    tasks: list[Task] = []
    start = 0
    for part in text.split(";"):
        task = _task(part, start, event_types, histories)
        if task.name in [other.name for other in tasks]:
            raise InvalidOption(f"tasks: the name {task.name!r} stands twice; give each task its own")
        tasks.append(task)
        start += len(part) + 1
    return tuple(tasks)


def outcomes(tasks: Sequence[Task], events: History) -> FloatArray:
    """float32, shape (n, T): 1 where an event fulfils a task, 0 where not, NaN where it lacks the value to judge by."""
    out = np.empty((len(events), len(tasks)), dtype=np.float32)
    for t, task in enumerate(tasks):
        out[:, t] = task.holds(events)
        if task.op is not None:
            out[replace(task, op=None).holds(events) & np.isnan(events.values), t] = np.nan
    return out


def _task(part: str, start: int, event_types: Sequence[str], histories: Histories) -> Task:
    name, colon, condition = part.partition(":")
    at = start + len(part) - len(part.lstrip())
    if not _NAME.fullmatch(name.strip()):
        raise _unreadable(name.strip(), at, "a name of letters, digits, - and _")
    task = Task(name.strip())
    if task.name == ALL:
        raise InvalidOption(f"tasks: {ALL!r} is the name of the whole history; call the task otherwise")
    if not colon:
        return task
    share: float | None = None
    at = start + len(name) + 1
    for said in re.split(r"(\s+and\s+)", condition):
        comparison, place = said.strip(), at + len(said) - len(said.lstrip())
        at += len(said)
        if comparison == "and":
            continue
        if (found := _TYPE.fullmatch(comparison)) and task.event_type is None:
            task = replace(task, event_type=_code(found[1], event_types))
        elif (found := _VALUE.fullmatch(comparison)) and task.op is None:
            number = float(found[3])
            if found[2]:
                share, number = number, 0.0
                if not 0 <= share <= 1:
                    raise _unreadable(comparison, place, "a share from q0 to q1")
            task = replace(task, op=found[1], value=number)
        else:
            raise _unreadable(
                comparison, place, "`value >= 4`, `value >= q0.8` or `event_type == purchase`, each at most once"
            )
    if task.op is not None:
        values = _values(task, histories, event_types)
        if share is not None:
            task = replace(task, value=float(np.quantile(values, share, method="inverted_cdf")))
    if not task.holds(histories.span(0, len(histories.rows))).any():
        raise InvalidOption(f"tasks: no training event fulfils {task.name!r} ({condition.strip()}); change or drop it")
    return task


def _values(task: Task, histories: Histories, event_types: Sequence[str]) -> FloatArray:
    """float32, shape (n,): the values that a task compares."""
    known = np.isfinite(histories.values)
    of_type = ""
    if task.event_type is not None:
        known &= histories.event_types == task.event_type
        of_type = f" of type {event_types[task.event_type - 1]!r}"
    if not known.any():
        raise InvalidOption(
            f"tasks: {task.name!r} compares values, and no training event{of_type} has one; use event types"
        )
    return histories.values[known]


def _code(event_type: str, event_types: Sequence[str]) -> int:
    if event_type not in event_types:
        known = ", ".join(event_types) or "none"
        raise InvalidOption(f"tasks: event type {event_type!r} is not in this log, which has {known}")
    return event_types.index(event_type) + 1


def _unreadable(what: str, at: int, expected: str) -> InvalidOption:
    return InvalidOption(f"tasks: {what!r} at character {at + 1} cannot be read; expected {expected}")
