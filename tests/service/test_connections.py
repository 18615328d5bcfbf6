"""Real sockets on the loopback, because what is tested is what the server does before there is a request."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn

from service import connections
from service.connections import MAX_HEAD_BYTES, MAX_HEADERS, MAX_REQUEST_BYTES, Connection
from service.middleware import BodyLimit, Edge

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
    config = uvicorn.Config(app, http=Connection, port=0, log_config=None, lifespan="off", proxy_headers=False)
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup()
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
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
