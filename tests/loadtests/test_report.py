"""Statistics by hand, and what a result has to bring along."""

import json
import math
import subprocess
from pathlib import Path

import pytest

from loadtests import report
from loadtests.report import Machine, Report, latencies, percentile, spread, spreads
from loadtests.target import LoadError

QUIET = Machine("a processor", 4, "Linux", "3.11", 0.1)


@pytest.mark.parametrize(
    ("values", "q", "expected"),
    [
        (range(1, 11), 50, 5),
        (range(1, 11), 90, 9),
        (range(1, 11), 91, 10),
        (range(1, 11), 99, 10),
        (range(1, 201), 99.5, 199),
        (range(1, 201), 99.6, 200),
        (range(1, 1001), 99, 990),
        ([7], 50, 7),
        ([7], 0, 7),
        ([3, 1, 2], 100, 3),
    ],
)
def test_percentiles_are_nearest_rank(values, q, expected):
    assert percentile(list(values), q) == expected


def test_the_percentile_of_nothing_is_not_a_number():
    assert math.isnan(percentile([], 50))


def test_latencies_are_milliseconds():
    assert latencies([0.001] * 90 + [0.002] * 9 + [0.5]) == {
        "p50_ms": 1.0,
        "p90_ms": 1.0,
        "p99_ms": 2.0,
        "p99_5_ms": 500.0,
        "max_ms": 500.0,
    }


def test_a_spread_is_the_median_and_both_extremes():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert spread([1.0, 2.0]) == {"median": 1.5, "low": 1.0, "high": 2.0}


def test_repetitions_keep_the_bad_news():
    runs = [
        {"p50_ms": 1.0, "sustained": True, "errors": 2, "codes": {"200": 5}},
        {"p50_ms": 3.0, "sustained": False, "errors": 1, "codes": {"200": 4, "503": 1}},
    ]
    assert spreads(runs) == {
        "p50_ms": {"median": 2.0, "low": 1.0, "high": 3.0},
        "sustained": False,
        "errors": 3,
        "codes": {"200": 9, "503": 1},
    }


def test_leaves_are_numbers_and_spreads_with_their_path():
    found = dict(report.leaves({"50/s": {"p99_ms": spread([1.0, 2.0]), "errors": 0}, "word": "no"}))
    assert found == {("50/s", "p99_ms"): spread([1.0, 2.0]), ("50/s", "errors"): 0}


def test_a_table_lines_up():
    assert report.format_table([["a", "ms"], ["longer", "1.00"]]) == "a         ms\nlonger  1.00"


def test_a_command_does_not_say_where_the_checkout_lies():
    here = Path.cwd()
    assert report.command(["replay", "--cases", str(here / "a b.jsonl")]) == (
        "python -m loadtests replay --cases 'a b.jsonl'"
    )


def test_this_machine_has_a_name_and_cores():
    machine = Machine.here()
    assert machine.cpu
    assert machine.cores >= 1
    assert 0 <= machine.busy_before <= 1024
    assert Machine("x", 2, "", "", 0.1).is_quiet
    assert not Machine("x", 2, "", "", 1.0).is_quiet


class TestCommit:
    @pytest.fixture(autouse=True)
    def repository(self, tmp_path, monkeypatch):
        monkeypatch.setattr(report, "ROOT", tmp_path)
        self.root = tmp_path
        self.file = tmp_path / "file"
        self.file.write_text("one")

    def commit(self):
        def git(*words):
            subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e@e", *words], cwd=self.root, check=True)

        git("init", "-q")
        git("add", "file")
        git("commit", "-q", "-m", "first")

    def test_a_clean_tree_is_its_commit(self):
        self.commit()
        assert len(report.commit()) == 40
        report.refuse_dirty()

    def test_a_dirty_tree_is_refused(self):
        self.commit()
        self.file.write_text("two")
        assert report.commit().endswith("-dirty")
        with pytest.raises(LoadError, match="commit first"):
            report.refuse_dirty()

    def test_a_new_file_is_dirt_and_results_are_not(self):
        self.commit()
        (self.root / "loadtests").mkdir()
        (self.root / "loadtests" / "RESULTS.md").write_text("a result")
        assert not report.commit().endswith("-dirty")
        (self.root / "loadtests" / "new.py").write_text("")
        assert report.commit().endswith("-dirty")

    def test_outside_a_repository_nothing_can_be_recorded(self, monkeypatch):
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(self.root.parent))
        assert report.commit() == "unknown"
        with pytest.raises(LoadError, match="unknown"):
            report.refuse_dirty()


def result(**changes):
    given = {
        "benchmark": "open-loop",
        "conditions": {"k": 5},
        "bundle": {"name": "toy", "digest": "abc"},
        "results": {"p99_ms": 1.5, "p50_ms": math.nan},
        "table": [["p99 ms"], ["1.5"]],
        "machine": QUIET,
    }
    return Report(**{**given, **changes})


def test_the_last_line_is_the_whole_result(capsys):
    report.emit(result())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "p99 ms"
    document = json.loads(lines[-1])
    assert document["results"] == {"p99_ms": 1.5, "p50_ms": None}
    assert {"commit", "date", "command", "machine", "conditions", "bundle", "notes"} <= set(document)
    assert document["machine"]["cores"] == 4
    assert document["notes"] == []


def test_a_busy_machine_is_noted(capsys):
    report.emit(result(machine=Machine("a processor", 2, "Linux", "3.11", 5.0)))
    assert "not quiet" in capsys.readouterr().out


def test_a_recorded_result_can_be_read_back(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "RESULTS.md")
    report.emit(result(), record=True)
    report.emit(result(), record=True)
    printed = capsys.readouterr().out.splitlines()[-1]
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.count("## open-loop") == 2
    assert printed in text.splitlines()


def test_results_are_read_from_a_file_or_from_kept_output(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text('table\nnote\n{"results": {"a": 1}}\n')
    assert report.read(path)["results"] == {"a": 1}
    for text in ("", "table", "[1]", '{"other": 1}'):
        path.write_text(text)
        with pytest.raises(LoadError, match="does not end in the JSON line"):
            report.read(path)
    with pytest.raises(LoadError):
        report.read(tmp_path / "absent")
