"""The three things the micro-batcher owes: bounded, always resolves, skips the abandoned."""

import asyncio
import threading
import time

import numpy as np
import pytest

from retrieval.filters import Eligible
from retrieval.inputs import Request
from retrieval.recommenders import Answer, Query
from retrieval.sequences import EMPTY
from service import metrics
from service.batching import MicroBatcher
from service.errors import DeadlineExceeded, NotReady, Overloaded

pytestmark = pytest.mark.anyio
FOREVER = float("inf")
EVERYTHING = Eligible.of(np.array([False, True]))


def query(k: int = 1) -> Query:
    """A query that is told from others by its k."""
    return Query(Request(EMPTY), k, EVERYTHING, EMPTY.rows)


def answer(k: int) -> Answer:
    return Answer.of(np.full(k, 1), np.zeros(k, np.float32), "retrieval")


class Worker:
    """A recommender that can be held, and says what it was given."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, queries, stage):
        self.batches.append([q.k for q in queries])
        self.entered.set()
        assert self.gate.wait(10)
        with stage("encode"):
            if any(q.k == 13 for q in queries):
                raise ValueError("thirteen")
            if any(q.k == 666 for q in queries):
                raise SystemExit("the worker wants to die")
        return [answer(q.k) for q in queries]


class Held:
    """A batcher whose worker is busy with one query until `release`."""

    def __init__(self, **limits) -> None:
        self.worker = Worker()
        limits = {"max_batch": 8, "queue_limit": 8, "wait_s": 0.0, "clock": time.monotonic, **limits}
        self.batcher = MicroBatcher(**limits)

    async def __aenter__(self):
        self.batcher.start()
        self.worker.gate.clear()
        self.first = self.submit(1)
        await asyncio.to_thread(self.worker.entered.wait, 10)
        return self

    async def __aexit__(self, *_):
        self.worker.gate.set()
        await self.batcher.close()

    def submit(self, k: int, deadline: float = FOREVER) -> asyncio.Task:
        deadline = deadline if deadline < FOREVER else 1e9
        return asyncio.create_task(self.batcher.submit(query(k), self.worker, deadline=deadline))

    async def release(self) -> None:
        self.worker.gate.set()
        await self.first


async def turn() -> None:
    """Lets every task that can run do so."""
    for _ in range(3):
        await asyncio.sleep(0)


def shed(reason: str) -> float:
    return metrics.REGISTRY.get_sample_value("sequitur_shed_total", {"reason": reason}) or 0.0


async def test_who_waits_while_the_worker_is_busy_travels_together_and_gets_its_own_answer():
    async with Held() as held:
        waiting = [held.submit(k) for k in (2, 3, 4)]
        await turn()
        await held.release()
        done = await asyncio.gather(*waiting)
    assert held.worker.batches == [[1], [2, 3, 4]]
    assert [len(one.answer) for one in done] == [2, 3, 4]
    assert {one.batch_size for one in done} == {3}
    assert all(one.queue_s > 0 and one.stages_s["encode"] >= 0 for one in done)


async def test_full_queue_refuses_at_once_and_serves_those_inside():
    before = shed("queue_full")
    async with Held(queue_limit=2) as held:
        inside = [held.submit(2), held.submit(3)]
        await turn()
        with pytest.raises(Overloaded, match="2 requests are waiting"):
            await held.batcher.submit(query(), held.worker, deadline=1e9)
        await held.release()
        assert [len((await one).answer) for one in inside] == [2, 3]
    assert shed("queue_full") == before + 1


async def test_full_batch_goes_without_the_rest():
    async with Held(max_batch=2) as held:
        waiting = [held.submit(k) for k in (2, 3, 4)]
        await turn()
        await held.release()
        await asyncio.gather(*waiting)
    assert held.worker.batches == [[1], [2, 3], [4]]


async def test_late_in_the_queue_is_told_so_and_never_computed():
    clock = lambda: clock.now  # noqa: E731
    clock.now = 0.0
    before = shed("late")
    async with Held(clock=clock) as held:
        late, fine = held.submit(2, deadline=5.0), held.submit(3)
        await turn()
        clock.now = 6.0
        await held.release()
        with pytest.raises(DeadlineExceeded, match="'queue'"):
            await late
        await fine
    assert held.worker.batches == [[1], [3]]
    assert shed("late") == before + 1


async def test_late_while_the_model_works_is_told_so_and_the_others_are_served():
    async with Held() as held:
        held.first.cancel()
        held.worker.entered.clear()
        held.worker.gate.set()
        await turn()
        held.worker.gate.clear()
        late = held.submit(2, deadline=time.monotonic() + 0.05)
        await asyncio.to_thread(held.worker.entered.wait, 10)
        fine = held.submit(3)
        with pytest.raises(DeadlineExceeded, match="'model'"):
            await late
        held.worker.gate.set()
        assert len((await fine).answer) == 3


async def test_one_timer_tells_all_who_wait_while_the_model_works_each_in_time():
    async with Held() as held:
        start = time.monotonic()
        told: dict[int, float] = {}

        async def late(k: int, within_s: float) -> None:
            with pytest.raises(DeadlineExceeded, match="'queue'"):
                await held.batcher.submit(query(k), held.worker, deadline=start + within_s)
            told[k] = time.monotonic() - start

        # One who comes later may have less time than all before.
        await asyncio.gather(late(2, 0.15), late(3, 0.05), late(4, 0.1), late(5, 0.05))
        assert sorted(told) == [2, 3, 4, 5]
        assert list(told)[2:] == [4, 2]
        assert all(told[k] >= within_s - 0.002 for k, within_s in ((2, 0.15), (3, 0.05), (4, 0.1)))
        fine = held.submit(6)
        await turn()
        await held.release()
        assert len((await fine).answer) == 6
        assert held.batcher._expiry is None
    assert held.worker.batches == [[1], [6]]


async def test_a_deadline_already_past_is_not_computed():
    async with Held() as held:
        with pytest.raises(DeadlineExceeded, match="'queue'"):
            await held.batcher.submit(query(2), held.worker, deadline=time.monotonic() - 1)
        await held.release()
    assert held.worker.batches == [[1]]


async def test_cancelled_and_gone_waiters_are_dropped_before_anything_is_computed():
    before = shed("abandoned")
    async with Held() as held:
        gone, fine = held.submit(2), held.submit(3)
        await turn()
        gone.cancel()
        await turn()
        await held.release()
        await fine
        with pytest.raises(asyncio.CancelledError):
            await gone
    assert held.worker.batches == [[1], [3]]
    assert shed("abandoned") == before + 1


async def test_cancelled_while_computed_harms_nobody():
    async with Held() as held:
        held.first.cancel()
        fine = held.submit(2)
        await turn()
        held.worker.gate.set()
        assert len((await fine).answer) == 2


async def test_empty_everybody_gone_computes_nothing_and_goes_on_serving():
    async with Held() as held:
        gone = [held.submit(2), held.submit(3)]
        await turn()
        for one in gone:
            one.cancel()
        await turn()
        await held.release()
        assert len((await held.submit(4)).answer) == 4
    assert held.worker.batches == [[1], [4]]


async def test_who_wants_something_else_run_travels_with_those_who_want_the_same_and_the_oldest_first():
    other = Worker()
    async with Held() as held:
        wanted = [(2, held.worker), (3, other), (4, held.worker), (5, other), (6, held.worker)]
        waiting = [asyncio.create_task(held.batcher.submit(query(k), run, deadline=1e9)) for k, run in wanted]
        await turn()
        await held.release()
        done = await asyncio.gather(*waiting)
    assert held.worker.batches == [[1], [2, 4, 6]]
    assert other.batches == [[3, 5]]
    assert [len(one.answer) for one in done] == [2, 3, 4, 5, 6]


async def test_one_bad_query_fails_alone():
    async with Held() as held:
        waiting = [held.submit(k) for k in (2, 13, 3)]
        await turn()
        await held.release()
        good, bad, also_good = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(bad, ValueError)
    assert (len(good.answer), len(also_good.answer)) == (2, 3)


async def test_a_worker_that_raises_what_is_no_exception_resolves_its_waiters_and_lives_on():
    async with Held() as held:
        dying = held.submit(666)
        await turn()
        await held.release()
        with pytest.raises(RuntimeError, match="stopped by SystemExit"):
            await dying
        assert len((await held.submit(2)).answer) == 2


async def test_an_answer_too_few_is_an_error_for_all_and_not_somebody_elses_answer():
    batcher = MicroBatcher(max_batch=8, queue_limit=8, wait_s=0, clock=time.monotonic)
    batcher.start()
    with pytest.raises(RuntimeError, match="0 answers to 1 questions"):
        await batcher.submit(query(), lambda *_: [], deadline=1e9)
    await batcher.close()


async def test_a_worker_thread_that_is_gone_resolves_everybody():
    async with Held() as held:
        waiting = held.submit(2)
        await turn()
        held.batcher._worker.shutdown(wait=False)
        await held.release()
        with pytest.raises(RuntimeError, match="cannot schedule new futures"):
            await waiting


async def test_an_owner_that_dies_resolves_everybody_and_refuses_the_rest():
    async with Held() as held:
        waiting = held.submit(2)
        await turn()
        held.batcher._owner.cancel()
        for task in (held.first, waiting):
            with pytest.raises(NotReady):
                await task
        assert not held.batcher.is_alive
        with pytest.raises(NotReady, match="restarted"):
            await held.batcher.submit(query(), held.worker, deadline=1e9)


async def test_shutdown_drains_and_then_refuses():
    before = shed("shutdown")
    async with Held() as held:
        waiting = held.submit(2)
        await turn()
        closing = asyncio.create_task(held.batcher.close())
        await turn()
        with pytest.raises(Overloaded, match="shutting down"):
            await held.batcher.submit(query(), held.worker, deadline=1e9)
        held.worker.gate.set()
        await closing
        assert len((await waiting).answer) == 2
        assert len((await held.first).answer) == 1
    assert shed("shutdown") == before + 1


class Paced(Held):
    """A paced batcher in which one question is known to take a second, by a clock that stands still from then on."""

    def __init__(self, **limits) -> None:
        self.now = 0.0
        super().__init__(clock=lambda: self.now, is_paced=True, **limits)

    async def release(self) -> None:
        self.now += 1.0
        await super().release()


async def test_a_paced_batch_takes_the_freshest_that_it_has_time_for_and_tells_the_late_at_once():
    before = shed("late")
    async with Paced() as held:
        waiting = [
            held.submit(k, deadline=1.0 + seconds) for k, seconds in ((2, 1.5), (3, 2.5), (4, 3.5), (5, 9), (6, 9))
        ]
        await turn()
        await held.release()
        done = await asyncio.gather(*waiting, return_exceptions=True)
    # 5, 6 and 4 are done after three seconds; 3 has time for two, and 2 for one.
    assert held.worker.batches == [[1], [5, 6, 4]]
    assert [isinstance(one, DeadlineExceeded) for one in done] == [True, True, False, False, False]
    assert shed("late") == before + 2


async def test_a_paced_batch_leaves_for_the_next_one_who_has_time_for_it():
    async with Paced(max_batch=4) as held:
        waiting = [held.submit(k, deadline=1.0 + 20) for k in range(2, 8)]
        await turn()
        await held.release()
        await asyncio.gather(*waiting)
    assert held.worker.batches == [[1], [2, 3, 4, 5], [6, 7]]


async def test_late_by_every_reckoning_one_runs_all_the_same_so_that_a_wrong_pace_is_found_out():
    async with Paced() as held:
        hopeless = held.submit(2, deadline=1.5)
        await turn()
        await held.release()
        assert len((await hopeless).answer) == 2
    assert held.worker.batches == [[1], [2]]


async def test_a_queue_is_bounded_by_time():
    before = shed("queue_slow")
    async with Paced() as held:  # one question is known to take a second once the first one is done
        await held.release()
        held.worker.gate.clear()
        held.batcher.longest_s = 2.5
        waiting = [held.submit(2)]
        await turn()
        waiting += [held.submit(3), held.submit(4)]
        await turn()
        with pytest.raises(Overloaded, match=r"more than it answers in 2\.5 s") as refused:
            await held.submit(5)
        assert refused.value.reason == "queue_slow"
        held.worker.gate.set()
        await asyncio.gather(*waiting)
    assert shed("queue_slow") == before + 1


async def test_a_batch_takes_no_longer_than_it_may():
    async with Paced(batch_s=2.5) as held:
        waiting = [held.submit(k, deadline=1e9) for k in (2, 3, 4, 5, 6)]
        await turn()
        await held.release()
        await asyncio.gather(*waiting)
    assert held.worker.batches[:2] == [[1], [2, 3]]  # by this clock the second took no time, so the third may be longer


async def test_the_oldest_wait_of_each_batch_is_felt():
    felt = []
    async with Paced(felt=lambda wait_s, what: felt.append((wait_s, what))) as held:
        waiting = [held.submit(k, deadline=1e9) for k in (2, 3)]
        await turn()
        await held.release()
        await asyncio.gather(*waiting)
    assert felt == [(0.0, "encoder"), (1.0, "encoder")]


async def test_waiting_for_company_ends_with_a_full_batch():
    worker = Worker()
    batcher = MicroBatcher(max_batch=2, queue_limit=8, wait_s=60, clock=time.monotonic)
    batcher.start()
    await asyncio.gather(*(batcher.submit(query(k), worker, deadline=1e9) for k in (2, 3)))
    assert worker.batches == [[2, 3]]
    alone = asyncio.create_task(batcher.submit(query(4), worker, deadline=1e9))
    await turn()
    await batcher.close()  # ends the waiting, too
    assert len((await alone).answer) == 4


async def test_waiting_for_company_ends_with_time():
    worker = Worker()
    batcher = MicroBatcher(max_batch=8, queue_limit=8, wait_s=0.01, clock=time.monotonic)
    batcher.start()
    assert len((await batcher.submit(query(2), worker, deadline=1e9)).answer) == 2
    await batcher.close()


async def test_a_batch_that_takes_no_time_is_run_on_the_event_loop_and_a_long_one_beside_it():
    here = threading.get_ident()
    ran: list[int] = []
    took = iter([1.0, 1.0, 5.0, 1.0])  # seconds, by a clock that a batch moves
    now = 0.0

    def work(questions, _stage):
        nonlocal now
        ran.append(threading.get_ident())
        now += next(took)
        return list(questions)

    batcher = MicroBatcher(max_batch=8, queue_limit=8, wait_s=0, clock=lambda: now, inline_s=1.1)
    batcher.start()
    for k in range(4):
        assert (await batcher.submit(k, work, deadline=1e9)).answer == k
    await batcher.close()
    # The first is not known to be short, the third was not, and the last pays for it.
    assert [one == here for one in ran] == [False, True, True, False]


async def test_who_is_alone_is_answered_at_once_and_in_company_everybody_travels_together():
    sizes: list[int] = []
    is_alone, now = True, 0.0

    def work(questions, _stage):
        nonlocal now
        sizes.append(len(questions))
        now += 1.0
        if "wrong" in questions:
            raise ValueError("odd")
        return list(questions)

    batcher = MicroBatcher(
        max_batch=8, queue_limit=8, wait_s=0, clock=lambda: now, inline_s=9.0, is_alone=lambda: is_alone
    )
    batcher.start()
    await batcher.submit("first", work, deadline=1e9)  # nothing is known yet: the owner carries it
    turns = 0

    def count():
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(count)

    count()
    done = await batcher.submit("alone", work, deadline=1e9)
    assert (done.answer, done.batch_size, done.queue_s, turns) == ("alone", 1, 0.0, 1)
    with pytest.raises(ValueError, match="odd"):
        await batcher.submit("wrong", work, deadline=1e9)
    with pytest.raises(DeadlineExceeded):
        await batcher.submit("late", work, deadline=now)
    is_alone = False
    asked = [batcher.submit(k, work, deadline=1e9) for k in range(3)]
    assert [one.batch_size for one in await asyncio.gather(*asked)] == [3, 3, 3]
    is_alone = True
    asked = [batcher.submit(k, work, deadline=1e9) for k in range(2)]
    await asyncio.gather(*asked)
    await batcher.close()
    assert sizes == [1, 1, 1, 3, 1, 1]
