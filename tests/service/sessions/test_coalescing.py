"""Calls that travel together: bounded, always answered, the abandoned left out."""

import asyncio
from collections.abc import Sequence

import pytest

from service.errors import StoreUnavailable
from service.sessions.coalescing import Coalescer, StoreFailure


class Trips:
    """A slow place that records what came together, and waits at a gate."""

    def __init__(self) -> None:
        self.made: list[list[int]] = []
        self.gate = asyncio.Event()
        self.started = asyncio.Event()

    async def __call__(self, calls: Sequence[int]) -> list[int | Exception]:
        self.made.append(list(calls))
        self.started.set()
        await self.gate.wait()
        return [StoreFailure("odd one out") if call == 13 else call * 10 for call in calls]


async def send(coalescer: Coalescer[int, int], calls: Sequence[int]) -> list[asyncio.Task[int]]:
    tasks = [asyncio.create_task(coalescer.call(call, operation="append")) for call in calls]
    await asyncio.sleep(0)
    return tasks


def test_calls_that_arrive_during_a_trip_share_the_next():
    async def story() -> None:
        trips = Trips()
        coalescer = Coalescer(trips, timeout_s=5, max_together=3)
        first = await send(coalescer, [1])
        await trips.started.wait()
        rest = await send(coalescer, [2, 3, 4, 5])
        trips.gate.set()
        assert await asyncio.gather(*first, *rest) == [10, 20, 30, 40, 50]
        assert trips.made == [[1], [2, 3, 4], [5]]

    asyncio.run(story())


def test_a_failed_call_fails_alone():
    async def story() -> None:
        trips = Trips()
        trips.gate.set()
        coalescer = Coalescer(trips, timeout_s=5)
        good, bad = await send(coalescer, [1, 13])
        assert await good == 10
        with pytest.raises(StoreUnavailable, match="append: odd one out") as refusal:
            await bad
        assert refusal.value.operation == "append"

    asyncio.run(story())


@pytest.mark.parametrize(("raised", "heard"), [(StoreFailure("away"), StoreUnavailable), (KeyError("bug"), KeyError)])
def test_a_failed_trip_answers_everyone_and_the_next_one_runs(raised, heard):
    async def story() -> None:
        fail = True

        async def run(calls: Sequence[int]) -> list[int]:
            if fail:
                raise raised
            return list(calls)

        coalescer = Coalescer(run, timeout_s=5)
        for task in await send(coalescer, [1, 2, 3]):
            with pytest.raises(heard):
                await task
        fail = False
        assert await coalescer.call(4, operation="append") == 4

    asyncio.run(story())


def test_cancelled_calls_are_not_made():
    async def story() -> None:
        trips = Trips()
        coalescer = Coalescer(trips, timeout_s=5)
        (first,) = await send(coalescer, [1])
        waiting = await send(coalescer, [2, 3])
        first.cancel()  # under way: its answer goes nowhere
        waiting[0].cancel()  # not yet: it is never made
        trips.gate.set()
        assert await waiting[1] == 30
        assert trips.made == [[1], [3]]

    asyncio.run(story())


def test_full_more_calls_than_may_wait_are_refused_at_once():
    async def story() -> None:
        trips = Trips()
        coalescer = Coalescer(trips, timeout_s=5, max_waiting=2)
        first = await send(coalescer, [1])
        await trips.started.wait()
        waiting = await send(coalescer, [2, 3])
        with pytest.raises(StoreUnavailable, match="2 calls are waiting already"):
            await coalescer.call(4, operation="append")
        trips.gate.set()
        assert await asyncio.gather(*first, *waiting) == [10, 20, 30]

    asyncio.run(story())


def test_late_a_trip_that_takes_too_long_is_given_up_by_its_callers():
    async def story() -> None:
        coalescer = Coalescer(Trips(), timeout_s=0.01)
        for task in await send(coalescer, [1, 2]):
            with pytest.raises(StoreUnavailable, match=r"no answer within 0\.01 s"):
                await task
        await coalescer.close()

    asyncio.run(story())


def test_closing_serves_who_waits_and_refuses_who_comes_after():
    async def story() -> None:
        trips = Trips()
        coalescer = Coalescer(trips, timeout_s=5)
        tasks = await send(coalescer, [1, 2])
        closing = asyncio.create_task(coalescer.close())
        await asyncio.sleep(0)
        with pytest.raises(StoreUnavailable, match="closed"):
            await coalescer.call(3, operation="append")
        trips.gate.set()
        await closing
        assert await asyncio.gather(*tasks) == [10, 20]

    asyncio.run(story())


def test_gone_a_cancelled_worker_leaves_nobody_waiting():
    async def story() -> None:
        trips = Trips()
        coalescer = Coalescer(trips, timeout_s=5)
        under_way = await send(coalescer, [1])
        await trips.started.wait()
        waiting = await send(coalescer, [2])
        (worker,) = (task for task in asyncio.all_tasks() if "Coalescer._work" in str(task.get_coro()))
        worker.cancel()
        for task in (*under_way, *waiting):
            with pytest.raises(StoreUnavailable, match="closed before it answered"):
                await task

    asyncio.run(story())


class Clock:
    """Seconds that only the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_late_who_comes_during_a_trip_that_hangs_is_refused_at_once_and_one_at_a_time_probes():
    async def story() -> None:
        clock, trips = Clock(), Trips()
        coalescer = Coalescer(trips, timeout_s=5, stall_s=0.5, clock=clock)
        first = await send(coalescer, [1, 2])
        await trips.started.wait()
        clock.now = 0.4
        patient = await send(coalescer, [3])
        clock.now = 0.6
        with pytest.raises(StoreUnavailable, match=r"no answer for more than 0\.5 s"):
            await coalescer.call(4, operation="append")
        patient[0].cancel()
        trips.gate.set()
        assert await asyncio.gather(*first) == [10, 20]
        trips.gate.clear()
        probe, *refused = await send(coalescer, [5, 6, 7])
        for task in refused:
            with pytest.raises(StoreUnavailable, match="no answer for more"):
                await task
        trips.gate.set()
        assert await probe == 50
        assert await asyncio.gather(*await send(coalescer, [8, 9])) == [80, 90], (
            "one reply in time, and all are welcome"
        )
        assert trips.made == [[1, 2], [5], [8, 9]]

    asyncio.run(story())


def test_late_everybody_waits_for_their_own_time_and_no_longer():
    async def story() -> None:
        trips = Trips()
        coalescer = Coalescer(trips, timeout_s=0.05)
        loop = asyncio.get_running_loop()

        async def wait() -> float:
            began = loop.time()
            with pytest.raises(StoreUnavailable, match="no answer within"):
                await coalescer.call(1, operation="append")
            return loop.time() - began

        waiting = []
        for _ in range(5):
            waiting.append(asyncio.create_task(wait()))
            await asyncio.sleep(0.02)
        waits = await asyncio.gather(*waiting)
        assert min(waits) >= 0.045
        assert max(waits) < 0.25, "a busy machine is granted some"
        trips.gate.set()
        await coalescer.close()

    asyncio.run(story())
