"""The contest's arithmetic, and one small contest between real rivals."""

import json
import math
import os

import pytest

from loadtests import __main__ as commands
from loadtests import comparison
from loadtests.capacity import Probe
from loadtests.comparison import Work, work
from loadtests.traffic import Step
from loadtests.wire import Reply

GOOD = b'{"items":[{"item_id":"a","score":1.0},{"item_id":"b","score":0.5}],"degraded":false}'


def probe(rate, *, lag_ms=0.1, busy=0.3):
    return Probe(rate, [0.004], lag_ms, busy)


def found():
    rates = {"plain": (100.0, 110.0, 90.0), "ours": (200.0, 242.0, 171.0), "no-op": (300.0, 310.0), "empty": (900.0,)}
    return {workload: {rival: [probe(r) for r in of] for rival, of in rates.items()} for workload in ("stored", "body")}


def test_the_ratio_is_that_of_each_repetition():
    ratio = comparison.figures(found())["stored"]["ratio"]
    assert ratio == {"median": 2.0, "low": 1.9, "high": 2.2}


def test_the_table_has_a_row_for_each_rival_and_workload():
    rows = comparison.table(comparison.figures(found()))
    assert len(rows) == 1 + 2 * 4
    assert rows[2][:2] == ["stored, ours", "200 [171 242]"]
    assert rows[2][-1] == "2.00 [1.90 2.20]"


def test_it_is_said_where_the_generator_may_have_been_the_limit():
    measured = found()
    assert comparison.doubts(measured) == [
        f"{workload}: the empty route, asked by this generator, keeps 3.0 times the rate of the fastest rival"
        for workload in ("stored", "body")
    ]
    measured["body"]["ours"][1] = probe(242.0, lag_ms=3.0, busy=0.95)
    assert "body, ours: in 1 of 3 repetitions the generator was up to 3.00 ms late" in comparison.doubts(measured)[1]


def test_a_rival_that_holds_nothing_has_a_ratio_of_nought():
    measured = found()
    measured["stored"]["plain"] = [Probe(0.0, [math.inf], 0.0, 0.0)]
    assert comparison.figures(measured)["stored"]["ratio"]["median"] == 0


def test_an_answer_is_good_when_it_has_all_items_and_nothing_is_degraded():
    todo = Work([b""] * 2, [False, True], 2)
    assert todo.is_good(0, Reply(200, b"", GOOD))
    assert not todo.is_good(0, Reply(200, b"", GOOD.replace(b"false", b"true")))
    assert not Work([b""], [False], 3).is_good(0, Reply(200, b"", GOOD))
    assert not todo.is_good(0, Reply(503))
    assert todo.is_good(1, Reply(202))
    todo.at = 1
    assert todo.is_good(0, Reply(202))  # the request that comes first now is the event


def test_the_same_steps_are_asked_in_each_rivals_words():
    steps = [Step("u", None, ("a", "b")), Step("u", "c", ("a", "b", "c"))]
    ours = work("ours", steps, is_stored=True, k=5, headers={"authorization": "Bearer x"})
    plain = work("plain", steps, is_stored=False, k=5, headers={})
    assert ours.requests[0].startswith(b"POST /v1/recommendations HTTP/1.1\r\n")
    assert b"authorization: Bearer x" in ours.requests[0]
    assert json.loads(ours.requests[0].split(b"\r\n\r\n")[1]) == {"user_id": "u", "k": 5}
    assert json.loads(plain.requests[0].split(b"\r\n\r\n")[1]) == {"history": ["a", "b"], "k": 5}
    assert plain.requests[1].startswith(b"POST /events HTTP/1.1\r\n")
    assert plain.is_event == [False, True]


@pytest.mark.slow
@pytest.mark.redis
def test_a_small_contest(toy_bundle, capsys):
    affinity = os.sched_getaffinity(0)
    try:
        patient = ["--repeats", "1", "--seconds", "0.2", "--p90-ms", "2000", "--p99-5-ms", "5000", "--k", "3"]
        assert commands.main(["compare", "--bundle", str(toy_bundle), *patient]) == 0
    finally:
        os.sched_setaffinity(0, affinity)
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["ratio"] > 0
    assert document["ratio"] == document["results"]["stored"]["ratio"]["median"]
