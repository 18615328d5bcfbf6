"""Real sockets on the loopback, because what is tested is what the server does before there is a request."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest import mock

import pytest
import uvicorn

from service import connections, metrics
from service.app import create_app
from service.connections import MAX_HEAD_BYTES, MAX_HEADERS, MAX_REQUEST_BYTES, Connection
from service.middleware import BodyLimit, Edge
from service.schemas import MAX_BODY_BYTES
from service.settings import Settings

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nhost: x\r\n"


async def page(scope, receive, send) -> None:
    """Says how many headers came, and how long the body was."""
    body = (await receive())["body"]
    said = f"{len(scope['headers'])} {len(body)}".encode()
    headers = [(b"content-length", str(len(said)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


async def refusing(_scope, _receive, send) -> None:
    """Answers before it has read a body."""
    await send({"type": "http.response.start", "status": 429, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def serving(app) -> AsyncIterator[int]:
    """The port of a server with our connections."""
    async with serving_from(app) as (port, _):
        yield port


@asynccontextmanager
async def serving_from(app) -> AsyncIterator[tuple[int, uvicorn.Server]]:
    """The same, with the server."""
    config = uvicorn.Config(
        app, http=Connection, port=0, log_config=None, access_log=False, lifespan="off", proxy_headers=False
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1], server
    finally:
        server.should_exit = server.force_exit = True
        await server.shutdown()


async def said(port: int, *parts: bytes) -> bytes:
    """Sends the parts, and all that comes back until the server hangs up, or has answered once and says no more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        return head + await reader.readexactly(int(length.split(b":")[1]))
    finally:
        writer.close()


def problem(answer: bytes) -> dict:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    told = json.loads(body)
    assert answer.startswith(b"HTTP/1.1 %d " % told["status"])
    assert told["request_id"]
    return told


def headers(count: int, size: int = 1) -> bytes:
    return b"".join(b"x-%d: %s\r\n" % (number, b"v" * size) for number in range(count))


async def test_what_is_within_the_limits_passes():
    async with serving(page) as port:
        assert (await said(port, GET + headers(MAX_HEADERS - 1) + b"\r\n")).endswith(b"100 0")
        assert (await said(port, GET + headers(1, MAX_HEAD_BYTES - 100) + b"\r\n")).endswith(b"2 0")
        body = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n" + b"1" * 60_000
        assert (await said(port, body)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "parts",
    [
        [GET + headers(MAX_HEADERS) + b"\r\n"],
        [GET + headers(2, MAX_HEAD_BYTES) + b"\r\n"],
        [GET + headers(1, MAX_HEAD_BYTES)],  # no end
        [GET + b"x: ", b"v" * MAX_HEAD_BYTES],  # one value without end
        [b"GET /" + b"a" * MAX_HEAD_BYTES],
        [GET, *(b"x: y\r\n" for _ in range(MAX_HEADERS)), b"\r\n"],
    ],
)
async def test_full_a_flood_of_headers_is_431_whole_or_not(parts):
    async with serving(page) as port:
        assert problem(await said(port, *parts))["code"] == "head_too_large"
        assert (await said(port, GET + b"\r\n")).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "bytes_",
    [b"\x00\x01\x02\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n", b"BREW\r\n\r\n"],
)
async def test_what_is_no_http_is_a_problem_like_any_other(bytes_):
    async with serving(page) as port:
        assert problem(await said(port, bytes_))["code"] == "malformed_http"
        assert (await said(port, GET + b"\r\n")).startswith(b"HTTP/1.1 200")


