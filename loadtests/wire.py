"""HTTP/1.1 with as little as a load generator needs: requests encoded beforehand, answers read but not interpreted.

A general client costs several times what a fast service does, and then measures itself. Here a request is bytes that
were made before the run, a connection carries one at a time and is kept, and an answer is a status, a head and a body.
Whatever goes wrong is an outcome, too, in a word: `refused`, `closed`, `timeout`, `garbage`. Nothing is sent twice: a
request that a closing connection swallowed is `closed`, and whether to ask again is the caller's to say.

No TLS, no redirects, no cookies, no compression, one host.
"""

import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from loadtests import target

MOST_HEAD_BYTES = 1 << 16
TIMEOUT_S = 10.0
_UNTIL_CLOSED = -1  # bytes of a body that nothing announces
_CHUNKED = -2
T = TypeVar("T")


class Reply(NamedTuple):
    """What one request got. Status 0: no answer, and `failure` says why."""

    status: int
    head: bytes = b""
    body: bytes = b""
    failure: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether it was answered as asked."""
        return 200 <= self.status < 300

    @property
    def code(self) -> str:
        """The status as text, or the failure."""
        return str(self.status) if self.status else self.failure

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        wanted = name.lower().encode() + b":"
        for line in self.head.split(b"\r\n")[1:]:
            if line.lower().startswith(wanted):
                return line[len(wanted) :].strip().decode("latin-1")
        return None

    def json(self) -> Any:
        """The body, parsed.

        Raises:
            ValueError: it is no JSON.
        """
        return json.loads(self.body)


Done = Callable[[Reply], None]


def encode(
    method: str,
    path: str,
    body: bytes | Mapping[str, Any] | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    host: str = "127.0.0.1",
) -> bytes:
    """A whole request, with the API key of the environment where there is one.

    Args:
        method: as it is sent.
        path: with its query, encoded already.
        body: bytes, or what becomes JSON.
        headers: more of them, or others in place of ours; names in lower case.
        host: what the `Host` header says.
    """
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    said = {"host": host, **target.headers()}
    if content is not None:
        said |= {"content-type": "application/json", "content-length": str(len(content))}
    said |= headers or {}
    lines = "".join(f"{name}: {value}\r\n" for name, value in said.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + (content or b"")


class Wire:
    """Connections to one service; no more than `connections` requests are on their way at once, the others wait here.

    Args:
        host: where it listens.
        port: where it listens.
        connections: how many may be open.
        timeout_s: how long one request may take, the wait for a connection included.
    """

    def __init__(self, host: str, port: int, *, connections: int, timeout_s: float = TIMEOUT_S) -> None:
        self._loop = asyncio.get_running_loop()
        self._host, self._port = host, port
        self._limit = connections
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._waiting: deque[Exchange] = deque()
        self._connecting: set[asyncio.Task[None]] = set()

    @property
    def opened(self) -> int:
        """Connections that are there or on their way."""
        return len(self._open) + len(self._connecting)

    def submit(self, request: bytes, done: Done, *, timeout_s: float | None = None) -> "Exchange":
        """Sends a request, and calls `done` once with what came of it; costs no task.

        What it returns has `cancel()`, after which `done` is not called and the connection, if it was sent, is closed.
        """
        exchange = Exchange(request, done)
        exchange.timer = self._loop.call_later(timeout_s or self._timeout_s, exchange.expire)
        if self._idle:
            self._idle.pop().begin(exchange)
        else:
            self._waiting.append(exchange)
            self._connect()
        return exchange

    async def send(self, request: bytes, *, timeout_s: float | None = None) -> Reply:
        """`submit`, waited for. Whoever is cancelled meanwhile closes the connection, as a client that hangs up."""
        answer: asyncio.Future[Reply] = self._loop.create_future()

        def tell(reply: Reply) -> None:
            if not answer.done():
                answer.set_result(reply)

        exchange = self.submit(request, tell, timeout_s=timeout_s)
        try:
            return await answer
        except asyncio.CancelledError:
            exchange.cancel()
            raise

    async def warm(self, count: int) -> None:
        """Opens connections until there are `count`, a few at a time: front ends keep theirs, and come with them.

        Whoever cannot be reached is noticed by the first request.
        """
        while self.opened < min(count, self._limit):
            before = self.opened
            dials = [self._loop.create_task(self._dial()) for _ in range(min(16, count - before, self._limit - before))]
            self._connecting.update(dials)
            await asyncio.wait(dials)
            if self.opened == before:
                return

    async def close(self) -> None:
        """Ends every connection; requests that are still on their way are `closed`."""
        while self._waiting:
            self._waiting.popleft().finish(Reply(0, failure="closed"))
        for task in tuple(self._connecting):
            task.cancel()
        for connection in tuple(self._open):
            connection.abort()
        await asyncio.sleep(0)  # the transports close in the loop's next round
        await asyncio.sleep(0)

    def _connect(self) -> None:
        """Opens connections while requests wait for one and there may be more."""
        while self.opened < self._limit and len(self._connecting) < len(self._waiting):
            self._connecting.add(self._loop.create_task(self._dial()))

    async def _dial(self) -> None:
        connection = None
        try:
            _, connection = await self._loop.create_connection(lambda: _Connection(self), self._host, self._port)
        except OSError:
            if exchange := self._next():
                exchange.finish(Reply(0, failure="refused"))
        finally:
            self._connecting.remove(asyncio.current_task())  # type: ignore[arg-type]
        if connection is None:
            self._connect()
            return
        self._open.add(connection)
        self._free(connection)

    def _next(self) -> "Exchange | None":
        while self._waiting:
            exchange = self._waiting.popleft()
            if not exchange.is_over:
                return exchange
        return None

    def _free(self, connection: "_Connection") -> None:
        if not connection.is_open:
            self._gone(connection)
        elif exchange := self._next():
            connection.begin(exchange)
        else:
            self._idle.append(connection)

    def _gone(self, connection: "_Connection") -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._connect()


class Exchange:
    """One request and whom to tell."""

    __slots__ = ("_done", "connection", "is_over", "request", "timer")

    def __init__(self, request: bytes, done: Done) -> None:
        self.request = request
        self.timer: asyncio.TimerHandle | None = None
        self.connection: _Connection | None = None
        self.is_over = False
        self._done = done

    async def add(self, data: bytes) -> None:
        """Sends more of the request, once its beginning has left."""
        while self.connection is None and not self.is_over:
            await asyncio.sleep(0)
        if self.connection is not None and not self.is_over:
            self.connection.add(data)

    async def end(self) -> None:
        """Says that this side will send nothing more."""
        while self.connection is None and not self.is_over:
            await asyncio.sleep(0)
        if self.connection is not None and not self.is_over:
            self.connection.end()

    def finish(self, reply: Reply) -> None:
        if self._end():
            self._done(reply)

    def expire(self) -> None:
        self._hang_up(Reply(0, failure="timeout"))

    def cancel(self) -> None:
        self._hang_up(None)

    def _hang_up(self, reply: Reply | None) -> None:
        if not self._end():
            return
        if self.connection is not None:
            self.connection.abort()
        if reply is not None:
            self._done(reply)

    def _end(self) -> bool:
        if self.is_over:
            return False
        self.is_over = True
        if self.timer is not None:
            self.timer.cancel()
        return True


class _Connection(asyncio.Protocol):
    """One connection: nothing, or one request, is on it."""

    __slots__ = ("_buffer", "_exchange", "_head", "_left", "_out", "_status", "_transport", "_wire")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._reset()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def begin(self, exchange: Exchange) -> None:
        assert self._transport is not None
        assert self._exchange is None
        self._exchange = exchange
        exchange.connection = self
        self._transport.write(exchange.request)

    def add(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def end(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, _error: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if self._head and self._left == _UNTIL_CLOSED:
                exchange.finish(Reply(self._status, self._head, bytes(self._buffer)))
            else:
                exchange.finish(Reply(0, self._head, failure="closed"))
        self._wire._gone(self)

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:  # nobody asked: the two sides are not of one mind about where an answer ends
            self.abort()
            return
        self._buffer += data
        try:
            is_whole = self._read()
        except ValueError:
            self._end(Reply(0, bytes(self._buffer[:200]), failure="garbage"), is_reusable=False)
            return
        if is_whole:
            reply = Reply(self._status, self._head, bytes(self._out))
            self._end(reply, is_reusable=not self._buffer and b"connection: close" not in self._head.lower())

    def _read(self) -> bool:
        """Whether the answer is complete; what was read of it leaves the buffer."""
        while not self._head:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MOST_HEAD_BYTES or not b"HTTP/1.1".startswith(self._buffer[:8]):
                    raise ValueError("no head of an answer")
                return False
            self._open_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
        if self._left == _CHUNKED:
            return self._read_chunks()
        if self._left == _UNTIL_CLOSED or len(self._buffer) < self._left:
            return False
        self._out = self._buffer[: self._left]
        del self._buffer[: self._left]
        return True

    def _open_head(self, head: bytes) -> None:
        assert self._exchange is not None
        if not head.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")):
            raise ValueError("no status line")
        status = int(head[9:12])
        if 100 <= status < 200:
            return  # an interim answer; the real one follows
        self._status, self._head = status, head
        lower = head.lower()
        if status in (204, 304) or self._exchange.request.startswith(b"HEAD "):
            self._left = 0
        elif (at := lower.find(b"\r\ncontent-length:")) >= 0:
            self._left = int(lower[at + 17 :].split(b"\r\n", 1)[0])
            if self._left < 0:
                raise ValueError("a negative length")
        elif b"\r\ntransfer-encoding: chunked" in lower:
            self._left = _CHUNKED
        else:
            self._left = _UNTIL_CLOSED

    def _read_chunks(self) -> bool:
        while True:
            end = self._buffer.find(b"\r\n")
            if end < 0:
                return False
            size = int(self._buffer[:end].split(b";", 1)[0], 16)
            after = end + 2 + size + 2
            if len(self._buffer) < after:
                return False
            if self._buffer[after - 2 : after] != b"\r\n":
                raise ValueError("a chunk that does not end")
            self._out += self._buffer[end + 2 : after - 2]
            del self._buffer[:after]
            if size == 0:  # trailers are not read: whoever sends them loses the connection
                return True

    def _end(self, reply: Reply, *, is_reusable: bool) -> None:
        exchange, self._exchange = self._exchange, None
        self._reset()
        if not is_reusable:
            self.abort()
        assert exchange is not None
        exchange.finish(reply)
        if is_reusable:
            self._wire._free(self)

    def _reset(self) -> None:
        self._buffer = bytearray()
        self._out = bytearray()
        self._head = b""
        self._status = 0
        self._left = 0


@asynccontextmanager
async def wired(url: str, *, connections: int, timeout_s: float = TIMEOUT_S) -> AsyncIterator[Wire]:
    """A wire for a block.

    Raises:
        LoadError: another machine.
    """
    parts = urlsplit(target.checked_url(url))
    wire = Wire(parts.hostname or "", parts.port or 80, connections=connections, timeout_s=timeout_s)
    try:
        yield wire
    finally:
        await wire.close()


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on the faster loop where it is installed."""
    if sys.platform != "win32":
        try:
            import uvloop
        except ImportError:
            return asyncio.run(main)
        return uvloop.run(main)
    return asyncio.run(main)
