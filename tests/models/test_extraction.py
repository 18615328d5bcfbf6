"""The attack on victims whose whole behaviour is known, so that what a copy can reach is known too."""

import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from models import extraction
from models.errors import InvalidOption
from models.extraction import ARMS, Attack, Loot, agreement, copy_of, lists_of, ranking_loss, rob, untaught
from models.histories import Histories
from models.progress import Progress
from models.victim import CutOff
from retrieval.catalog import Catalog
from retrieval.sequences import PAD_ROW, History

N = 40
CATALOG = Catalog.build([f"i{number}" for number in range(1, N + 1)])
ATTACK = Attack(k=8, sequences=30, length=6, steps=120, batch=8)
QUIET = Progress(io.StringIO())


class Neighbours:
    """Shows the items that follow the newest one in a circle, and no more than a budget of lists."""

    def __init__(self, budget: int = 10**9) -> None:
        self.budget = budget
        self.asked: list[tuple[str, ...]] = []

    def recommend(self, history: Sequence[str], k: int) -> list[str]:
        if len(self.asked) >= self.budget:
            raise CutOff("budget_exhausted", 60)
        self.asked.append(tuple(history))
        newest = int(history[-1][1:])
        following = [f"i{(newest + step - 1) % N + 1}" for step in range(1, N)]
        return [item for item in following if item not in history][:k]


def shown(histories: Sequence[History], k: int) -> np.ndarray:
    """What the victim shows."""
    victim = Neighbours()
    return np.array([CATALOG.rows(victim.recommend([CATALOG.ids[r] for r in h.rows], k)) for h in histories])


REAL = [History.of_rows(np.random.default_rng(number).permutation(N)[:4] + 1) for number in range(60)]


@pytest.mark.parametrize("arm", ARMS)
def test_each_prefix_is_asked_once_and_its_list_kept(arm: str) -> None:
    victim = Neighbours()
    loot = rob(victim, CATALOG, replace(ATTACK, arm=arm), QUIET)
    assert loot.questions == len(victim.asked) == 30 * 6
    for history, lists in zip(loot.rows, loot.lists, strict=True):
        for place in range(6):
            prefix = [CATALOG.ids[row] for row in history[: place + 1]]
            assert tuple(prefix) in victim.asked
            assert lists[place].tolist() == shown([History.of_rows(history[: place + 1])], 8)[0].tolist()
        if arm == "autoregressive":
            assert all(history[place + 1] in lists[place] for place in range(5))


def test_histories_do_not_depend_on_how_many_are_under_way() -> None:
    one, many = (rob(Neighbours(), CATALOG, replace(ATTACK, at_once=n), QUIET) for n in (1, 8))
    np.testing.assert_array_equal(one.rows, many.rows)
    np.testing.assert_array_equal(one.lists, many.lists)


def test_429_ends_it_and_what_was_got_is_kept() -> None:
    loot = rob(Neighbours(budget=50), CATALOG, ATTACK, QUIET)
    assert loot.cut_off == "budget_exhausted"
    assert loot.questions == 50


def test_the_loss_is_that_of_the_paper() -> None:
    """By hand: items 1 and 2 in the list, 3 outside."""
    scores = torch.tensor([[9.0, 1.0, 0.8, 0.7]])
    lists, outside = torch.tensor([[1, 2]]), torch.tensor([[3, 3]])
    assert float(ranking_loss(scores, lists, outside)) == pytest.approx((0.5 - 0.2) + ((0.5 - 0.3) + (0.5 - 0.1)) / 2)
    # What is in the list is not outside of it, and a list that is shorter has no more to say.
    padded, drawn = torch.tensor([[1, 2, PAD_ROW]]), torch.tensor([[3, 1, 3]])
    assert float(ranking_loss(scores, padded, drawn)) == pytest.approx((0.5 - 0.2) + (0.5 - 0.3))


def test_agreement_counts_common_items_in_any_order() -> None:
    ours, theirs = np.array([[1, 2, 3], [4, 5, PAD_ROW]]), np.array([[3, 9, 1], [7, 8, PAD_ROW]])
    assert agreement(ours, theirs, 3) == pytest.approx(2 / 6)
    assert agreement(ours, theirs, 1) == 0.0


@pytest.mark.train
def test_more_questions_give_a_better_copy_and_none_gives_chance() -> None:
    truth = shown(REAL, 8)
    got = {}
    for sequences in (2, 30):
        attack = replace(ATTACK, sequences=sequences)
        got[sequences] = agreement(
            truth, lists_of(copy_of(rob(Neighbours(), CATALOG, attack, QUIET), N, attack, QUIET), REAL, k=8), 8
        )
    nothing = agreement(truth, lists_of(untaught(N, ATTACK).eval(), REAL, k=8), 8)
    assert nothing < 0.45  # 8 of 36
    assert got[2] + 0.1 < got[30]
    assert got[30] > 0.7


@pytest.mark.train
def test_histories_that_were_cut_off_teach_as_far_as_they_go() -> None:
    """Right-aligned, as the encoder reads: a history of three says nothing of places that it never had."""
    rows = np.array([[3, 4, 5, PAD_ROW]])
    lists = np.array([[[4, 5], [5, 6], [6, 7], [PAD_ROW, PAD_ROW]]])
    turned, turned_lists, real = extraction._aligned(rows, lists, np.array([[True, True, False, False]]))
    assert turned.tolist() == [[PAD_ROW, PAD_ROW, 3, 4]]
    assert turned_lists[real].tolist() == [[4, 5], [5, 6]]
    copy_of(Loot(rows, lists, "budget_exhausted"), N, replace(ATTACK, length=4, k=2, steps=2), QUIET)


@pytest.mark.train
def test_nothing_got_is_nothing_learnt() -> None:
    attack = replace(ATTACK, sequences=3)
    loot = rob(Neighbours(budget=0), CATALOG, attack, QUIET)
    assert loot.questions == 0
    copied, fresh = copy_of(loot, N, attack, QUIET), untaught(N, attack)
    assert torch.equal(copied.item_vectors(), fresh.item_vectors())


@pytest.mark.parametrize(("option", "value"), [("arm", "clever"), ("k", 1), ("length", 1), ("sequences", 0)])
def test_options_that_cannot_be_meant_are_refused(option: str, value: object) -> None:
    with pytest.raises(InvalidOption, match=option):
        replace(ATTACK, **{option: value})


def test_the_busiest_day_is_sent_as_a_shop_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three users; the second day has four events, two of them the same state."""
    day = 86_400.0
    histories = replace(
        Histories.from_rows([[1, 2, 3], [1, 2], [1]]),
        timestamps=np.array([0.0, day, day + 1, day, day + 5, 9 * day]),
        ordered_only=False,
    )
    victim = Neighbours(budget=3)
    monkeypatch.setattr(extraction, "Victim", lambda _url: _Context(victim))
    honest = extraction.replay("http://127.0.0.1", histories, CATALOG, window=2, progress=QUIET)
    assert (honest.days, honest.median, honest.most, honest.asked, honest.refused) == (3, 1.0, 3, 4, 1)
    assert victim.asked == [("i1", "i2"), ("i2", "i3"), ("i1",)]


class _Context:
    def __init__(self, victim: Neighbours) -> None:
        self.victim = victim

    def __enter__(self) -> Neighbours:
        return self.victim

    def __exit__(self, *_: object) -> None: ...