async def closed(port: int, *parts: bytes, drips: bytes = b"") -> bool:
    """Whether the server hangs up on who sends these and then drips."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
        async with asyncio.timeout(5):
            while not reader.at_eof():
                writer.write(drips)
                try:
                    await asyncio.wait_for(reader.read(1_000), 0.005)
                except TimeoutError:
                    continue
                except OSError:
                    break
        return True
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("parts", "drips"),
    [
        ([], b""),  # a connection that says nothing
        ([b"GET / HT"], b""),
        ([GET], b"x"),
        ([GET + b"\r\n", b"GET"], b""),  # the second request of a connection
        ([b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999\r\n\r\n"], b"x"),  # the rest of a refused body
    ],
)
async def test_late_is_hung_up_on(monkeypatch, parts, drips):
    monkeypatch.setattr(connections, "WHOLE_WITHIN_S", 0.05)
    monkeypatch.setattr(connections, "LOOK_EVERY_S", 0.01)
    async with serving(refusing) as port:
        assert await closed(port, *parts, drips=drips)


async def test_an_idle_connection_is_closed_and_one_that_is_used_or_at_work_is_not(monkeypatch):
    monkeypatch.setattr(connections, "LOOK_EVERY_S", 0.005)
    app = Slow()
    async with serving_from(app) as (port, server):
        server.config.timeout_keep_alive = 0.05
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        app.go.set()
        for _ in range(4):
            writer.write(GET + b"\r\n")
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.03)
        app.go.clear()
        writer.write(GET + b"\r\n")
        await asyncio.sleep(0.15)  # longer than it may be idle, and at work
        app.go.set()
        async with asyncio.timeout(10):
            rest = await reader.read()
        assert rest.count(b"HTTP/1.1 200") == 1
        writer.close()


async def test_an_answer_that_takes_long_is_waited_for(monkeypatch):
    monkeypatch.setattr(connections, "WHOLE_WITHIN_S", 0.01)
    monkeypatch.setattr(connections, "LOOK_EVERY_S", 0.005)

    async def slow(scope, receive, send):
        await asyncio.sleep(0.1)
        await page(scope, receive, send)

    async with serving(slow) as port:
        assert (await said(port, GET + b"\r\n")).endswith(b"1 0")


async def test_trailers_without_end_are_not_kept():
    """They are no body, so no limit of bodies holds them."""
    begin = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    sent = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(begin)
        while sent < 3 * MAX_REQUEST_BYTES:
            writer.write(b"x: " + b"v" * 60_000 + b"\r\n")
            sent += 60_000
            await writer.drain()

    async with serving(Edge(BodyLimit(page, limit_bytes=100), clock=lambda: 0.0)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionError):
            await flood(writer)
        assert sent < 2 * MAX_REQUEST_BYTES
        writer.close()


class Slow:
    """Answers when it is let, and keeps what sending gave."""

    def __init__(self) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()
        self.ended: list[str] = []

    async def __call__(self, _scope, receive, send) -> None:
        self.begun.set()
        message = await receive()
        await self.go.wait()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})
        except Exception as error:
            self.ended.append(repr(error))
        else:
            self.ended.append(message["type"])


class TestAConnectionThatIsOver:
    """On the loop of production, whose transports raise when they are written to after they were closed."""

    @pytest.fixture
    def anyio_backend(self):
        return "asyncio", {"use_uvloop": True}

    async def test_garbage_behind_a_request_does_not_take_its_answer_away(self):
        app = Slow()
        async with serving(app) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(GET + b"\r\n")
            await app.begun.wait()
            writer.write(b"garbage\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)  # for the server to read it: there is nothing to wait on
            app.go.set()
            answer = await reader.read()  # to the end: the connection is closed behind the answer
            writer.close()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.count(b"HTTP/1.1") == 1
        assert app.ended == ["http.request"]

    async def test_garbage_within_a_body_ends_the_request_that_it_is_the_body_of(self):
        app = Slow()
        async with serving(app) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            await app.begun.wait()
            writer.write(b"zz\r\n")
            answer = await reader.read()
            app.go.set()
            writer.close()
            while not app.ended:
                await asyncio.sleep(0)
        assert problem(answer)["status"] == 400
        assert app.ended == ["http.disconnect"]  # and nothing was raised by what it sent to nobody

    async def test_who_asks_twice_at_once_and_goes_is_noticed(self):
        app = Slow()
        async with serving(app) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write((GET + b"\r\n") * 3)
            await app.begun.wait()
            writer.transport.abort()
            await asyncio.sleep(0.01)  # for the server to learn of it
            app.go.set()
            while not app.ended:
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
        assert app.ended == ["http.request"]  # nothing was raised, and the other two were never begun


class Full:
    """An application that has a permit for so many requests, and answers when it is told to."""

    def __init__(self, permits: int) -> None:
        self.permits = permits
        self.go = asyncio.Event()
        self.bodies: list[bytes] = []

    def is_full(self, coming: int) -> bool:
        return coming >= self.permits

    async def __call__(self, _scope, receive, send) -> None:
        self.bodies.append((await receive())["body"])
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def post(path: str = "/v1/events", body: bytes = b"{}", more: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n\r\n" % (path.encode(), more, len(body)) + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    async with asyncio.timeout(10):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


async def test_full_is_said_at_the_door_and_the_connection_goes_on():
    app = Full(0)
    async with serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        # The second comes behind the first one's body, and the third in pieces.
        writer.write(post(body=b"x" * 100_000) + post("/v1/recommendations"))
        ids = set()
        for _ in range(2):
            status, headers, body = await answer(reader)
            problem = json.loads(body)
            assert (status, problem["code"], headers["retry-after"]) == (503, "overloaded", "1")
            assert headers["content-type"] == "application/problem+json"
            assert problem["request_id"] == headers["x-request-id"]
            ids.add(problem["request_id"])
        whole = post("/v1/rankings")
        for at in range(0, len(whole), 7):
            writer.write(whole[at : at + 7])
            await writer.drain()
        assert (await answer(reader))[0] == 503
        assert len(ids) == 2
        app.permits, app.bodies = 1, []
        app.go.set()
        writer.write(post(body=b"[1]"))
        assert (await answer(reader))[0] == 200
        assert app.bodies == [b"[1]"]
        writer.close()


PLAIN = {
    "plain": (b"", True),
    "own id": (b"X-Request-Id: mine\r\n", True),
    "an id that is none": (b"x-request-id: <b>\r\n", True),
    "keep-alive": (b"Connection: keep-alive\r\n", True),
    "close": (b"connection: close\r\n", False),
    "expect": (b"expect: 100-continue\r\n", False),
    "upgrade": (b"upgrade: websocket\r\n", False),
    "two ids": (b"x-request-id: a\r\nx-request-id: b\r\n", False),
    "many headers": (b"a: b\r\n" * 101, False),
}


@pytest.mark.parametrize("case", PLAIN)
async def test_full_is_said_alike_to_what_is_parsed_and_to_what_is_not_even_that(case, monkeypatch):
    """What is plain is refused as it stands, and says what it says behind the parser."""
    more, is_plain = PLAIN[case]
    parsed, ways = [], []
    begin = Connection.on_message_begin
    monkeypatch.setattr(Connection, "on_message_begin", lambda self: (parsed.append(1), begin(self)))
    for size in (1 << 20, 30):
        parsed.clear()
        async with serving(Full(0)) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            whole = post("/v1/recommendations", b"[1]", more)
            for at in range(0, len(whole), size):
                writer.write(whole[at : at + size])
                await asyncio.sleep(0.002)
            status, headers, _ = await answer(reader)
            ways.append((status, {**headers, "x-request-id": "", "content-length": ""}))
            if size > 30:
                assert bool(parsed) is not is_plain
            if size > 30 and case != "many headers":
                assert headers["x-request-id"] == "mine" if case == "own id" else len(headers["x-request-id"]) >= 1
            writer.close()
    assert ways[0] == ways[1]
    assert ways[0][0] == (431 if case == "many headers" else 503)


async def test_full_is_who_comes_in_pieces_told_though_there_was_room_for_the_first():
    app = Full(0)
    app.is_full = lambda _coming: False
    async with serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        whole = post("/v1/recommendations")
        writer.write(whole[:20])
        await asyncio.sleep(0.01)  # for the server to read it: there is nothing to wait on
        app.is_full = lambda _coming: True
        writer.write(whole[20:])
        assert (await answer(reader))[0] == 503
        writer.close()


async def test_full_what_stands_in_a_body_is_no_request():
    app = Full(0)
    async with serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        inner = post("/v1/rankings")
        outer = post(body=inner)
        writer.write(outer[: -len(inner)])
        assert (await answer(reader))[0] == 503  # before its body is there
        writer.write(inner)
        await writer.drain()
        await asyncio.sleep(0.02)
        app.permits = 1
        app.go.set()
        writer.write(post(body=b"[2]"))
        assert (await answer(reader))[0] == 200  # and nothing in between
        assert app.bodies == [b"[2]"]
        writer.close()


async def test_full_turns_nobody_away_who_asks_for_something_else_or_hangs_up_where_that_is_wanted():
    app = Full(0)
    app.go.set()
    async with serving(app) as port:
        for request in (GET + b"\r\n", post("/v1/users/merge"), b"GET /v1/events HTTP/1.1\r\nhost: x\r\n\r\n"):
            assert b" 200 " in await said(port, request)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(more=b"connection: close\r\nX-Request-Id: mine\r\n"))
        status, headers, body = await answer(reader)
        assert (status, headers["x-request-id"], json.loads(body)["request_id"]) == (503, "mine", "mine")
        assert await reader.read() == b""
        writer.close()


async def test_full_behind_a_request_that_is_under_way_waits_for_its_turn():
    app = Full(1)
    async with serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(body=b"[1]") + post(body=b"[2]"))
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
        other_writer.write(post())
        assert (await answer(other_reader))[0] == 503  # there is one at work, and one behind it
        app.go.set()
        assert [(await answer(reader))[0] for _ in range(2)] == [200, 200]
        writer.close()
        other_writer.close()


KEYS = {"good": "read,write", "reader": "read", "slow": "read,write"}
GOOD = {
    "/v1/recommendations": b'{"history": ["i02", "i03"], "k": 3}',
    "/v1/events": b'{"events": [{"user_id": "anna", "item_id": "i02", "event_id": "e1"}]}',
    "/v1/rankings": b'{"history": ["i02"], "candidates": ["i05", "i03", "unknown"]}',
}
CHANGING = {"recommendation_id", "next", "timings_ms", "request_id"}


def keyed(path: str, body: bytes, key: str = "good", more: bytes = b"", version: bytes = b"1.1") -> bytes:
    head = b"POST %s HTTP/%s\r\nhost: x\r\nauthorization: Bearer %s\r\n%s" % (
        path.encode(),
        version,
        key.encode(),
        more,
    )
    if b"chunked" in more:
        parts = [body[at : at + 20] for at in range(0, len(body), 20)]
        return head + b"\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


@pytest.fixture
def open_app(served, tmp_path):
    """Opens the whole application; with keys."""

    @asynccontextmanager
    async def opened(**changes):
        lines = [f"{name}:{scopes}:{hashlib.sha256(name.encode()).hexdigest()}" for name, scopes in KEYS.items()]
        lines[-1] += ":rate=0.001"
        (tmp_path / "keys").write_text("\n".join(lines))
        settings = Settings(store="memory://", deadline_ms=5_000, api_keys_file=tmp_path / "keys", **changes)
        app = create_app(settings, served=served, now=lambda: 1_700_000_000.0)
        async with app.router.lifespan_context(app):
            begun = []
            begin = app.lane.begin
            app.lane.begin = lambda scope, path: begun.append(path) or begin(scope, path)
            app.begun = begun
            yield app

    return opened


def told(caplog) -> list[tuple[set[str], int, str]]:
    """What the request lines say, without what differs each time."""
    records = [record for record in caplog.records if record.name == "service.requests"]
    return [(set(record.fields), record.fields["code"], record.fields.get("error", "")) for record in records]


def counted() -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in (metrics.REQUESTS, metrics.ERRORS, metrics.SHED, metrics.LIMITED)
        for family in metric.collect()
        for sample in family.samples
    }


async def talk(app, *parts: bytes, answers: int = 1, closing: bool = False) -> tuple[list, dict]:
    """The answers to what is sent, as far as they do not differ each time, and what they counted."""
    before = counted()
    async with serving_from(app) as (port, server):
        if closing:
            server.server_state.default_headers.append((b"connection", b"close"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in parts:
            writer.write(part)
            await writer.drain()
            if len(parts) > 1:
                await asyncio.sleep(0.005)  # for the server to read it by itself
        said = []
        for _ in range(answers):
            status, headers, body = await answer(reader)
            own_id, timing = headers.pop("x-request-id"), headers.pop("server-timing", None)
            read = json.loads(body)
            assert read.get("request_id", own_id) == own_id
            if timing is not None:
                assert timing == ", ".join(f"{stage};dur={ms}" for stage, ms in read["timings_ms"].items())
            assert int(headers.pop("content-length")) == len(body)
            headers.pop("date", None)  # the server's own, and not in production
            lasting = {name: value for name, value in read.items() if name not in CHANGING}
            said.append((status, headers, timing is None, set(read), lasting, own_id if len(own_id) < 10 else ""))
        is_over = "connection" in headers
        if is_over:
            assert await reader.read() == b""
        writer.close()
    after = counted()
    return said, {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}


def in_pieces(whole: bytes, size: int) -> list[bytes]:
    return [whole[at : at + size] for at in range(0, len(whole), size)]


REQUESTS = {
    **{f"good {path}": [keyed(path, body)] for path, body in GOOD.items()},
    "own id": [keyed("/v1/events", GOOD["/v1/events"], more=b"X-Request-ID: mine\r\n")],
    "chunked": [keyed("/v1/events", GOOD["/v1/events"], more=b"transfer-encoding: chunked\r\n")],
    "in pieces": in_pieces(keyed("/v1/rankings", GOOD["/v1/rankings"]), 60),
    "last": [keyed("/v1/events", GOOD["/v1/events"], more=b"connection: close\r\n")],
    "empty": [keyed("/v1/rankings", b"")],
    "no json": [keyed("/v1/recommendations", b"{", more=b"content-type: application/json; charset=utf-8\r\n")],
    "no media": [keyed("/v1/recommendations", b"{}", more=b"content-type: text/plain\r\n")],
    "means nothing": [keyed("/v1/events", b'{"events": [{"user_id": "anna"}]}')],
    "filter means nothing": [keyed("/v1/recommendations", b'{"filter": {"equals": {"nothing": 1}}}')],
    "unknown key": [keyed("/v1/events", GOOD["/v1/events"], "bad")],
    "no key": [post("/v1/events", GOOD["/v1/events"])],
    "other header": [post("/v1/events", GOOD["/v1/events"], b"X-API-Key: good\r\n")],
    "no scope": [keyed("/v1/events", GOOD["/v1/events"], "reader")],
    "no key, body to come": [post("/v1/events", GOOD["/v1/events"])[:-5]],
    "too large": [keyed("/v1/events", b"x" * (MAX_BODY_BYTES + 1))[:1_000]],
    "too large, bit by bit": [
        b"POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer good\r\ntransfer-encoding: chunked\r\n\r\n"
        b"%x\r\n%s\r\n" % (MAX_BODY_BYTES + 1, b"x" * (MAX_BODY_BYTES + 1))
    ],
}
UNUSUAL = {
    "http/1.0": [keyed("/v1/events", GOOD["/v1/events"], version=b"1.0")],
    "percent": [keyed("/v1/%65vents", GOOD["/v1/events"])],
    "query": [keyed("/v1/events?x=1", GOOD["/v1/events"])],
    "upgrade": [keyed("/v1/events", GOOD["/v1/events"], more=b"connection: upgrade\r\nupgrade: h2c\r\n")],
    "another": [keyed("/v1/users/merge", b'{"from": "a", "into": "b"}')],
}


@pytest.mark.parametrize("case", [*REQUESTS, *UNUSUAL])
@pytest.mark.parametrize("closing", [False, True])
async def test_both_ways_say_count_and_tell_the_same(open_app, caplog, case, closing):
    caplog.set_level(logging.INFO, logger="service.requests")
    parts = {**REQUESTS, **UNUSUAL}[case]
    ways = []
    for lane in (True, False):
        caplog.clear()
        async with open_app() as app:
            begun = app.begun
            if not lane:
                del app.lane
            ways.append((*await talk(app, *parts, closing=closing), told(caplog)))
        assert len(begun) == (lane and case in REQUESTS)
    assert ways[0] == ways[1]
    assert len(ways[0][2]) == 1


@pytest.mark.parametrize("kind", ["fast", "full", "not ready", "a bug"])
async def test_both_ways_refuse_alike(open_app, kind, caplog):
    ways = []
    for lane in (True, False):
        async with open_app() as app:
            key, path = "good", "/v1/events"
            if not lane:
                del app.lane
            if kind == "fast":
                key = "slow"
            elif kind == "full":
                app.is_full = lambda _coming: False  # it fills behind the door
                app.state.shell.permits.limit = app.state.shell.permits._most = 0
            elif kind == "not ready":
                shell, app.state.shell = app.state.shell, None
            else:
                app.state.shell.users.record = lambda _events: 1 / 0
            one = keyed(path, GOOD[path], key)
            ways.append(await talk(app, *([one, one] if kind == "fast" else [one]), answers=1 + (kind == "fast")))
            if kind == "not ready":
                app.state.shell = shell
    assert ways[0] == ways[1]
    expected = {"fast": 429, "full": 503, "not ready": 503, "a bug": 500}
    assert ways[0][0][-1][0] == expected[kind]
    assert ("ZeroDivisionError" in caplog.text) is (kind == "a bug")


async def test_answers_come_in_the_order_of_their_requests_however_they_are_made(open_app):
    """Refusals at once, work, and a client that reads nothing before it has asked for all."""
    count = 1_000
    kinds = [("good", "/v1/events"), ("bad", "/v1/events"), ("good", "/v1/rankings"), ("bad", "/v1/rankings")]
    asked = [(*kinds[number // 3 % 4], str(number)) for number in range(count)]
    async with open_app() as app, serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sending = [keyed(path, GOOD[path], key, b"x-request-id: %s\r\n" % own.encode()) for key, path, own in asked]
        for at in range(0, count, 100):
            writer.write(b"".join(sending[at : at + 100]))
            await asyncio.sleep(0.002)  # so that some come while another one is at work, and some after
        statuses = {("good", "/v1/events"): 202, ("good", "/v1/rankings"): 200}
        for key, path, own in asked:
            status, headers, _ = await answer(reader)
            assert (status, headers["x-request-id"]) == (statuses.get((key, path), 401), own)
        writer.close()


@pytest.mark.parametrize("key", ["good", "bad"])
async def test_who_asks_whether_to_go_on_is_told(open_app, key):
    async with open_app() as app, serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head, _, body = keyed("/v1/events", GOOD["/v1/events"], key, b"expect: 100-continue\r\n").partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        if key == "good":
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
        assert (await answer(reader))[0] == (202 if key == "good" else 401)
        writer.close()


class TestAClientOfTheLane:
    """On the loop of production, as above."""

    @pytest.fixture
    def anyio_backend(self):
        return "asyncio", {"use_uvloop": True}

    @pytest.mark.parametrize(("path", "is_cancelled"), [("/v1/recommendations", True), ("/v1/events", False)])
    async def test_gone_cancels_what_only_it_would_read(self, open_app, path, is_cancelled):
        begun, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
        story = []

        async def work(*_, **__):
            begun.set()
            try:
                await go.wait()
            except asyncio.CancelledError:
                story.append("cancelled")
                raise
            finally:
                ended.set()
            return {}

        before = counted()
        async with open_app() as app, serving(app) as port:
            app.state.shell.pipeline.recommend = app.state.shell.users.record = work
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(keyed(path, GOOD[path]))
            await begun.wait()
            writer.transport.abort()
            await asyncio.sleep(0.02)  # for the server to learn of it
            go.set()
            await ended.wait()
            await asyncio.sleep(0.01)
        assert story == ["cancelled"] * is_cancelled
        seen = ("sequitur_requests_total", path, "POST", "499" if is_cancelled else "202")
        assert counted()[seen] == before.get(seen, 0) + 1

    async def test_gone_within_its_body_is_counted(self, open_app):
        before = counted()
        async with open_app() as app, serving(app) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(keyed("/v1/events", GOOD["/v1/events"])[:-1])
            await writer.drain()
            await asyncio.sleep(0.01)
            writer.transport.abort()
            await asyncio.sleep(0.02)
        seen = ("sequitur_requests_total", "unmatched", "POST", "499")
        assert counted()[seen] == before.get(seen, 0) + 1

    async def test_garbage_within_its_body_is_told_once(self, open_app):
        async with open_app() as app, serving(app) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(keyed("/v1/events", b"x" * 30, more=b"transfer-encoding: chunked\r\n")[:-20] + b"zz\r\nzz\r\n")
            answer = await reader.read()
            writer.close()
        assert problem(answer)["code"] == "malformed_http"
        assert answer.count(b"HTTP/1.1") == 1

    async def test_a_body_that_drips_is_refused_in_time(self, open_app):
        async with open_app() as app, serving(app) as port:
            app.lane.limit_s = 0.02
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(keyed("/v1/events", GOOD["/v1/events"])[:-1])
            assert problem(await reader.read())["code"] == "slow_body"
            writer.close()

    async def test_leaving_lets_it_have_its_answer_and_hangs_up(self, open_app):
        begun, go = asyncio.Event(), asyncio.Event()

        async def work(_events):
            begun.set()
            await go.wait()
            return {"accepted": 0, "results": []}

        async with open_app() as app, serving_from(app) as (port, server):
            app.state.shell.users.record = work
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(keyed("/v1/events", GOOD["/v1/events"]))
            await begun.wait()
            assert len(server.server_state.tasks) == 1
            for connection in list(server.server_state.connections):
                connection.shutdown()
            go.set()
            answer = await reader.read()
            writer.close()
        assert answer.startswith(b"HTTP/1.1 202")
        assert b"connection: close\r\n" in answer

    async def test_whoever_is_given_up_is_told_as_the_server_does_it(self, open_app, caplog):
        begun = asyncio.Event()

        async def work(_events):
            begun.set()
            await asyncio.Event().wait()

        ways = []
        for lane in (True, False):
            async with open_app() as app, serving_from(app) as (port, server):
                if not lane:
                    del app.lane
                app.state.shell.users.record = work
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(keyed("/v1/events", GOOD["/v1/events"]))
                begun.clear()
                await begun.wait()
                for task in server.server_state.tasks:
                    task.cancel()
                ways.append((await reader.read()).partition(b"\r\n\r\n"))
                writer.close()
        assert [way[0].split(b"\r\n")[0] for way in ways] == [b"HTTP/1.1 500 Internal Server Error"] * 2
        assert ways[0][2] == ways[1][2]
        assert "CancelledError" in caplog.text

    async def test_waits_for_the_reader_of_an_answer(self, open_app):
        """Who does not read is given one answer more at most: the next request waits for its turn."""
        big = {"accepted": 0, "results": ["x" * (1 << 20)]}

        async def work(_events):
            return big

        async with open_app() as app, serving_from(app) as (port, server):
            app.state.shell.users.record = work
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            count = 40
            for _ in range(count):
                writer.write(keyed("/v1/events", GOOD["/v1/events"]))
                await asyncio.sleep(0.002)
            (connection,) = server.server_state.connections
            assert connection.transport.get_write_buffer_size() < 4 << 20
            for _ in range(count):
                assert (await answer(reader))[0] == 202
            writer.close()


async def test_gone_while_it_waits_for_its_turn_a_request_is_not_begun(open_app):
    async with open_app() as app, serving(app) as port:
        held = []
        app.lane.turns.begin = held.append
        before = counted()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(keyed("/v1/events", GOOD["/v1/events"]))
        while not held:
            await asyncio.sleep(0.001)
        writer.close()
        await writer.wait_closed()
        await asyncio.sleep(0.02)
        stored = app.state.shell.users.record = mock.AsyncMock()
        held[0]()
        await asyncio.sleep(0.01)
        stored.assert_not_awaited()
        counts = {
            name: value - before.get(name, 0) for name, value in counted().items() if value != before.get(name, 0)
        }
        assert len(counts) == 1
        assert "499" in str(counts)
