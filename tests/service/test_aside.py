"""Work aside gives way, and leaves nothing behind."""

import os
import sys
import threading
import time

import pytest

from service.aside import HANDED_OVER_EVERY_S, NICE, Aside
from service.errors import DeadlineExceeded, Overloaded

pytestmark = pytest.mark.anyio


@pytest.fixture
def aside():
    made = Aside(time.perf_counter)
    yield made
    made.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a priority for each thread")
async def test_it_runs_at_a_low_priority_of_its_own(aside):
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert await aside.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())) == max(own, NICE)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


async def test_the_interpreter_is_handed_over_often_while_it_works_and_as_before_after(aside):
    before = sys.getswitchinterval()
    assert await aside.run(sys.getswitchinterval) == pytest.approx(HANDED_OVER_EVERY_S)
    with pytest.raises(ZeroDivisionError):
        await aside.run(lambda: 1 / 0)
    assert sys.getswitchinterval() == before


async def test_a_question_is_answered_with_what_its_stages_took(aside):
    def run(questions, stage):
        with stage("encode"):
            return [question * 2 for question in questions]

    batched = await aside.submit(21, run, deadline=time.perf_counter() + 10)
    assert (batched.answer, batched.batch_size, set(batched.stages_s)) == (42, 1, {"encode"})
    with pytest.raises(DeadlineExceeded):
        await aside.submit(21, run, deadline=0.0)


async def test_nothing_is_begun_where_somebody_waits():
    def check():
        raise Overloaded("somebody waits", reason="in_flight")

    with pytest.raises(Overloaded):
        await Aside(time.perf_counter, check=check).submit(1, lambda *_: [1], deadline=1e9)
