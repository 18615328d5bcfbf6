import asyncio
import json
import logging

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service import metrics
from service.errors import BodyTooLarge
from service.keys import ANYBODY, Anybody
from service.middleware import BodyLimit, ClientGone, Edge, Gate, while_connected
from service.rates import Rates
from service.tracing import Tracing

pytestmark = pytest.mark.anyio


def requests(route: str, code: int) -> float:
    labels = {"route": route, "method": "POST", "code": str(code)}
    return metrics.REGISTRY.get_sample_value("sequitur_requests_total", labels) or 0.0


def edge(app) -> httpx.AsyncClient:
    now = iter(range(1000))
    outermost = Edge(app, clock=lambda: next(now))
    return httpx.AsyncClient(transport=httpx.ASGITransport(outermost), base_url="http://edge")


async def answers(body: bytes, send, kind: bytes = b"text/plain") -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": body})


async def echo(_scope, receive, send) -> None:
    body = b""
    more = True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    await answers(body, send)


@pytest.mark.parametrize("given", [None, "abc-1.2:3_4", "x" * 129, "a b", "ä".encode()])
async def test_every_answer_has_an_id_and_a_decent_one_is_kept(given):
    async with edge(echo) as client:
        answer = await client.post("/", headers={} if given is None else {"x-request-id": given})
    kept = answer.headers["x-request-id"]
    assert kept == given if given == "abc-1.2:3_4" else len(kept) == 32


async def test_a_bug_is_a_problem_without_insides_counted_and_logged_once(caplog):
    async def broken(*_):
        raise RuntimeError("password=hunter2")

    before = requests("unmatched", 500)
    async with edge(broken) as client:
        answer = await client.post("/")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "hunter2" not in answer.text
    assert requests("unmatched", 500) == before + 1
    assert [record.getMessage() for record in caplog.records if record.exc_info] == ["request failed"]


async def test_a_bug_after_the_first_byte_cuts_the_connection():
    async def half(_scope, _receive, send):
        await answers(b"half", send)
        raise RuntimeError("too late")

    async with edge(half) as client:
        with pytest.raises(RuntimeError, match="too late"):
            await client.post("/")


async def test_pages_get_headers_that_allow_no_foreign_content():
    async def page(_scope, _receive, send):
        await answers(b"<p>", send, b"text/html; charset=utf-8")

    async with edge(page) as client:
        headers = (await client.get("/")).headers
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


async def test_no_answer_of_the_api_is_kept_by_a_cache_and_files_may_be():
    async with edge(echo) as client:
        assert (await client.post("/v1/events")).headers["cache-control"] == "no-store"
        assert "cache-control" not in (await client.get("/static/app.js")).headers


ANSWER = {
    "items": [{"item_id": "secret"}],
    "model": {"name": "m", "bundle": "b", "variant": "default"},
    "degraded": True,
    "degraded_reasons": ["no_history"],
    "timings_ms": {"state": 0.25, "encode": 1.5},
}


async def answering(scope, receive, send):
    scope["state"]["answer"] = ANSWER
    await echo(scope, receive, send)


async def test_one_line_per_request_and_none_for_a_probe(caplog):
    caplog.set_level(logging.INFO, logger="service.requests")
    async with edge(answering) as client:
        await client.post("/", headers={"x-request-id": "r1"})
        await client.get("/static/x.js")
    (line,) = [record.fields for record in caplog.records if record.name == "service.requests"]
    assert line == {
        "route": "unmatched",
        "method": "POST",
        "code": 200,
        "ms": 1000,
        "variant": "default",
        "degraded": ["no_history"],
        "request_id": "r1",
        "state": 0.25,
        "encode": 1.5,
    }


async def test_the_line_of_a_refusal_says_its_code(caplog):
    caplog.set_level(logging.INFO, logger="service.requests")

    async def refusing(*_):
        raise BodyTooLarge(6)

    async with edge(refusing) as client:
        await client.post("/")
    (line,) = [record.fields for record in caplog.records if record.name == "service.requests"]
    assert (line["code"], line["error"]) == (413, "body_too_large")


async def test_a_trace_has_the_stages_of_the_answer_and_its_id_is_in_the_line(caplog):
    caplog.set_level(logging.INFO, logger="service.requests")
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, is_batched=False)
    transport = httpx.ASGITransport(Edge(answering, clock=iter((0.0, 0.5)).__next__, tracing=tracing))
    parent = "0af7651916cd43dd8448eb211c80319c"
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        await client.post("/", headers={"traceparent": f"00-{parent}-b7ad6b7169203331-01", "x-request-id": "r1"})
    (line,) = [record.fields for record in caplog.records if record.name == "service.requests"]
    assert line["trace_id"] == parent
    assert [span.name for span in exporter.get_finished_spans()] == ["state", "encode", "POST unmatched"]
    assert "secret" not in "".join(span.to_json() for span in exporter.get_finished_spans())


