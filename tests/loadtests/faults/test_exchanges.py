"""Requests that leave when they are due; one whose connection broke is sent again, once."""

import asyncio
import time

import numpy as np
import pytest

from loadtests import wire
from loadtests.faults.exchanges import Offer, crowd
from loadtests.faults.people import Step

STEPS = [Step("u", "a", "u.0"), Step("u", among=frozenset("abc")), Step("v", among=frozenset("abc"))]


def carried(shop, steps, due, *, postponed=0.0):
    async def run():
        async with shop, wire.wired(shop.url, connections=4, timeout_s=5) as line:
            offer = Offer(steps, np.array(due), prefix="r")
            offer.postpone(postponed)
            return await offer.carry(line, zero=time.perf_counter())

    return asyncio.run(run()).exchanges


def test_everything_leaves_when_it_is_due_and_comes_back_with_its_answer(shop):
    first, second, third = carried(shop, STEPS, [0.0, 0.02, 0.04], postponed=0.05)
    assert (first.due, second.due) == pytest.approx((0.05, 0.07))
    assert 0.05 <= first.left < first.done
    assert second.left >= second.due
    assert [item["item_id"] for item in second.reply.json()["items"]] == ["b", "c"]
    assert [item["item_id"] for item in third.reply.json()["items"]] == ["a", "b", "c"]
    assert first.reply.header("x-request-id") == first.request_id == "r.0"
    assert not any(exchange.again for exchange in (first, second, third))


@pytest.mark.parametrize(("times", "status"), [(1, 202), (2, 0)])
def test_a_broken_connection_is_tried_once_more(shop, times, status):
    shop.breaks = times
    (got,) = carried(shop, STEPS[:1], [0.0])
    assert got.again
    assert got.reply.status == status


def test_a_crowd_asks_for_as_long_as_it_is_told(shop):
    async def run():
        async with shop, wire.wired(shop.url, connections=4, timeout_s=5) as line:
            steps = iter([Step("u", among=frozenset("abc"))] * 100_000)
            zero = time.perf_counter()
            return await crowd(line, steps, zero=zero, seconds=0.1, size=3, prefix="c")

    exchanges = asyncio.run(run()).exchanges
    assert len(exchanges) > 3
    assert len({exchange.request_id for exchange in exchanges}) == len(exchanges)
    assert all(exchange.reply.is_ok and 0 <= exchange.left < exchange.done for exchange in exchanges)
