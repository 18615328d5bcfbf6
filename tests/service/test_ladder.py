"""Down the ladder: the first rung that has an answer, and a word about each that had none."""

import asyncio
import threading
import time

import pytest

from service import metrics
from service.batching import MicroBatcher
from service.errors import Overloaded
from service.ladder import Call, Rung, climb_down
from service.timing import Timings

pytestmark = pytest.mark.anyio


def call(served) -> Call:
    return Call(served, 0.0, 1e9, 1e9, Timings(time.monotonic))


def counted(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


class Rungs:
    """Two rungs whose runs a test may replace; each says its own name."""

    def __init__(self, clock=time.monotonic) -> None:
        self.clock = clock
        self.runs = [lambda questions, _stage: ["generated"] * len(questions), self.encode]
        limits = {"max_batch": 8, "queue_limit": 1, "wait_s": 0, "clock": clock}
        self.batchers = [MicroBatcher(**limits, pool=pool) for pool in metrics.POOLS]

    @staticmethod
    def encode(questions, stage):
        with stage("encode"):
            return ["encoded"] * len(questions)

    async def __aenter__(self):
        for batcher in self.batchers:
            batcher.start()
        return self

    async def __aexit__(self, *_):
        for batcher in self.batchers:
            await batcher.close()

    async def climb_down(self, own: Call, *, within_s: float = 60.0, question=lambda time_left: time_left):
        generator, encoder = self.batchers
        rungs = [
            Rung(generator, self.runs[0], 0.5, "generator_late", "generator_failed", lambda answer: answer != "filled"),
            Rung(encoder, self.runs[1], 1.0, "deadline", "encoder_failed", lambda answer: answer != "filled"),
        ]
        return await climb_down(own, rungs, question, until=self.clock() + within_s, clock=self.clock)


async def test_the_first_rung_that_answers_is_enough_and_tells_what_it_took(served):
    async with Rungs() as rungs:
        own = call(served)
        assert await rungs.climb_down(own) == "generated"
    assert own.reasons == []
    assert set(own.timings.seconds) == {"queue"}


async def test_late_on_the_first_rung_the_next_one_still_has_its_time(served):
    gate = threading.Event()
    before = counted("sequitur_degraded_total", reason="generator_late")
    async with Rungs() as rungs:
        rungs.runs[0] = lambda *_: gate.wait(10)
        own = call(served)
        # Half of the time is the generator's; the encoder needs next to nothing of the other half.
        assert await rungs.climb_down(own, within_s=1.0) == "encoded"
        gate.set()
    assert own.reasons == ["generator_late"]
    assert set(own.timings.seconds) == {"queue", "encode"}
    assert counted("sequitur_degraded_total", reason="generator_late") == before + 1


async def test_whoever_works_in_steps_can_ask_for_the_time_of_its_rung_and_not_of_the_whole(served):
    ticks = [100.0]
    asked = []
    async with Rungs(clock=lambda: ticks[0]) as rungs:
        rungs.runs[0] = lambda questions, _stage: asked.extend(questions) or ["generated"]
        await rungs.climb_down(call(served), within_s=60.0)
    (time_left,) = asked
    for now, expected in ((129.5, 0.5), (130.0, 0.0), (131.0, -1.0)):
        ticks[0] = now
        assert time_left() == expected


async def test_an_answer_that_is_not_of_the_rung_was_late_where_its_time_is_over(served):
    ticks = [100.0]

    def too_long(questions, _stage):
        ticks[0] = 130.0
        return ["filled"] * len(questions)

    async with Rungs(clock=lambda: ticks[0]) as rungs:
        rungs.runs[0] = too_long
        own = call(served)
        assert await rungs.climb_down(own) == "encoded"
    assert own.reasons == ["generator_late"]


async def test_failed_on_every_rung_is_nothing_and_says_each(served, caplog):
    def broken(*_):
        raise RuntimeError("no")

    async with Rungs() as rungs:
        rungs.runs[:] = [broken, broken]
        own = call(served)
        assert await rungs.climb_down(own) is None
    assert own.reasons == ["generator_failed", "encoder_failed"]
    assert "the generator failed" in caplog.text


async def test_an_answer_that_is_not_of_the_rung_is_not_taken_for_one(served):
    async with Rungs() as rungs:
        rungs.runs[0] = lambda questions, _stage: ["filled"] * len(questions)
        own = call(served)
        assert await rungs.climb_down(own) == "encoded"
    assert own.reasons == ["generator_failed"]


async def test_full_on_the_first_rung_goes_to_the_next_and_full_on_the_last_is_refused(served):
    gate, entered = threading.Event(), threading.Event()

    def held(questions, _stage):
        entered.set()
        assert gate.wait(10)
        return ["held"] * len(questions)

    async with Rungs() as rungs:
        for at, expected in ((0, "encoded"), (1, Overloaded)):
            entered.clear()
            busy = rungs.batchers[at]
            crowd = [asyncio.create_task(busy.submit("busy", held, deadline=1e9))]
            await asyncio.to_thread(entered.wait, 10)
            crowd.append(asyncio.create_task(busy.submit("waiting", held, deadline=1e9)))
            await asyncio.sleep(0)
            own = call(served)
            if expected is Overloaded:
                with pytest.raises(Overloaded):
                    await rungs.climb_down(own)
            else:
                assert await rungs.climb_down(own) == expected
            assert own.reasons == ["generator_late"]  # the first one is still full when the second is tried
        gate.set()


async def test_empty_a_ladder_without_rungs_has_no_answer(served):
    assert await climb_down(call(served), [], lambda _: None, until=1e9, clock=time.monotonic) is None
