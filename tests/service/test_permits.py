import asyncio
import time

import pytest

from service import metrics
from service.errors import Overloaded
from service.permits import FEWEST, LENT_AFTER_S, SURE, WINDOW_S, Permits, Unlimited


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_full_nobody_waits_and_a_permit_comes_back_whatever_happens():
    permits = Permits(1)
    before = metrics.REGISTRY.get_sample_value("sequitur_shed_total", {"reason": "in_flight"})
    with permits.hold():
        metrics.count_kept()
        assert metrics.REGISTRY.get_sample_value("sequitur_in_flight") == 1
        with pytest.raises(Overloaded, match="1 requests are at work already"), permits.hold():
            pass
    with pytest.raises(KeyError), permits.hold():
        raise KeyError
    with permits.hold():
        pass
    metrics.count_kept()
    assert metrics.REGISTRY.get_sample_value("sequitur_in_flight") == 0
    assert metrics.REGISTRY.get_sample_value("sequitur_shed_total", {"reason": "in_flight"}) == before + 1


def test_gone_store_who_waits_for_it_keeps_nobody_out():
    now = [0.0]
    permits = Permits(2, clock=lambda: now[0])
    with permits.hold(), permits.hold():
        assert permits.is_full()
        with permits.lent():
            assert (permits.taken, permits.waiting) == (1, 1)
            assert permits.is_full(coming=2)  # it may be this process that is slow
            now[0] += LENT_AFTER_S
            assert not permits.is_full(coming=2)
            with permits.hold():
                assert permits.is_full(coming=3)
        assert (permits.taken, permits.waiting) == (2, 0)


def test_full_of_those_who_wait_for_the_store_a_call_that_needs_it_is_refused():
    now = iter(range(1_000))
    permits = Permits(1, clock=lambda: next(now))
    with permits.hold(), permits.lent(is_bounded=True), permits.hold():
        with pytest.raises(Overloaded, match="1 requests wait for the session store"), permits.lent(is_bounded=True):
            pass
        with permits.lent():
            assert permits.waiting == 2
    assert (permits.taken, permits.waiting) == (0, 0)


class Process:
    """A process in which work waits as long as a test says, over one window after the other."""

    def __init__(self, most: int, target_s: float) -> None:
        self.now = 0.0
        self.permits = Permits(most, target_s=target_s, clock=lambda: self.now)
        self.permits.limit = most

    def window(self, *waits_s: float, at_work: int = 0) -> int:
        """A window in which these waits were felt while so many were at work; the limit after it."""
        self.permits.taken = at_work
        self.permits._busiest = at_work
        for wait_s in (*waits_s * (SURE - 1), *waits_s[:-1]):
            self.permits.felt(wait_s, "encoder")
        self.now += 2 * WINDOW_S
        self.permits.felt(waits_s[-1], "encoder")
        self.permits.taken = 0
        return self.permits.limit


def test_a_standing_line_lowers_the_limit_by_as_much_as_the_wait_is_too_long():
    process = Process(256, target_s=0.02)
    assert process.window(0.025, 0.025, at_work=100) == 80
    assert process.window(0.5, 0.5, at_work=80) == 40  # and by no more than half at once
    for _ in range(20):
        process.window(0.5, 0.5, at_work=process.permits.limit)
    assert process.permits.limit == FEWEST


def test_a_burst_in_which_somebody_hardly_waited_lowers_nothing():
    assert Process(256, target_s=0.02).window(0.0, 0.2, 0.2, at_work=200) == 256


def test_a_hiccup_is_no_line_and_a_slow_line_is_seen_all_the_same():
    process = Process(256, target_s=0.02)
    for _ in range(SURE - 1):
        process.permits._busiest = process.permits.taken = 100
        process.now += 2 * WINDOW_S
        process.permits.felt(0.04, "encoder")
        for _ in range(SURE):
            process.permits.felt(0.0, "loop")
        assert process.permits.limit == 256
    process.permits._busiest = 100
    process.permits.felt(0.04, "encoder")
    process.now += 2 * WINDOW_S
    process.permits.felt(0.0, "loop")
    assert process.permits.limit < 256


def test_a_line_for_one_thing_is_seen_beside_another_that_nobody_waits_for():
    process = Process(256, target_s=0.02)
    process.permits.felt(0.0, "loop")
    assert process.window(0.04, at_work=100) == 50


def test_the_limit_rises_where_permits_run_out_and_all_is_well_and_never_above_the_most():
    process = Process(60, target_s=0.02)
    low = process.window(0.04, at_work=60)
    assert process.window(0.001, at_work=low - 1) == low
    higher = process.window(0.001, at_work=low)
    assert higher > low
    for _ in range(50):
        process.window(0.001, at_work=process.permits.limit)
    assert process.permits.limit == 60


def test_requests_at_the_door_count_before_they_have_their_permits():
    permits = Permits(3)
    permits.check(coming=2)
    with pytest.raises(Overloaded, match="3 requests are at work"):
        permits.check(coming=3)


@pytest.mark.anyio
async def test_a_late_event_loop_is_felt():
    permits = Permits(100, target_s=0.02)
    permits.taken = permits._busiest = 50
    watching = asyncio.create_task(permits.watch())
    for _ in range(20):
        await asyncio.sleep(0)
        time.sleep(0.02)  # the event loop does nothing else meanwhile
    watching.cancel()
    assert permits.limit < 50


def test_alone_is_who_shares_the_service_with_nobody_not_even_with_who_waits_or_is_still_coming():
    permits = Permits(4)
    with permits.hold():
        assert permits.is_alone
        with permits.hold():
            assert not permits.is_alone
            with permits.lent():
                assert not permits.is_alone
        permits.here = 2
        assert not permits.is_alone


def test_work_that_nobody_waits_for_takes_none_and_is_no_reason_not_to_be_idle():
    permits = Permits(1)
    free = Unlimited()
    with free.hold(), free.hold(), free.lent():
        assert free.is_idle
    with permits.hold():
        assert not permits.is_idle
        with permits.lent():
            assert not permits.is_idle
    assert permits.is_idle
