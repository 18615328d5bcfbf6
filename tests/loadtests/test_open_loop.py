"""Latency counts from when a request was due, and a run that falls behind says so."""

import asyncio
import json
import time

import numpy as np
import pytest

from loadtests import open_loop
from loadtests.client import Client, Outcome
from loadtests.open_loop import Checked, Session, Timed, measured, offer
from loadtests.target import Facts, LoadError
from loadtests.traffic import Step

SERVICE_S = 0.02


def timed(due, left, done, *, code="200", wrong=None):
    return Timed(due, left, done, Checked(code, code == "200", done, wrong, ()))


def serial(service_s):
    """A server that does one thing at a time: `send` for `offer`."""
    turn = asyncio.Lock()

    async def send(_number):
        async with turn:
            await asyncio.sleep(service_s)
        return Checked("200", True, time.perf_counter())

    return send


def run_offer(due, service_s):
    async def once():
        return await offer(np.asarray(due), serial(service_s))

    return asyncio.run(once())


def test_without_load_latency_is_the_time_of_service():
    run = run_offer(np.arange(5) * 4 * SERVICE_S, SERVICE_S)
    taken = [one.done - one.due for one in run]
    assert min(taken) >= SERVICE_S
    assert np.median(taken) < 3 * SERVICE_S


def test_a_server_that_is_too_slow_makes_latency_grow_from_the_scheduled_time():
    due = np.arange(20) * SERVICE_S / 4  # four times what the server can do
    run = run_offer(due, SERVICE_S)
    taken = np.array([one.done - one.due for one in run])
    # Request n is answered after n + 1 times of service, and was due after n / 4 of them.
    assert (taken >= (np.arange(20) * 0.75 + 1) * SERVICE_S - 0.002).all()
    assert taken[-1] > 10 * taken[0]
    assert not measured(run, begin=0.0, end=20 * SERVICE_S / 4)["sustained"]


def test_nobody_waits_for_an_answer_before_sending_the_next_request():
    run = run_offer([0.0, 0.001, 0.002], 0.1)
    assert max(one.left for one in run) < 0.1


def test_a_late_generator_is_reported_and_its_delay_is_in_the_latency():
    class Stalled:
        """A clock of a generator that was not run for a second before its first request."""

        calls = 0

        def __call__(self):
            self.calls += 1
            return time.perf_counter() + (self.calls > 1)

    clock = Stalled()

    async def send(_number):
        return Checked("200", True, clock())

    async def once():
        return await offer(np.array([0.0]), send, clock=clock)

    figures = measured(asyncio.run(once()), begin=0.0, end=1.0)
    assert figures["lag_max_ms"] == pytest.approx(1000, abs=100)
    assert figures["p50_ms"] >= figures["lag_max_ms"]
    assert figures["from_leaving_p50_ms"] < 100


def test_the_figures_of_a_run_by_hand():
    run = [
        timed(0.5, 0.5, 1.1),  # warm-up, but answered in the measured time
        timed(1.0, 1.0, 1.1),
        timed(1.5, 1.7, 1.8),
        timed(2.0, 2.0, 2.1, code="503"),
        timed(2.5, 2.5, 2.6, wrong="seen"),
        timed(2.9, 2.9, 3.9),  # answered too late to count as achieved
    ]
    figures = measured(run, begin=1.0, end=3.0)
    assert figures["requests"] == 5
    assert figures["offered_per_s"] == 2.5
    assert figures["achieved_per_s"] == 1.5
    assert figures["sustained"] is False
    assert (figures["errors"], figures["wrong"]) == (1, 1)
    assert figures["codes"] == {"200": 4, "503": 1}
    assert figures["wrong_by"] == {"seen": 1}
    assert (figures["p50_ms"], figures["max_ms"]) == (300.0, 1000.0)  # of 100, 300 and 1000
    assert figures["from_leaving_p50_ms"] == 100.0
    assert figures["lag_max_ms"] == 200.0


def test_slow_but_steady_answers_are_sustained():
    run = [timed(n / 10, n / 10, n / 10 + 0.8) for n in range(30)]  # a rate of 10 with a latency of 0.8 s
    assert measured(run, begin=1.0, end=3.0)["sustained"] is True


def test_two_in_a_hundred_may_be_missing_and_no_more():
    run = [timed(n / 100, n / 100, n / 100 + 0.001, code="200" if n >= 2 else "503") for n in range(100)]
    assert measured(run, begin=0.0, end=1.0)["sustained"] is True
    run[2] = timed(0.02, 0.02, 0.021, code="503")
    assert measured(run, begin=0.0, end=1.0)["sustained"] is False


def test_an_empty_run_is_refused():
    with pytest.raises(LoadError, match="no request was due"):
        measured([], begin=0.0, end=1.0)


