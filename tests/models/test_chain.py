"""The chain's figures, by lists that are small enough to work out."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from models.chain import RETRIEVAL, judge, tasks_table
from models.histories import Histories
from models.lists import Lists
from models.splits import Cases
from retrieval.errors import InvalidInput
from retrieval.inputs import Request
from retrieval.sequences import EMPTY

ROWS = np.array([1, 2, 3, 1, 2, 3, 1, 2, 3], dtype=np.int64)
TARGETS = [3, 1, 9]  # retrieved last, retrieved first, not retrieved


def cases() -> Cases:
    histories = Histories.from_rows([[5, target] for target in TARGETS])
    return Cases.at(histories, np.array([1, 3, 5]), train_ends=np.array([1, 3, 5]), words="three cases")


def lists() -> Lists:
    labels = np.array([[float(ROWS[place] == TARGETS[place // 3])] for place in range(9)], dtype=np.float32)
    return Lists(
        ("click",),
        [Request(EMPTY)] * 3,
        np.array([0, 3, 6, 9]),
        ROWS,
        np.ones(9, dtype=np.float32),
        labels,
        np.zeros(9, dtype=np.int64),
        np.arange(3),
    )


class Backwards:
    """Says that what stands last is likeliest; calibration halves it."""

    settings: Any = SimpleNamespace(
        tasks=("click",),
        goals={"click": 1.0},
        weights=lambda goals: np.array([goals["click"]], dtype=np.float32),
        calibrated=lambda said: said / 2,
    )

    def rank(self, candidates):
        return [np.linspace(0.2, 0.8, len(one.rows), dtype=np.float32)[:, None] for one in candidates]

    def uncalibrated(self) -> "Backwards":
        return self


def test_where_good_items_are_lost():
    judged = judge(cases(), lists(), {"backwards": Backwards()}, n_items=9, how="by hand", ks=(1, 10))
    alone, ranked = judged.lines
    assert alone.report.name == RETRIEVAL
    # First place: retrieval has case 2 right, the order backwards case 1; case 3 was never retrieved.
    assert (alone.found, alone.lost_in_ranking, alone.lost_in_retrieval) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert (ranked.found, ranked.lost_in_ranking, ranked.lost_in_retrieval) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    # NDCG@10 of the cases is 1/2, 1, 0 alone and 1, 1/2, 0 ranked: the mean change is 0.
    assert alone.report.measures["ndcg@10"].value == pytest.approx(0.5)
    assert ranked.difference is not None
    assert ranked.difference.value == pytest.approx(0.0)


def test_figures_of_a_task():
    judged = judge(cases(), lists(), {"backwards": Backwards()}, n_items=9, how="by hand")
    (click,) = judged.lines[1].tasks
    assert click.share == pytest.approx(2 / 9)
    # Of the lists with both outcomes one has its item likeliest (AUC 1), the other least likely (AUC 0).
    assert click.list_auc == pytest.approx(0.5)
    # Before calibration 0.5 is said on average, after it 0.25, and 2/9 happens.
    assert click.error < click.error_before
    text = str(judged)
    assert "lost in ranking" in text
    assert "| click" in text
    assert judged.to_json()["orders"][1]["tasks"]["click"]["list_auc"] == 0.5
    assert "click" in tasks_table(Backwards(), lists())


def test_a_place_is_allowed_for_where_lists_were_shown():
    shown = lists()
    shown.positions[:] = np.tile([1, 2, 3], 3)
    # Places 2 and 3 so bad that nothing is expected there: the first place alone keeps its candidate above the others.
    places = np.array([[0.0], [0.0], [-9.0], [-9.0]], dtype=np.float32)
    assert tasks_table(Backwards(), shown, places) != tasks_table(Backwards(), shown)
    assert "| 0.7500" in tasks_table(Backwards(), shown, places)


def test_a_task_with_one_outcome_has_no_figures():
    without = lists()
    without.labels[:] = 0
    assert judge(cases(), without, {"backwards": Backwards()}, n_items=9, how="by hand").lines[1].tasks == ()


def test_empty_or_missing_lists_are_refused():
    with pytest.raises(InvalidInput, match="2 lists for 3 cases"):
        judge(cases(), lists().take(np.array([0, 1])), {}, n_items=9, how="by hand")
