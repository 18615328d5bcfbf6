"""One connection, and a server that says what the test wants."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from service.sessions.address import Address
from service.sessions.link import Link, Refusal

Words = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def told(words: Words, story: Callable[[Link], Awaitable[None]], *, timeout_s: float = 5.0, **entry: str) -> None:
    """Run a story by asyncio's own loop and by the one that serves."""
    _told(asyncio.run, words, story, timeout_s, entry)
    _told(uvloop.run, words, story, timeout_s, entry)


def _told(
    loop: Callable[..., None],
    words: Words,
    story: Callable[[Link], Awaitable[None]],
    timeout_s: float,
    entry: dict[str, str],
) -> None:
    async def run() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await words(reader, writer)
            finally:
                writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            link = Link(Address("127.0.0.1", port, **entry), timeout_s=timeout_s)
            try:
                await story(link)
            finally:
                link.close()

    loop(run())


def test_replies_come_in_order_whatever_pieces_they_arrive_in():
    async def words(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(28) == b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n"
        for byte in b"*2\r\n$1\r\na\r\n$-1\r\n-OOM no room\r\n":
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    async def story(link: Link) -> None:
        first, second = await link.trip([("PING",), ("PING",)])
        assert first == [b"a", None]
        assert isinstance(second, Refusal)
        assert second.word == "OOM"

    told(words, story)


def test_gone_a_connection_that_breaks_in_the_middle_fails_the_trip_and_the_next_one_connects_again():
    visits = 0

    async def words(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        await reader.readexactly(14)
        writer.write(b"+ONE\r\n" if visits % 2 else b"+ONE\r\n+TWO\r\n")
        await writer.drain()
        if visits % 2 == 0:
            await reader.read()

    async def story(link: Link) -> None:
        with pytest.raises(ConnectionError):
            await link.trip([("PING",), ("PING",)])
        assert await link.trip([("PING",), ("PING",)]) == [b"ONE", b"TWO"]
        assert visits % 2 == 0

    told(words, story)


def test_late_replies_reach_nobody():
    visits = 0

    async def words(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        mine = b"+VISIT %d\r\n" % visits
        await reader.readexactly(14)
        if visits % 2:
            await asyncio.sleep(0.1)
        writer.write(mine)
        await reader.read()

    async def story(link: Link) -> None:
        with pytest.raises(TimeoutError):
            await link.trip([("PING",)])
        assert await link.trip([("PING",)]) in ([b"VISIT 2"], [b"VISIT 4"])

    told(words, story, timeout_s=0.05)


def test_a_cancelled_trip_ends_its_connection():
    visits = 0

    async def words(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        await reader.readexactly(14)
        if visits % 2 == 0:
            writer.write(b"+OK\r\n")
        await reader.read()

    async def story(link: Link) -> None:
        trip = asyncio.create_task(link.trip([("PING",)]))
        before = visits
        while visits == before:
            await asyncio.sleep(0.001)  # the server's turn
        trip.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trip
        assert await link.trip([("PING",)]) == [b"OK"]
        assert visits % 2 == 0

    told(words, story)


@pytest.mark.parametrize(
    ("said", "reason"), [(b"HTTP/1.1 400\r\n", "no Redis"), (b"+OK\r\n+MORE\r\n", "nobody had asked")]
)
def test_what_speaks_otherwise_is_not_listened_to(said, reason):
    async def words(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(14)
        writer.write(said)
        await reader.read()

    async def story(link: Link) -> None:
        with pytest.raises(ConnectionError, match=reason):
            await link.trip([("PING",)])

    told(words, story)


def test_a_password_is_given_first_and_a_refusal_is_raised():
    async def words(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readuntil(b"secret\r\n") == b"*3\r\n$4\r\nAUTH\r\n$2\r\nme\r\n$6\r\nsecret\r\n"
        writer.write(b"-WRONGPASS no\r\n")
        await reader.read()

    async def story(link: Link) -> None:
        with pytest.raises(Refusal, match="WRONGPASS"):
            await link.trip([("PING",)])

    told(words, story, username="me", password="secret")


def test_gone_nobody_listens():
    async def story() -> None:
        with pytest.raises(OSError, match=r"refused|Connect"):
            await Link(Address("127.0.0.1", 1), timeout_s=5).trip([("PING",)])

    asyncio.run(story())
