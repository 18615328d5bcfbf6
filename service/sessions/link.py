"""One connection to one Redis: bytes out in one piece, replies in, and nothing kept for later.

A history of 20 events took 63 µs of processor time through the store for a caller alone, where redis-py took 86 for the
bare reply (DECISIONS.md). Commands are packed by hiredis, written at once, and the replies are
taken from the socket's own callback.

One trip is under way at a time; `node` sees to that. A trip that does not end with all its replies ends the
connection: so a late reply has nowhere to go, and the next trip begins on a connection that owes nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

import hiredis

from service.sessions.address import Address

Command = tuple[str | bytes | int, ...]


class Refusal(Exception):
    """An error that Redis replied, whose first word is its kind: `NOSCRIPT`, `MOVED`, `OOM`."""

    @property
    def word(self) -> str:
        return str(self).partition(" ")[0]


class Link(asyncio.Protocol):
    """A connection to the server at `address`, made when it is needed and made again when it broke."""

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._transport: asyncio.Transport | None = None
        self._reader = _reader()
        self._replies: list[Any] = []
        self._expected = 0
        self._answered: asyncio.Future[list[Any]] | None = None

    async def trip(self, commands: Sequence[Command]) -> list[Any]:
        """One reply for each command, in order; a `Refusal` is a reply.

        Raises:
            TimeoutError: not all replies came in time; some commands may have been carried out.
            OSError: the connection could not be made, or broke.
            Refusal: the server did not let us in.
        """
        if self._transport is None:
            async with asyncio.timeout(self._timeout_s):
                await self._connect()
        return await self._exchange(commands)

    def close(self) -> None:
        """End the connection; the next trip makes a new one."""
        if self._transport is not None:
            self._transport.abort()
            self._lost(ConnectionError("the connection was closed"))

    async def _connect(self) -> None:
        address = self._address
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, address.host, address.port, ssl=address.tls)
        greetings: list[Command] = []
        if address.password is not None:
            name = () if address.username is None else (address.username,)
            greetings.append(("AUTH", *name, address.password))
        if address.db:
            greetings.append(("SELECT", address.db))
        if greetings:
            for reply in await self._exchange(greetings):
                if isinstance(reply, Refusal):
                    self.close()
                    raise reply

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        if self._transport is None:
            raise ConnectionError("the connection broke")
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[list[Any]] = loop.create_future()
        late = loop.call_later(self._timeout_s, _give_up, answered)  # `asyncio.timeout` took 5 of 20 µs
        self._answered, self._replies, self._expected = answered, [], len(commands)
        self._transport.write(b"".join([_packed(command) for command in commands]))
        try:
            return await answered
        finally:
            late.cancel()
            self._answered = None
            if len(self._replies) != self._expected:  # cancelled, late or broken
                self.close()

    # What follows is called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._reader = cast("asyncio.Transport", transport), _reader()  # uvloop's is of no such class

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        replies = self._replies
        try:
            while (reply := self._reader.gets()) is not _NOT_YET:
                replies.append(reply)
        except hiredis.ProtocolError as error:
            self._broken(ConnectionError(f"what answers there is no Redis: {error}"))
            return
        if self._answered is None or len(replies) > self._expected:
            self._broken(ConnectionError("it replied to what nobody had asked"))
        elif len(replies) == self._expected and not self._answered.done():
            self._answered.set_result(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc or ConnectionError("it closed the connection"))

    def _broken(self, error: Exception) -> None:
        if self._transport is not None:
            self._transport.abort()
        self._lost(error)

    def _lost(self, error: Exception) -> None:
        self._transport = None
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)


def _give_up(answered: asyncio.Future[list[Any]]) -> None:
    if not answered.done():
        answered.set_exception(TimeoutError("not all replies came in time"))


_NOT_YET = object()
_packed: Callable[[Any], bytes] = hiredis.pack_command  # its stub knows no tuple of more than one


def _reader() -> hiredis.Reader:
    return hiredis.Reader(replyError=Refusal, notEnoughData=_NOT_YET)
