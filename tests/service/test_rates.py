import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from service import metrics
from service.errors import RateLimited
from service.keys import ANYBODY, Key
from service.rates import Rates


class Clock:
    """Seconds that only a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def key(name: str, rate: float | None = None) -> Key:
    return Key(name, frozenset({"read"}), b"", rate)


def passed(rates: Rates, of: Key, calls: int) -> int:
    """How many of so many calls at once pass."""
    count = 0
    for _ in range(calls):
        try:
            rates.take(of)
        except RateLimited:
            continue
        count += 1
    return count


def test_a_key_may_save_up_a_second_and_not_more():
    clock = Clock()
    rates = Rates(10, clock=clock)
    assert passed(rates, key("a"), 50) == 10
    clock.now += 0.5
    assert passed(rates, key("a"), 50) == 5
    clock.now += 3_600
    assert passed(rates, key("a"), 50) == 10


def test_each_key_has_a_bucket_and_a_rate_of_its_own():
    rates = Rates(2, clock=Clock())
    assert passed(rates, key("a"), 50) == 2
    assert passed(rates, key("b"), 50) == 2
    assert passed(rates, key("c", 7), 50) == 7
    assert passed(rates, key("d", 0), 50) == 50


def test_without_a_rate_nobody_is_held_up():
    rates = Rates(0, clock=Clock())
    assert passed(rates, ANYBODY, 1_000) == 1_000
    assert passed(rates, key("a", 3), 50) == 3


def test_workers_share_a_rate():
    assert passed(Rates(12, workers=4, clock=Clock()), ANYBODY, 50) == 3


def test_a_rotated_key_keeps_its_bucket():
    rates = Rates(2, clock=Clock())
    old, new = Key("shop", frozenset(), b"1"), Key("shop", frozenset(), b"2")
    rates.take(old)
    rates.take(new)
    with pytest.raises(RateLimited):
        rates.take(new)


@given(rate=st.floats(0.01, 500), calls=st.integers(0, 5))
def test_what_is_said_of_waiting_is_true(rate, calls):
    """After that many seconds the next call passes, and a moment before it does not."""
    clock = Clock()
    rates = Rates(rate, clock=clock)
    passed(rates, ANYBODY, math.ceil(max(1, rate)) + calls)
    with pytest.raises(RateLimited) as refused:
        rates.take(ANYBODY)
    after_s = refused.value.after_s
    assume(after_s * rate > 1e-3)  # below that the two moments are one
    clock.now += after_s * 0.999
    with pytest.raises(RateLimited):
        rates.take(ANYBODY)
    clock.now += after_s * 0.0011
    rates.take(ANYBODY)


def test_refusals_are_counted_by_key():
    labels = {"key": "slowcoach", "limit": "rate"}
    rates = Rates(1, clock=Clock())
    passed(rates, key("slowcoach"), 4)
    assert metrics.REGISTRY.get_sample_value("sequitur_limited_total", labels) == 3