async def test_a_method_nobody_knows_is_no_label_of_its_own():
    async with edge(echo) as client:
        await client.request("BREW", "/")
    labels = {"route": "unmatched", "method": "other", "code": "200"}
    assert metrics.REGISTRY.get_sample_value("sequitur_requests_total", labels)


async def chunks(*parts: bytes):
    for part in parts:
        yield part


async def test_a_body_up_to_the_limit_arrives_whole():
    async with edge(BodyLimit(echo, limit_bytes=6)) as client:
        assert (await client.post("/", content=b"123456")).text == "123456"
        assert (await client.post("/", content=chunks(b"123", b"456"))).text == "123456"
        assert (await client.post("/", content=b"")).text == ""


@pytest.mark.parametrize("content", [lambda: b"1234567", lambda: chunks(b"1234", b"567")])
async def test_full_a_body_beyond_the_limit_is_refused_by_name(content):
    async with edge(BodyLimit(echo, limit_bytes=6)) as client:
        answer = await client.post("/", content=content())
    assert answer.status_code == 413
    assert answer.json()["code"] == "body_too_large"
    assert "limit of 6 bytes" in answer.json()["detail"]


async def test_a_length_that_lies_helps_nobody():
    async def lying() -> dict:
        return {"type": "http.request", "body": b"1234567", "more_body": True}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-length", b"1")]}
    with pytest.raises(BodyTooLarge):
        await BodyLimit(echo, limit_bytes=6)(scope, lying, None)


async def test_a_body_that_drips_is_refused_in_time():
    async def dripping() -> dict:
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": b"1", "more_body": True}

    sent = []

    async def send(message) -> None:
        sent.append(message)

    before = requests("unmatched", 408)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    await Edge(BodyLimit(echo, limit_bytes=1 << 20, limit_s=0.05), clock=lambda: 0.0)(scope, dripping, send)
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["code"] == "slow_body"
    assert requests("unmatched", 408) == before + 1


async def test_gone_while_sending_is_counted_and_answered_to_nobody():
    async def leaving() -> dict:
        return {"type": "http.disconnect"}

    sent = []
    before = requests("unmatched", 499)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    await Edge(BodyLimit(echo, limit_bytes=6), clock=lambda: 0.0)(scope, leaving, sent.append)
    assert sent == []
    assert requests("unmatched", 499) == before + 1


class Connection:
    """What `while_connected` needs of a request."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def receive(self) -> dict:
        await self.left.wait()
        return {"type": "http.disconnect"}


async def test_gone_while_working_cancels_the_work():
    connection = Connection()
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def serve() -> None:
        await while_connected(connection, work())

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0)
    connection.left.set()
    with pytest.raises(ClientGone):
        await serving
    assert cancelled.is_set()


async def test_cancelled_by_the_server_stays_cancelled():
    async def serve() -> None:
        await while_connected(Connection(), asyncio.Event().wait())

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_the_gate_lets_pass_and_refuses():
    class Ring:
        def allow(self, presented, scope, *, client):
            seen.append((presented, scope, client))
            return ANYBODY

    seen: list = []
    async with edge(Gate(echo, keys=Ring(), rates=Rates(0, clock=lambda: 0.0))) as client:
        await client.post("/v1/events", headers={"authorization": "Bearer k1"})
        await client.post("/v1/events", headers={"x-api-key": "k2"})
        await client.post("/v1/events")
        await client.get("/livez")
    assert seen == [("k1", "write", "127.0.0.1"), ("k2", "write", "127.0.0.1"), (None, "write", "127.0.0.1")]


async def test_a_refusal_at_the_gate_is_a_problem():
    transport = httpx.ASGITransport(
        Edge(Gate(echo, keys=Anybody(only_loopback=True), rates=Rates(0, clock=lambda: 0.0)), clock=lambda: 0.0),
        client=("10.0.0.1", 1),
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        answer = await client.post("/v1/events")
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert json.loads(answer.text)["detail"].endswith("SEQUITUR_API_KEYS_FILE")


async def test_too_fast_is_refused_before_the_body_is_read_and_probes_never_are():
    reads = []

    async def reading(scope, receive, send):
        reads.append(scope["path"])
        await echo(scope, receive, send)

    gate = Gate(reading, keys=Anybody(only_loopback=True), rates=Rates(0.5, clock=lambda: 0.0))
    async with edge(gate) as client:
        assert (await client.post("/v1/events", content=b"x")).status_code == 200
        refused = await client.post("/v1/events", content=b"x")
        for path in ("/livez", "/readyz", "/metrics", "/"):
            assert (await client.get(path)).status_code == 200
    assert (refused.status_code, refused.json()["code"], refused.headers["retry-after"]) == (429, "rate_limited", "2")
    assert reads == ["/v1/events", "/livez", "/readyz", "/metrics", "/"]