class Scripted(Client):
    """Gives prepared outcomes, and keeps what it was sent."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.sent = []

    async def request(self, method, path, body=None):
        self.sent.append((method, path, json.loads(body)))
        return self.outcomes.pop(0)


def shown(*item_ids, degraded=()):
    items = [{"item_id": item_id} for item_id in item_ids]
    return Outcome("200", {"items": items, "degraded_reasons": list(degraded)})


def session(client, steps, *, is_stored, exclude_seen=True):
    facts = Facts({"exclude_seen": exclude_seen}, ("a", "b", "c"), frozenset("abc"), True)
    return Session(client, facts, steps, k=2, is_stored=is_stored)


def carry(session, *numbers):
    async def all_of_them():
        return [await session.send(number) for number in numbers]

    return asyncio.run(all_of_them())


ASK = Step("u", None, ("a",))
CLICK = Step("u", "b", ("a", "b"))


def test_a_history_travels_in_the_body_and_must_not_come_back():
    client = Scripted(shown("b", "c"), shown("a", "b"))
    fine, wrong = carry(session(client, [ASK, ASK], is_stored=False), 0, 1)
    assert (fine.wrong, wrong.wrong) == (None, "seen")
    assert client.sent[0] == ("POST", "/v1/recommendations", {"history": ["a"], "k": 2, "consent": False})


def test_a_confirmed_event_has_to_be_in_effect_and_an_unconfirmed_one_need_not():
    client = Scripted(Outcome("202", {"accepted": 1}), shown("b", "c"), shown("a", "c"))
    click, unaware, aware = carry(session(client, [CLICK, ASK, ASK], is_stored=True), 0, 1, 2)
    assert (click.is_ok, unaware.wrong, aware.wrong) == (True, "seen", None)

    client = Scripted(Outcome("503"), shown("b", "c"))
    refused, either = carry(session(client, [CLICK, ASK], is_stored=True), 0, 1)
    assert (refused.is_ok, either.wrong) == (False, None)


def test_a_model_that_repeats_may_show_what_was_seen():
    (got,) = carry(session(Scripted(shown("a", "b")), [ASK], is_stored=False, exclude_seen=False), 0)
    assert got.wrong is None


def test_a_degraded_answer_is_counted():
    (got,) = carry(session(Scripted(shown("b", "c", degraded=["deadline"])), [ASK], is_stored=False), 0)
    assert got.degraded == ("deadline",)


def test_a_generator_at_its_limit_says_so():
    figures = {
        "lag_p99_ms": {"median": 9.0, "low": 9.0, "high": 9.0},
        "generator_cpu": {"median": 0.95, "low": 0.9, "high": 1.0},
        "sustained": False,
    }
    said = open_loop.bottlenecks(figures, 100.0)
    assert len(said) == 3
    assert "9.0 ms late" in said[0]
    assert "NOT SUSTAINED" in said[2]


@pytest.mark.parametrize("history", ["body", "stored"])
def test_a_real_service_is_loaded_and_keeps_its_promise(service, history, capsys):
    arguments = ["--url", service, "--rate", "40", "--seconds", "1", "--warmup", "0.3", "--repeats", "2", "--k", "5"]
    status = open_loop.main([*arguments, "--history", history, "--require", "max_ms<=10000"])
    lines = capsys.readouterr().out.splitlines()
    document = json.loads(lines[-1])
    figures = document["results"]["40/s"]
    assert (figures["errors"], figures["wrong"]) == (0, 0)
    assert ("202" in figures["codes"]) is (history == "stored")
    assert figures["requests"] == pytest.approx(80, abs=45)
    assert figures["lag_p99_ms"]["low"] >= 0
    assert document["bundle"]["name"] == "toy"
    assert status == (0 if figures["sustained"] else 1)


def test_answers_that_break_the_promise_fail_the_run(fake_service, capsys):
    fake = fake_service()
    fake.recommend = lambda body: (
        fake.honest(body) if body["k"] == 500 else (200, fake.answer(["f0", "f0"][: body["k"]]))
    )
    arguments = ["--url", fake.url, "--rate", "30", "--seconds", "0.5", "--warmup", "0", "--repeats", "1", "--k", "2"]
    assert open_loop.main(arguments) == 1
    assert "wrong is" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--rate", "0"], ["--seconds", "-1"], ["--rate", "100000", "--seconds", "60"]])
def test_an_unbounded_run_is_refused(options):
    with pytest.raises(LoadError, match="is not a run of"):
        open_loop.main(options)


def test_a_foreign_host_is_refused():
    with pytest.raises(LoadError, match="another machine"):
        open_loop.main(["--url", "http://example.com", "--seconds", "1"])
