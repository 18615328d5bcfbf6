"""The judge knows a right answer from a wrong one; and a short run against a real service finds nothing."""

import json

import pytest

from loadtests import __main__ as commands
from loadtests import fuzz
from loadtests.cases import Case
from loadtests.fuzz import Tally, wrong_with
from loadtests.target import LoadError
from loadtests.wire import Reply

CASE = Case("valid", (b"GET / HTTP/1.1\r\n\r\n",))
PROBLEM = {"type": "urn:x", "title": "t", "status": 422, "detail": "d", "code": "c", "request_id": "r"}
HEAD = b"HTTP/1.1 422 No\r\ncontent-type: application/problem+json"


def problem(status=422, head=HEAD, **changes):
    return Reply(status, head, json.dumps({**PROBLEM, "status": status, **changes}).encode())


def test_right_answers_are_right():
    answer = Reply(200, b"HTTP/1.1 200 OK\r\ncontent-type: application/json", b'{"a": 1.5}')
    away = problem(503, HEAD + b"\r\nretry-after: 1")
    for reply in (answer, problem(), away, problem(504), Reply(204)):
        assert wrong_with(CASE, reply) is None


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(500, HEAD, json.dumps({**PROBLEM, "status": 500}).encode()), "status 500"),
        (Reply(502), "status 502"),
        (Reply(422, b"HTTP/1.1 422 No\r\ncontent-type: application/json", b"{}"), "status 422 as application/json"),
        (Reply(422, HEAD, b'{"type": NaN}'), "no JSON"),
        (Reply(422, HEAD, b'{"type": "x"}'), "without title, status, detail, code, request_id"),
        (Reply(422, HEAD, json.dumps({**PROBLEM, "status": 400}).encode()), "says 400 with status 422"),
        (problem(detail=""), "empty member"),
        (problem(503), "without Retry-After"),
        (Reply(200, b"HTTP/1.1 200 OK\r\ncontent-type: application/json", b'{"a": Infinity}'), "no JSON"),
        (Reply(0, failure="timeout"), "no answer: timeout"),
        (Reply(0, failure="closed"), "no answer: closed"),
    ],
)
def test_wrong_answers_are_named(reply, said):
    assert said in (wrong_with(CASE, reply) or "")


def test_silence_is_an_answer_to_what_is_no_request_and_waiting_for_ever_is_not():
    silent = Case("noise", (b"x",), may_be_silent=True)
    assert wrong_with(silent, Reply(0, failure="closed")) is None
    assert wrong_with(silent, Reply(0, failure="timeout"))


def test_what_the_http_server_refuses_is_counted_apart():
    tally = Tally()
    tally.add(CASE, Reply(400, b"HTTP/1.1 400 Bad\r\ncontent-type: text/plain", fuzz.REFUSED_BY_SERVER))
    assert (tally.refused_by_server, tally.wrong.total()) == (1, 0)


def test_failures_are_kept_and_read_again_with_the_key_of_now(tmp_path):
    old, new = (f"Bearer {fuzz.OLD_KEY.decode()}{digit * 32}" for digit in "ab")
    case = Case("slow", (b"GET / HTTP/1.1\r\nauthorization: " + old.encode() + b"\r\n", b"\r\n\xff"), is_alone=True)
    path = tmp_path / "failures.jsonl"
    path.write_text("\n".join(fuzz.kept([(case, "status 500", Reply(500))])))
    (again,) = fuzz.read(path, {"authorization": new})
    assert again.parts == (b"GET / HTTP/1.1\r\nauthorization: " + new.encode() + b"\r\n", b"\r\n\xff")
    assert (again.family, again.is_alone) == ("slow", True)


def test_a_file_without_cases_is_refused(tmp_path):
    (tmp_path / "x").write_text("nothing")
    with pytest.raises(LoadError, match="holds no cases"):
        fuzz.read(tmp_path / "x", {})


def test_exceptions_of_a_log_are_found_by_their_last_line():
    log = "ready\nTraceback (most recent call last):\n  File x\n    raise\nKeyError: 'a'\nINFO ok\n"
    assert fuzz.exceptions_in(log) == ["KeyError: 'a'"]
    assert fuzz.exceptions_in("all is well") == []


def test_a_short_run_against_a_real_service_finds_nothing(toy_bundle, tmp_path, capsys):
    kept = tmp_path / "kept"
    asked = ["--bundle", str(toy_bundle), "--requests", "1500", "--drawn", "0.06", "--keep", str(kept)]
    status = commands.main(["fuzz", *asked])
    out = capsys.readouterr()
    assert status == 0, out.out + out.err
    results = json.loads(out.out.splitlines()[-1])["results"]
    assert results["requests"] == 1500
    assert (results["wrong"], results["server_errors"], results["exceptions"], results["crashed"]) == (0, 0, 0, 0)
    assert not kept.exists()
