"""The command: a line a scenario, a table, an exit status."""

import json
import os

import pytest

from loadtests import report
from loadtests.faults import command
from loadtests.faults.scenarios import SCENARIOS
from loadtests.faults.servers import Missing
from loadtests.target import Facts, LoadError

FACTS = Facts({"name": "toy", "digest": "0" * 64}, ("a",), frozenset("a"), True)


def figures(**changes):
    """Those of a run in which all is well."""
    three = {"before": 1.0, "during": 2.0, "after": 3.0}
    zeros = ("failed", "refused_events", "refused_questions", "foreign", "stale", "ineligible", "repeated", "malformed")
    return {
        **dict.fromkeys((*zeros, "lost", "stored_twice", "unread"), 0),
        **dict.fromkeys(("degraded_share", "p99_ms", "question_p99_ms", "goodput_per_s"), three),
        **{"requests": 9, "acknowledged": 7, "recover_s": 0.5, "lag_p99_ms": 0.1, "generator_cpu": 0.2, "felt": 1},
        **{"stepped_s": 7_200, "workers": 2, "replaced": 1},
        **changes,
    }


@pytest.fixture
def plays(monkeypatch):
    """Replaces what is played by figures, or by an exception."""
    found = {}

    def played(scenario, _given, _folder):
        name = next(name for name, one in SCENARIOS.items() if one is scenario)
        got = found.get(name, figures())
        if isinstance(got, Exception):
            raise got
        return got, FACTS

    monkeypatch.setattr(command, "played", played)
    monkeypatch.setattr(report, "LOOK_S", 0.0)  # how busy the machine is matters to nobody here
    return found


def test_a_scenario_is_a_line_a_table_and_a_document(plays, capsys):
    plays["clock-step"] = figures(recover_s=0.25, lost=0)
    before = os.sched_getaffinity(0)
    assert command.main(["clock-step"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[0])["scenario"] == "clock-step"
    assert json.loads(lines[0])["passed"] is True
    assert "0.25" in lines[2]
    document = json.loads(lines[-1])
    assert document["benchmark"] == "faults"
    assert document["results"]["clock-step"]["acknowledged"] == 7
    assert document["bundle"]["name"] == "toy"
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("changes", [{"foreign": 1}, {"lost": 1}, {"failed": 1}, {"recover_s": None}])
def test_a_missed_objective_is_said_and_is_the_exit_status(plays, capsys, changes):
    plays["clock-step"] = figures(**changes)
    assert command.main(["clock-step"]) == 1
    told = capsys.readouterr()
    assert f"missed: clock-step/{next(iter(changes))} is" in told.err
    assert json.loads(told.out.splitlines()[0])["missed"]


def test_all_goes_on_where_one_cannot_be_run_and_skips_what_is_not_here(plays, capsys):
    plays["redis-killed"] = LoadError("no such bundle")
    plays["disk-full"] = Missing("run this one as root")
    assert command.main(["all"]) == 1
    out = capsys.readouterr().out
    results = json.loads(out.splitlines()[-1])["results"]
    assert list(results) == list(SCENARIOS)
    assert results["redis-killed"]["missed"] == ["redis-killed could not be run: no such bundle"]
    assert results["disk-full"] == {"skipped": "run this one as root"}
    assert "note: disk-full was skipped: run this one as root" in out


def test_one_alone_that_is_skipped_fails_nobody(plays):
    plays["disk-full"] = Missing("run this one as root")
    assert command.main(["disk-full"]) == 0


def test_one_alone_that_cannot_be_run_is_refused(plays):
    plays["clock-step"] = LoadError("no such bundle")
    with pytest.raises(LoadError, match="no such bundle"):
        command.main(["clock-step"])


@pytest.mark.parametrize("options", [["--rate", "0"], ["--seconds", "-1"], ["--cores", "0", "4711"]])
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(LoadError):
        command.main(["clock-step", *options])


def test_a_generator_at_its_limit_says_so(plays, capsys):
    plays["clock-step"] = figures(generator_cpu=0.97)
    command.main(["clock-step"])
    assert "the caller used 97% of a core" in capsys.readouterr().out
