"""A line that can be made bad: every state, on connections that were open before."""

import asyncio
import time

import pytest

from loadtests.faults.proxy import Proxy


def on_a_line(work):
    """Runs `work(proxy, reader, writer, dial)` against a server that answers what it is sent, twice over."""

    async def twice(reader, writer):
        while chunk := await reader.read(1024):
            writer.write(chunk * 2)
        writer.close()

    async def run():
        server = await asyncio.start_server(twice, "127.0.0.1", 0)
        proxy = Proxy(server.sockets[0].getsockname()[1])
        port = await proxy.open()

        def dial():
            return asyncio.open_connection("127.0.0.1", port)

        reader, writer = await dial()
        writer.write(b"ab")
        assert await reader.readexactly(4) == b"abab"
        try:
            async with asyncio.timeout(10):
                await work(proxy, reader, writer, dial)
        finally:
            writer.close()
            await proxy.close()
            server.close()

    asyncio.run(run())


def test_what_hangs_comes_when_it_passes_again():
    async def work(proxy, reader, writer, _dial):
        proxy.be("hang")
        writer.write(b"cd")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting := asyncio.ensure_future(reader.readexactly(4))), 0.05)
        proxy.be("pass")
        assert await waiting == b"cdcd"

    on_a_line(work)


def test_a_new_connection_hangs_as_well():
    async def work(proxy, _reader, _writer, dial):
        proxy.be("hang")
        reader, writer = await dial()
        writer.write(b"x")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting := asyncio.ensure_future(reader.readexactly(2))), 0.05)
        proxy.be("pass")
        assert await waiting == b"xx"
        writer.close()

    on_a_line(work)


def test_a_delay_holds_either_way():
    async def work(proxy, reader, writer, _dial):
        proxy.be("delay 0.05")
        begun = time.monotonic()
        writer.write(b"cd")
        assert await reader.readexactly(4) == b"cdcd"
        assert time.monotonic() - begun >= 0.1

    on_a_line(work)


def test_a_torn_reply_is_half_of_one():
    async def work(proxy, reader, writer, _dial):
        proxy.be("tear")
        writer.write(b"cd")
        assert await reader.read(100) == b"cd"
        with pytest.raises(ConnectionError):
            await reader.read(100)

    on_a_line(work)


def test_a_reset_line_takes_nobody_until_it_passes():
    async def work(proxy, reader, _writer, dial):
        proxy.be("reset")
        with pytest.raises(ConnectionError):
            await reader.read(100)
        new_reader, new_writer = await dial()
        with pytest.raises(ConnectionError):
            await new_reader.readexactly(1)
        new_writer.close()
        proxy.be("pass")
        new_reader, new_writer = await dial()
        new_writer.write(b"e")
        assert await new_reader.readexactly(2) == b"ee"
        new_writer.close()

    on_a_line(work)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="nothing that a line can do"):
        Proxy(1).be("sing")
