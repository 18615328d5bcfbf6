"""Tasks: which events fulfil what, and conditions that are none."""

import json
import math
import operator
from typing import Any

import numpy as np
import pytest

from retrieval.errors import BundleTorn, InvalidInput
from retrieval.sequences import EMPTY, History
from retrieval.tasks import COMPARE, Task

COMPARED = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt, "==": operator.eq}


def history(rng: np.random.Generator, n: int) -> History:
    values = rng.integers(1, 6, n).astype(np.float32)
    values[rng.random(n) < 0.3] = np.nan
    return History(rng.integers(1, 9, n), rng.integers(0, 4, n), values, np.arange(n, dtype=np.float64))


@pytest.mark.parametrize("event_type", [None, 0, 2])
@pytest.mark.parametrize("op", [None, *COMPARED])
def test_events_that_fulfil_a_task(op: str | None, event_type: int | None) -> None:
    h = history(np.random.default_rng(3), 200)
    task = Task("x", event_type, op, math.nan if op is None else 3.0)
    expected = [
        (event_type is None or kind == event_type) and (op is None or COMPARED[op](value, 3.0))
        for kind, value in zip(h.event_types.tolist(), h.values.tolist(), strict=True)
    ]
    held = task.holds(h)
    assert (held.dtype, held.tolist()) == (np.bool_, expected)
    assert any(expected)


def test_every_comparison_is_tried() -> None:
    assert set(COMPARED) == set(COMPARE)


def test_a_value_is_compared_in_the_precision_in_which_it_is_kept() -> None:
    kept = History.of_events(np.array([1, 2]), [1, 1], [0.1, None], [0.0, 0.0])
    assert Task("x", op=">=", value=0.1).holds(kept).tolist() == [True, False]
    assert Task("x", op="==", value=0.1).holds(kept).tolist() == [True, False]


def test_empty() -> None:
    assert Task("x", 1, ">=", 4.0).holds(EMPTY).shape == (0,)


@pytest.mark.parametrize(
    "task", [Task("click"), Task("buy", 3), Task("like", op=">=", value=4.0), Task("a", 0, "<", 2)]
)
def test_it_survives_its_own_text(task: Task) -> None:
    back = Task.parse(json.loads(json.dumps(task.to_json(), allow_nan=False)))
    assert back.to_json() == task.to_json()
    assert (
        back.holds(history(np.random.default_rng(0), 50)).tolist()
        == task.holds(history(np.random.default_rng(0), 50)).tolist()
    )


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"op": "!="}, "compares by '!=' with 1.0; use one of >=, >"),
        ({"op": ">", "value": math.nan}, "and a number"),
        ({"op": ">", "value": math.inf}, "and a number"),
        ({"name": ""}, "a name and a code"),
        ({"event_type": -1}, "event type -1"),
        ({"event_type": 1.5}, "event type 1.5"),
    ],
)
def test_a_condition_that_is_none_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        Task(**{"name": "x", "value": 1.0, **fields})


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"name": "x", "colour": 1},
        {"name": "x", "op": "!="},
        {"name": "x", "op": ">", "value": "4"},
        {"name": "x", "event_type": "click"},
        {"name": "x", "event_type": [1]},
    ],
)
def test_torn(raw: dict[str, Any]) -> None:
    with pytest.raises(BundleTorn, match="a task of the manifest cannot be read"):
        Task.parse(raw)
