"""Two results compare when their machines and conditions are the same."""

import json

import pytest

from loadtests import diff
from loadtests.target import LoadError

A = {
    "benchmark": "open-loop",
    "date": "2026-01-01T00:00:00+00:00",
    "commit": "a" * 40,
    "machine": {"cpu": "x", "cores": 2, "system": "Linux", "python": "3.11", "busy_before": 0.0},
    "conditions": {"k": 20, "rates": [50]},
    "bundle": {"name": "toy"},
    "results": {"p50_ms": {"median": 2.0, "low": 1.9, "high": 2.1}, "recall": 0.4, "sustained": True},
}


def changed(**changes):
    return {**A, **changes}


def write(path, document):
    path.write_text(json.dumps(document))
    return str(path)


def test_equal_conditions_compare():
    assert diff.differences(A, changed(commit="b" * 40, bundle={"name": "other"})) == []


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (changed(benchmark="stages"), "benchmark open-loop against stages"),
        (changed(machine={**A["machine"], "cores": 4}), "machine cores 2 against 4"),
        (changed(machine={**A["machine"], "cpu": "y"}), "machine cpu x against y"),
        (changed(conditions={"k": 10, "rates": [50]}), "conditions k 20 against 10"),
        (changed(conditions={"rates": [50], "k": 20, "seed": 1}), "conditions seed None against 1"),
    ],
)
def test_unlike_conditions_are_named(other, said):
    assert diff.differences(A, other) == [said]


def test_the_figures_stand_side_by_side_with_their_ratio():
    other = {
        "p50_ms": {"median": 3.0, "low": 2.9, "high": 3.1},
        "recall": 0.5,
        "sustained": False,
        "only_here": 1.0,
    }
    assert diff.rows(A, changed(results=other))[1:] == [
        ["p50_ms", "2", "3", "1.500"],
        ["recall", "0.4", "0.5", "1.250"],
    ]


def test_ranges_that_overlap_are_marked():
    other = changed(results={"p50_ms": {"median": 2.2, "low": 2.0, "high": 2.4}})
    assert diff.rows(A, other)[1][-1] == "~1.100"


def test_what_was_not_measured_is_left_out_and_nothing_is_divided_by_zero():
    one = changed(results={"p50_ms": {"median": None, "low": None, "high": None}, "errors": 0, "ndcg": None})
    assert diff.rows(one, changed(results={**A["results"], "errors": 2, "ndcg": 1.0}))[1:] == [
        ["errors", "0", "2", "-"]
    ]


def test_other_machines_are_refused_without_anyway(tmp_path, capsys):
    first = write(tmp_path / "a", A)
    second = write(tmp_path / "b", changed(machine={**A["machine"], "cores": 8}))
    with pytest.raises(LoadError, match=r"cores 2 against 8.*--anyway"):
        diff.main([first, second])
    assert diff.main([first, second, "--anyway"]) == 0
    out = capsys.readouterr().out
    assert "unlike: machine cores 2 against 8" in out
    assert "recall" in out
