"""The figures of a run by hand."""

import pytest

from loadtests.faults.exchanges import Course, Exchange
from loadtests.faults.figures import Times, of_run, recovery
from loadtests.faults.people import Step
from loadtests.faults.verdicts import Audit, Verdict

TIMES = Times(begin=1.0, struck=2.0, lifted=4.0, end=8.0)


def one(due, *, took=0.01, word="right", degraded=(), is_event=False, code="200", lag=0.0):
    step = Step("u", "a", "u.0") if is_event else Step("u")
    return Exchange(step, "r", due, due + lag, due + took), Verdict(word, code, tuple(degraded))


def figures(run, audit=None):
    return of_run(Course([e for e, _ in run], 0.25), run, TIMES, audit or Audit())


def test_each_request_counts_in_the_time_in_which_it_was_due():
    run = [one(0.5), one(1.0), one(1.5, took=3.0), one(2.0), one(2.1, took=0.051), one(4.0), one(7.9), one(8.0)]
    got = figures(run)
    assert got["requests"] == 6
    assert got["offered_per_s"] == {"before": 2.0, "during": 1.0, "after": 0.5}
    assert got["goodput_per_s"] == {"before": 1.0, "during": 0.5, "after": 0.5}
    assert got["p99_ms"]["before"] == pytest.approx(3000)
    assert got["p50_ms"]["before"] == pytest.approx(10)
    assert got["p99_ratio"] == pytest.approx(51 / 3000, abs=0.001)
    assert got["trouble_s"] == 2.0
    assert got["generator_cpu"] == 0.25


def test_refusals_failures_and_degradations_are_told_apart():
    run = [
        one(2.0, degraded=["store_unavailable", "no_history"]),
        one(2.1, took=0.5),
        one(2.2, word="refused", code="store_unavailable", is_event=True, took=0.004),
        one(2.3, word="refused", code="overloaded", took=0.003),
        one(2.4, word="failed", code="504"),
        one(2.5, word="foreign"),
        one(2.6, is_event=True, took=0.9),
        one(2.7, word="stale"),
    ]
    got = figures(run, Audit(acknowledged=9, lost=2, foreign=3, repeated=4, unread=5))
    assert (got["failed"], got["failed_by"]) == (1, {"504": 1})
    assert (got["refused_events"], got["refused_questions"]) == (1, 1)
    assert got["refused_by"] == {"store_unavailable": 1, "overloaded": 1}
    assert got["refused_p99_ms"] == pytest.approx(4)
    assert got["degraded_share"]["during"] == 0.5  # of the two questions with a right answer
    assert got["degraded_by"] == {"store_unavailable": 1, "no_history": 1}
    assert got["felt"] == 3
    assert (got["foreign"], got["stale"]) == (1 + 3, 1)
    assert (got["acknowledged"], got["lost"], got["stored_twice"], got["unread"]) == (9, 2, 4, 5)
    assert got["p99_ms"]["during"] == pytest.approx(900)
    assert got["question_p99_ms"]["during"] == pytest.approx(500)
    assert got["goodput_per_s"]["during"] == 0.5


def steady(**ill):
    """Ten requests a second from 4 to 8, those at the given moments ill."""
    at = {float(name.removeprefix("at_").replace("_", ".")): how for name, how in ill.items()}
    return [one(n / 10, **at.get(n / 10, {})) for n in range(40, 80)]


def test_a_service_that_is_well_at_once_took_no_time_to_recover():
    assert recovery(steady(), TIMES) == 0.0


@pytest.mark.parametrize(
    "ill", [{"took": 0.06}, {"degraded": ["deadline"]}, {"word": "refused"}, {"word": "failed"}, {"word": "stale"}]
)
def test_recovery_is_when_the_last_ill_answer_was_due(ill):
    assert recovery(steady(at_4_0=ill, at_4_7=ill), TIMES) == pytest.approx(0.7)


def test_a_lucky_half_second_is_no_recovery():
    assert recovery(steady(at_4_8={"word": "failed"}), TIMES) == pytest.approx(0.8)


def test_one_that_was_well_for_a_second_has_recovered():
    assert recovery(steady(at_4_1={"word": "failed"}, at_6_0={"took": 0.2}), TIMES) == pytest.approx(0.1)


def test_after_something_sudden_recovery_counts_from_then_on():
    run = steady(at_4_4={"word": "failed"})
    assert recovery(run, TIMES) == pytest.approx(0.4)
    assert recovery(run, Times(1.0, 4.1, 6.0, 8.0, over=4.1)) == pytest.approx(0.3)


def test_one_that_never_is_well_has_not_recovered():
    assert recovery([one(n / 10, word="failed") for n in range(40, 80)], TIMES) is None
    assert recovery([], TIMES) is None
    assert recovery(steady(), Times(1.0, 2.0, 7.5, 8.0)) is None  # nobody looked for long enough
