"""Answers however they are cut, and whatever is no answer as an outcome; against a server that says what it is told."""

import asyncio
import json

import pytest
from containers import free_port

from loadtests import wire
from loadtests.target import LoadError
from loadtests.wire import Reply

PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n"
REQUEST = wire.encode("GET", "/")


class Server:
    """Says the next of `answers` to each request: byte strings one after the other, None to close."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.connections = 0
        self.hung_up = asyncio.Event()
        self.heard = []

    async def serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                self.heard.append(await reader.readuntil(b"\r\n\r\n"))
                for part in self.answers.pop(0) if self.answers else [PLAIN]:
                    if part is None:
                        writer.close()
                        return
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
            writer.close()


def talk(conversation, *answers, connections=1, timeout_s=5.0):
    """What `conversation(line, server)` gives, with a server that says `answers`."""

    async def whole():
        server = Server(*answers)
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        async with wire.wired(f"http://127.0.0.1:{port}", connections=connections, timeout_s=timeout_s) as line:
            got = await conversation(line, server)
        listening.close()
        await listening.wait_closed()
        return got

    return wire.run(whole())


def ask(*parts, request=REQUEST, **options):
    async def once(line, _server):
        return await line.send(request)

    return talk(once, list(parts), **options)


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED])
@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
def test_an_answer_may_come_in_pieces(answer, size):
    reply = ask(*(answer[at : at + size] for at in range(0, len(answer), size)))
    assert (reply.status, reply.body, reply.is_ok, reply.code) == (200, b"hello", True, "200")


def test_headers_and_json_are_read_when_they_are_asked_for():
    body = json.dumps({"code": "overloaded"}).encode()
    reply = ask(b"HTTP/1.1 503 Away\r\nRetry-After:  1\r\ncontent-length: %d\r\n\r\n" % len(body), body)
    assert (reply.is_ok, reply.header("retry-after"), reply.header("etag")) == (False, "1", None)
    assert reply.json() == {"code": "overloaded"}


def test_what_has_no_body_has_none():
    assert ask(b"HTTP/1.1 204 No Content\r\n\r\n").status == 204
    assert ask(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", request=wire.encode("HEAD", "/")).body == b""


def test_an_interim_answer_is_passed_over():
    assert ask(b"HTTP/1.1 100 Continue\r\n\r\n", PLAIN).body == b"hello"


def test_a_body_that_nothing_announces_ends_with_the_connection():
    assert ask(b"HTTP/1.1 200 OK\r\n\r\n", b"he", b"llo", None).body == b"hello"


@pytest.mark.parametrize("parts", [[None], [b"HTTP/1.1 200"], [PLAIN[:-1]], [CHUNKED[:-9]]])
def test_a_connection_that_closes_early_is_an_outcome(parts):
    reply = ask(*parts, None)
    assert (reply.status, reply.code) == (0, "closed")


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * wire.MOST_HEAD_BYTES,
    ],
)
def test_garbage_is_an_outcome(garbage):
    assert ask(garbage).code == "garbage"


def test_a_connection_is_kept_and_replaced_when_it_must_be():
    async def conversation(line, server):
        got = [(await line.send(REQUEST)).code for _ in range(5)]
        return got, server.connections

    closing = PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    got, connections = talk(conversation, [PLAIN], [PLAIN], [PLAIN + b"more than was announced"], [closing])
    assert got == ["200"] * 5
    assert connections == 3


def test_more_requests_than_connections_wait_their_turn():
    async def conversation(line, server):
        got = await asyncio.gather(*(line.send(REQUEST) for _ in range(50)))
        return {reply.code for reply in got}, server.connections, len(server.heard)

    assert talk(conversation, connections=3) == ({"200"}, 3, 50)


def test_silence_is_given_up_and_the_next_request_has_another_connection():
    async def conversation(line, server):
        got = [(await line.send(REQUEST, timeout_s=0.05)).code, (await line.send(REQUEST)).body]
        await server.hung_up.wait()
        return got

    assert talk(conversation, []) == ["timeout", b"hello"]


def test_a_request_that_waited_too_long_for_a_connection_is_never_sent():
    async def conversation(line, server):
        got = await asyncio.gather(line.send(REQUEST, timeout_s=0.2), line.send(REQUEST, timeout_s=0.05))
        return [reply.code for reply in got], len(server.heard)

    assert talk(conversation, []) == (["timeout", "timeout"], 1)


def test_whoever_is_cancelled_hangs_up():
    async def conversation(line, server):
        waiting = asyncio.create_task(line.send(REQUEST))
        while not server.heard:
            await asyncio.sleep(0.001)
        waiting.cancel()
        await server.hung_up.wait()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return (await line.send(REQUEST)).body  # and the late answer reaches nobody else

    assert talk(conversation, []) == b"hello"


def test_a_closing_wire_answers_everybody():
    async def conversation(line, _server):
        got: list[Reply] = []
        for _ in range(3):
            line.submit(REQUEST, got.append)
        await asyncio.sleep(0.01)
        await line.close()
        return [reply.code for reply in got]

    assert talk(conversation, []) == ["closed"] * 3


def test_nobody_there_is_an_outcome_for_each():
    async def whole():
        async with wire.wired(f"http://127.0.0.1:{free_port()}", connections=2) as line:
            return [reply.code for reply in await asyncio.gather(*(line.send(REQUEST) for _ in range(5)))]

    assert wire.run(whole()) == ["refused"] * 5


def test_a_foreign_host_is_refused():
    async def whole():
        async with wire.wired("http://example.com", connections=1):
            pytest.fail("it was let in")

    with pytest.raises(LoadError):
        wire.run(whole())


def test_requests_are_encoded_once_and_carry_the_key(monkeypatch):
    monkeypatch.setenv("LOADTEST_API_KEY", "secret")
    raw = wire.encode("POST", "/v1/events", {"events": []}, headers={"x-a": "b"})
    head, body = raw.split(b"\r\n\r\n")
    assert body == b'{"events": []}'
    assert {b"POST /v1/events HTTP/1.1", b"authorization: Bearer secret", b"content-length: 14", b"x-a: b"} <= set(
        head.split(b"\r\n")
    )
