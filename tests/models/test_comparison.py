"""The table that baselines are always in, and the file it is kept in."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.comparison import append_results, beside, compare, paired
from models.evaluate import Report, evaluate
from models.histories import Histories
from models.splits import Cases, leave_one_out
from retrieval.errors import InvalidInput
from retrieval.sequences import FloatArray, History

N = 30
RNG = np.random.default_rng(0)
# Everybody walks along the rows by one, from anywhere: transitions foretell it, popularity does not.
SPLIT = leave_one_out(Histories.from_rows([list(range(s, s + 5)) for s in RNG.integers(1, 25, 200)]))


class Guess:
    """Scores the row that lies `step` after the newest one."""

    def __init__(self, name: str, step: int) -> None:
        self.name, self._step = name, step

    def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:
        out = np.zeros((len(times), N + 1), np.float32)
        out[np.arange(len(times)), [min(h.rows[-1] + self._step, N) for h in histories]] = 1.0
        return out


def test_baselines_are_always_in_the_table() -> None:
    comparison = compare([], SPLIT.train, SPLIT.test, n_items=N, ks=(10,))
    assert [line.report.name for line in comparison.lines] == ["random", "popular", "transitions", "item-knn"]
    assert comparison.best == "transitions"


def test_a_model_that_loses_is_said_to_lose() -> None:
    comparison = compare([Guess("wrong", 3), Guess("right", 1)], SPLIT.train, SPLIT.test, n_items=N, ks=(1,))
    verdicts = {line.report.name: line.verdict for line in comparison.lines}
    assert verdicts["transitions"] == "best baseline"
    assert verdicts["popular"] == "baseline"
    assert verdicts["wrong"] == "loses to transitions"
    assert verdicts["right"] != "loses to transitions"


def test_a_model_that_wins_and_one_that_equals() -> None:
    reports = [evaluate(Guess(f"g{step}", step), SPLIT.test, n_items=N, ks=(1,)) for step in (1, 2)]
    same = evaluate(Guess("same", 2), SPLIT.test, n_items=N, ks=(1,))
    comparison = beside([*reports, same], {"g2"}, headline="ndcg@1", remarks={"g1": "2 | 3 min"})
    assert [line.verdict for line in comparison.lines] == ["beats g2", "best baseline", "does not beat g2"]
    assert "| 2 / 3 min |" in str(comparison)


def test_the_paired_difference_is_the_difference_of_the_means() -> None:
    one, other = (evaluate(Guess("g", step), SPLIT.test, n_items=N, ks=(5,)) for step in (1, 2))
    difference = paired(one, other, "recall@5")
    assert difference.value == pytest.approx(one.measures["recall@5"].value - other.measures["recall@5"].value)
    assert difference.low <= difference.value <= difference.high


def test_reports_on_other_cases_are_not_put_beside_each_other() -> None:
    one = evaluate(Guess("one", 1), SPLIT.test, n_items=N, ks=(1,))
    kept = evaluate(Guess("kept", 1), SPLIT.test, n_items=N, ks=(1,), seen="kept")
    with pytest.raises(InvalidInput, match="same cases"):
        beside([one, kept], {"one"}, headline="ndcg@1")
    with pytest.raises(InvalidInput, match="no baseline"):
        beside([one], {"popular"}, headline="ndcg@1")


def listed(name: str, step: int, cases: Cases = SPLIT.test, **changes: Any) -> Report:
    """The report of a model that lists one item, as of one that gives no scores."""
    scored = evaluate(Guess(name, step), cases, n_items=N, ks=(1,))
    protocol = f"{cases.words}; lists of 1 as it comes, seen items filtered"
    return replace(scored, **{"protocol": protocol, "users": cases.users, **changes})


def test_models_that_give_lists_stand_beside_those_that_give_scores() -> None:
    lists = [listed("right", 1), listed("wrong", 3)]
    remarks = {"right": "50 beams"}
    comparison = compare([Guess("guess", 1)], SPLIT.train, SPLIT.test, n_items=N, ks=(1,), lists=lists, remarks=remarks)
    lines = {line.report.name: line for line in comparison.lines}
    assert list(lines)[-3:] == ["guess", "right", "wrong"]
    assert lines["right"].report.measures == lines["guess"].report.measures
    assert lines["right"].verdict == lines["guess"].verdict
    assert lines["right"].remark == "50 beams"
    assert lines["wrong"].verdict == "loses to transitions"
    assert {line.report.protocol for line in comparison.lines} == {comparison.protocol}


def test_lists_of_other_cases_are_refused() -> None:
    def beside_lists(report: Report, **changes: Any) -> Any:
        return compare([], SPLIT.train, SPLIT.test, n_items=N, ks=(1,), lists=[report], **changes)

    with pytest.raises(InvalidInput, match="other was not judged on these cases"):
        beside_lists(listed("other", 1, cases=SPLIT.test.sample(100, seed=0)))
    with pytest.raises(InvalidInput, match="with seen items kept; evaluate it again"):
        beside_lists(listed("other", 1), seen="kept")
    with pytest.raises(InvalidInput, match="names of their own"):
        beside_lists(listed("popular", 1))


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInput, match="names of their own"):
        compare([Guess("popular", 1)], SPLIT.train, SPLIT.test, n_items=N)


def test_a_comparison_is_json_and_a_table() -> None:
    comparison = compare([Guess("guess", 1)], SPLIT.train, SPLIT.test, n_items=N, ks=(10,), negatives=5)
    stored = json.loads(json.dumps(comparison.to_json()))
    assert [model["name"] for model in stored["models"]][-1] == "guess"
    assert stored["best_baseline"] == comparison.best
    table = str(comparison).splitlines()[2:]
    assert len(table) == 2 + 5
    assert len({len(line) for line in table}) == 1


def test_results_are_appended_and_nothing_is_lost(tmp_path: Path) -> None:
    comparison = compare([], SPLIT.train, SPLIT.test, n_items=N, ks=(10,))
    path = tmp_path / "RESULTS.md"
    for date in ("2026-01-01", "2026-01-02"):
        append_results(path, comparison, title="walks", date=date, command="compare", commit="abc", data_digest="0123")
    text = path.read_text()
    assert text.startswith("# Results")
    assert text.count("## 2026-01-0") == 2
    assert text.count("Commit `abc`, data `0123`.") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["RESULTS.md"]


def test_a_full_disk_leaves_the_results_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comparison = compare([], SPLIT.train, SPLIT.test, n_items=N, ks=(10,))
    path = tmp_path / "RESULTS.md"
    path.write_text("# Results\n")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.comparison.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        append_results(path, comparison, title="t", date="d", command="c", commit="a", data_digest="0")
    assert path.read_text() == "# Results\n"
    assert [p.name for p in tmp_path.iterdir()] == ["RESULTS.md"]
