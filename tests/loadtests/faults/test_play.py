"""A whole run against a shop: honest, forgetful, and one that mixes its users up."""

import asyncio
import math
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from containers import ROOT

from loadtests import wire
from loadtests.faults import play
from loadtests.faults.people import People
from loadtests.faults.play import Given, Ground, Scene, found_capacity, scheduled
from loadtests.faults.verdicts import Ledger
from loadtests.target import Facts, LoadError

ITEMS = tuple(f"i{n:02}" for n in range(30))
GIVEN = Given(Path(ROOT), rate=200.0, seconds=0.5, warmup=0.05, users=20, seed=1, cores=None, swaps=1, every_s=1.0)


def figures(shop, begin=lambda: None, end=lambda: None):
    """The figures of a run in whose middle `begin` and `end` change the shop."""

    async def trouble(_ground):
        begin()
        await asyncio.sleep(GIVEN.seconds)
        end()
        return {"told": 1}

    async def run():
        async with shop:
            service = SimpleNamespace(url=shop.url, resident_mb=lambda: 1.0)
            ground = Ground(service, Facts({"exclude_seen": True}, ITEMS, frozenset(ITEMS), True), GIVEN)
            return await play._played(Scene(service, trouble, GIVEN.seconds), ground)

    return asyncio.run(run())


def test_an_honest_shop_has_nothing_to_hide(shop):
    got = figures(shop)
    assert got["requests"] == pytest.approx(300, abs=90)
    wrong = ("failed", "foreign", "stale", "ineligible", "repeated", "malformed", "lost", "stored_twice", "unread")
    assert {name: got[name] for name in wrong} == dict.fromkeys(wrong, 0)
    assert got["acknowledged"] == sum(map(len, shop.histories.values()))
    assert got["felt"] == 0
    assert got["told"] == 1
    assert got["trouble_s"] == pytest.approx(0.25, abs=0.3)


def test_a_shop_that_mixes_its_users_up_is_found_out(shop):
    def mix():
        shop.whose = lambda user_id: min(shop.histories.keys() - {user_id})

    def sort():
        shop.whose = lambda user_id: user_id

    got = figures(shop, mix, sort)
    assert got["foreign"] > 0
    assert got["lost"] == 0


def test_a_shop_that_forgets_what_it_acknowledged_is_found_out(shop):
    def forget():
        shop.keeps = lambda _event: False

    got = figures(shop, forget)
    assert got["lost"] > 0
    assert got["stale"] > 0
    assert got["foreign"] == 0


def test_a_shop_that_says_it_is_away_has_refused_and_lost_nothing(shop):
    got = figures(shop, lambda: setattr(shop, "away", True), lambda: setattr(shop, "away", False))
    assert got["refused_events"] > 0
    assert got["refused_questions"] > 0
    assert (got["failed"], got["lost"], got["foreign"]) == (0, 0, 0)


def test_a_schedule_is_one_rate_after_the_other():
    due = scheduled([(100.0, 2.0), (1000.0, 1.0), (10.0, 2.0)], seed=1)
    assert (np.diff(due) >= 0).all()
    counts = [int(((due >= a) & (due < b)).sum()) for a, b in ((0, 2), (2, 3), (3, 5))]
    assert counts == [pytest.approx(200, abs=60), pytest.approx(1000, abs=150), pytest.approx(20, abs=20)]
    with pytest.raises(LoadError, match="no request is due"):
        scheduled([(1e-9, 1.0)], seed=1)


def test_the_capacity_is_the_best_that_was_prompt(shop, monkeypatch):
    monkeypatch.setattr(play, "SEARCH_S", 0.1)
    monkeypatch.setattr("loadtests.faults.figures.PROMPT_S", 5.0)  # however busy the machine of this test is

    async def run():
        people, ledger, zero = People(ITEMS, count=20, seed=1, prefix="p"), Ledger(), time.perf_counter()
        for step in people.pasts():
            ledger.remember(step)
            shop.histories[step.user_id].append({"item_id": step.item_id})
        async with shop, wire.wired(shop.url, connections=64) as line:
            return await found_capacity(line, people, ledger, zero=zero, seed=1, prefix="p")

    found = asyncio.run(run())
    assert 10 < found < math.inf


def test_a_history_beyond_what_is_kept_would_look_lost():
    ledger = Ledger()
    ledger.ids["u"] = {str(n) for n in range(1_001)}
    with pytest.raises(LoadError, match="raise --users"):
        play._refuse_trimmed(ledger)
