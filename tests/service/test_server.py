"""A server over an application of a few lines, told to leave; with a real bundle in tests/e2e/test_lifecycle.py."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI
from starlette.responses import PlainTextResponse

from retrieval.errors import BundleError
from service import server as serving
from service.server import Server


class Shop:
    """An application whose answers wait until they may come, served from a socket of its own."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.asked = asyncio.Event()
        self.ready = asyncio.Event()
        self.story: list[str] = []
        self.app = FastAPI(lifespan=self._lifespan)
        self.app.state.leaving = False
        self.app.add_route("/", self._answer)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = self.listening.getsockname()[:2]

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        self.story.append("opened")
        yield
        self.story.append("closed")

    async def _answer(self, _request) -> PlainTextResponse:
        self.asked.set()
        await self.may_answer.wait()
        self.story.append("answered")
        return PlainTextResponse("hello")

    def serve(self, **options) -> asyncio.Task[None]:
        self.server = Server(self.app, **{"drain_s": 0.0, "on_ready": self.ready.set, **options})
        return asyncio.create_task(self.server.serve(sockets=[self.listening]))

    async def ask(self) -> bytes:
        reader, writer = await asyncio.open_connection(*self.address)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.readuntil(b"hello")
        writer.close()
        return answer


@pytest.fixture
async def shop():
    made = Shop()
    yield made
    made.listening.close()


pytestmark = pytest.mark.anyio


async def test_requests_under_way_are_answered_before_anything_is_closed(shop):
    running = shop.serve()
    await shop.ready.wait()
    asking = asyncio.create_task(shop.ask())
    await shop.asked.wait()
    shop.server.handle_exit(signal.SIGTERM, None)
    assert shop.app.state.leaving
    await asyncio.sleep(0)
    shop.may_answer.set()
    assert (await asking).startswith(b"HTTP/1.1 200")
    await running
    assert shop.story == ["opened", "answered", "closed"]


async def test_until_the_grace_is_over_newcomers_are_answered_and_told_to_go(shop):
    shop.may_answer.set()
    running = shop.serve(drain_s=60.0)
    await shop.ready.wait()
    shop.server.handle_exit(signal.SIGTERM, None)
    while b"connection: close" not in (answer := await shop.ask()):  # noticed within a tenth of a second
        pass
    assert answer.startswith(b"HTTP/1.1 200")
    running.cancel()
    await asyncio.wait([running])


async def test_who_connected_before_the_end_is_still_heard(shop, monkeypatch):
    """Both the connection that the kernel holds and the one that was accepted and has said nothing so far."""
    shop.may_answer.set()
    running = shop.serve()
    await shop.ready.wait()
    reader, writer = await asyncio.open_connection(*shop.address)
    closing = shop.server._close

    async def close(sockets):
        with socket.create_connection(shop.address) as late:
            late.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            shop.late = late.dup()
        await closing(sockets)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")

    monkeypatch.setattr(shop.server, "_close", close)
    shop.server.handle_exit(signal.SIGTERM, None)
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    await running
    with shop.late as late:
        assert late.recv(4096).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_at_a_terminal_nobody_waits_for_a_balancer(shop):
    running = shop.serve(drain_s=3600.0)
    await shop.ready.wait()
    shop.server.handle_exit(signal.SIGINT, None)
    await asyncio.wait_for(running, 20)


async def test_a_second_signal_ends_at_once_unless_it_is_somebody_elses_affair(shop, monkeypatch):
    raised: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    for supervised in (True, False):
        server = Server(shop.app, drain_s=0.0, on_ready=lambda: None, is_supervised=supervised)
        server.started = True
        server.handle_exit(signal.SIGTERM, None)
        assert raised == []
        server.handle_exit(signal.SIGTERM, None)
    assert raised == [signal.SIGTERM]


async def test_before_anything_is_served_one_signal_is_enough(shop, monkeypatch):
    raised: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    Server(shop.app, drain_s=60.0, on_ready=lambda: None).handle_exit(signal.SIGTERM, None)
    assert raised == [signal.SIGTERM]


async def test_what_an_application_cannot_begin_with_is_told_as_it_is(shop):
    @asynccontextmanager
    async def broken(_app):
        raise BundleError("it is torn")
        yield

    shop.app.router.lifespan_context = broken
    with pytest.raises(BundleError, match="it is torn"):
        await shop.serve()
    assert not shop.ready.is_set()


async def test_an_application_that_does_not_close_is_left_behind(shop, monkeypatch):
    @asynccontextmanager
    async def endless(_app):
        yield
        await asyncio.Event().wait()

    monkeypatch.setattr(serving, "CLOSE_S", 0.01)
    shop.app.router.lifespan_context = endless
    running = shop.serve()
    await shop.ready.wait()
    shop.server.handle_exit(signal.SIGTERM, None)
    with pytest.raises(TimeoutError):
        await running
