"""An objective is met by the worst repetition, or it is missed."""

import json

import pytest

from loadtests import objectives
from loadtests.objectives import Objective, judge
from loadtests.target import LoadError

RESULTS = {
    "50/s": {"p99_ms": {"median": 10.0, "low": 9.0, "high": 12.0}, "errors": 0, "sustained": True},
    "100/s": {"p99_ms": {"median": 20.0, "low": 19.0, "high": 21.0}, "errors": 3, "sustained": False},
}


@pytest.mark.parametrize(
    ("text", "misses"),
    [
        ("p99_ms<=21", 0),
        ("p99_ms<=20.5", 1),
        ("p99_ms<=11", 2),
        ("50/s/p99_ms<=12", 0),
        ("50/s/p99_ms <= 11", 1),
        ("p99_ms>=9", 0),
        ("p99_ms>=10", 1),
        ("errors==0", 1),
        ("50/s/errors==0", 0),
        ("sustained==1", 1),
        ("p99_ms==10", 2),
    ],
)
def test_every_figure_of_that_name_is_judged_by_its_worst(text, misses):
    assert len(Objective.parse(text).missed(RESULTS)) == misses


@pytest.mark.parametrize("text", ["", "p99_ms", "p99_ms<5", "p99_ms<=", "<=5", "p99_ms<=1e", "p99_ms=5"])
def test_what_is_no_objective_is_refused(text):
    with pytest.raises(LoadError, match="not an objective"):
        Objective.parse(text)


def test_an_objective_that_judges_nothing_does_not_pass():
    with pytest.raises(LoadError, match="no figure is called 'p99'"):
        judge(RESULTS, ["p99<=1000"])


@pytest.mark.parametrize("op", ["<=", ">="])
def test_what_was_not_measured_is_missed(op):
    assert judge({"p50_ms": float("nan")}, [f"p50_ms{op}5"]) == 1
    assert judge({"p50_ms": {"median": None, "low": None, "high": None}}, [f"p50_ms{op}5"]) == 1
    assert judge({"p50_ms": None}, [f"p50_ms{op}5"]) == 1


def test_missed_objectives_are_named(capsys):
    assert judge(RESULTS, ["errors==0", "50/s/p99_ms<=12"]) == 1
    assert capsys.readouterr().err == "missed: 100/s/errors is 3, and should be == 0\n"


def test_a_kept_result_can_be_judged(tmp_path, capsys):
    path = tmp_path / "out"
    path.write_text("table\n" + json.dumps({"results": RESULTS}))
    assert objectives.main([str(path), "p99_ms<=30"]) == 0
    assert objectives.main([str(path), "p99_ms<=5"]) == 1
    assert capsys.readouterr().out == "met\nmissed\n"
