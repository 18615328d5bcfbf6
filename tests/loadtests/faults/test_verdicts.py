"""Verdicts: whose history an answer was made from, and that it can be found out."""

import json

import pytest

from loadtests.faults.exchanges import Exchange
from loadtests.faults.people import Step
from loadtests.faults.verdicts import Ledger, audited, judged
from loadtests.wire import Reply

POOL = frozenset({"a", "b", "c", "d"})


def reply(status, body, **headers):
    head = "HTTP/1.1 200 OK" + "".join(f"\r\n{name.replace('_', '-')}: {value}" for name, value in headers.items())
    return Reply(status, head.encode(), json.dumps(body).encode())


def asked(shown, *, left=5.0, done=5.1, degraded=(), among=POOL, **headers):
    items = [item if isinstance(item, dict) else {"item_id": item} for item in shown]
    answer = reply(200, {"items": items, "degraded_reasons": list(degraded)}, **headers)
    return Exchange(Step("u", among=among), "r.1", left, left, done, answer)


def clicked(item_id, *, left, done, status=202, outcome="accepted", user_id="u"):
    step = Step(user_id, item_id, f"{user_id}.{item_id}")
    return Exchange(step, "r.0", left, left, done, reply(status, {"results": [{"outcome": outcome}]}))


@pytest.fixture
def ledger():
    """The past of u is a; the past of v is b."""
    told = Ledger()
    told.remember(Step("u", "a", "u.a"))
    told.remember(Step("v", "b", "v.b"))
    return told


def test_the_right_answer_hides_ones_own_history(ledger):
    assert judged(asked("bcd"), ledger).word == "right"


def test_an_answer_from_somebody_elses_history_is_foreign(ledger):
    assert judged(asked("acd"), ledger).word == "foreign"


def test_it_is_foreign_where_the_store_is_said_to_be_away_too(ledger):
    away = ("store_unavailable",)
    assert judged(asked("abcd", degraded=away), ledger).word == "right"
    assert judged(asked("acd", degraded=away), ledger).word == "foreign"


def test_an_answer_that_knows_nothing_and_does_not_say_so_is_stale(ledger):
    assert judged(asked("abcd", degraded=["no_history"]), ledger).word == "stale"


def test_the_answer_to_another_request_is_foreign(ledger):
    assert judged(asked("bcd", x_request_id="r.2"), ledger).word == "foreign"
    assert judged(asked("bcd", x_request_id="r.1"), ledger).word == "right"


def test_a_reason_from_somebody_elses_history_is_foreign(ledger):
    near = {"item_id": "c", "reason": {"kind": "near", "item_id": "a"}}
    assert judged(asked(["b", near, "d"]), ledger).word == "right"
    near["reason"]["item_id"] = "b"
    assert judged(asked(["b", near, "d"]), ledger).word == "foreign"


@pytest.mark.parametrize(
    ("left", "done", "shown", "word"),
    [
        (1.0, 2.0, "bd", "right"),
        (1.0, 2.0, "bcd", "stale"),  # acknowledged before the question left
        (4.9, 5.05, "bd", "right"),  # under way at the same time: either is right
        (4.9, 5.05, "bcd", "right"),
        (5.2, 5.3, "bd", "foreign"),  # sent after the answer was here
    ],
)
def test_a_click_counts_from_its_acknowledgement(ledger, left, done, shown, word):
    ledger.enter([clicked("c", left=left, done=done)])
    assert judged(asked(shown), ledger).word == word


def test_a_click_that_was_not_acknowledged_may_be_known_and_need_not(ledger):
    ledger.enter([clicked("c", left=1.0, done=2.0, status=503), clicked("d", left=1.0, done=2.0, outcome="too_old")])
    assert judged(asked("bcd"), ledger).word == "right"
    assert judged(asked("b"), ledger).word == "right"


def test_the_other_promises(ledger):
    assert judged(asked("bbcd"), ledger).word == "repeated"
    assert judged(asked("bcdx"), ledger).word == "ineligible"
    torn = Exchange(Step("u", among=POOL), "r.1", 0.0, reply=Reply(200, b"HTTP/1.1 200 OK", b"{"))
    assert judged(torn, ledger).word == "malformed"


def test_an_honest_refusal_has_a_code_and_a_time_to_come_back(ledger):
    step = Step("u", "c", "u.c")
    refused = Exchange(step, "r.1", 0.0, reply=reply(503, {"code": "store_unavailable"}, retry_after=1))
    assert (judged(refused, ledger).word, judged(refused, ledger).code) == ("refused", "store_unavailable")
    for answer in (reply(503, {"code": "overloaded"}), reply(503, [], retry_after=1), reply(500, {"code": "internal"})):
        assert judged(Exchange(step, "r.1", 0.0, reply=answer), ledger).word == "failed"
    assert judged(Exchange(step, "r.1", 0.0, reply=Reply(0, failure="timeout")), ledger).code == "timeout"


def test_an_audit_finds_what_is_lost_and_what_is_a_strangers(ledger):
    ledger.enter([clicked("c", left=1.0, done=2.0), clicked("d", left=1.0, done=2.0, status=503)])
    history = {"user_id": "u", "events": [{"event_id": "u.a"}, {"event_id": "v.b"}, {"event_id": "u.a"}]}
    audit = audited(ledger, {"u": history, "v": None})
    assert (audit.acknowledged, audit.lost, audit.foreign, audit.repeated, audit.unread) == (3, 1, 1, 1, 1)
    whole = {"user_id": "u", "events": [{"event_id": "u.a"}, {"event_id": "u.c"}, {"event_id": "u.d"}]}
    audit = audited(ledger, {"u": whole})
    assert (audit.acknowledged, audit.lost, audit.foreign, audit.repeated, audit.unread) == (2, 0, 0, 0, 0)
