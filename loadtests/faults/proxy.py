"""A line between two ends on this machine that can be made bad: `python -m loadtests.faults.proxy PORT`.

It prints the port of its near end, then obeys its input, a state a line:

    pass      what comes is handed on
    hang      nothing is; what comes is kept until it passes again, as a network repeats what was lost
    delay S   everything is handed on S seconds later, in order, in either direction
    tear      of the next reply on each connection half is handed on, then the connection breaks
    reset     connections break, and so does every new one
"""

import asyncio
import socket
import struct
import sys
import time
from collections.abc import Sequence

CHUNK_BYTES = 1 << 16
_AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: closing breaks the connection instead of ending it
Ends = tuple[asyncio.StreamWriter, asyncio.StreamWriter]


class Proxy:
    """One line to `port` on this machine; changes of state hold for open connections as well."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._passes = asyncio.Event()
        self._passes.set()
        self._state = "pass"
        self._delay_s = 0.0
        self._ends: set[Ends] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> int:
        """The port of the near end."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=CHUNK_BYTES)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Takes it down, connections first."""
        self.be("reset")
        if self._server is not None:
            self._server.close()
        await asyncio.sleep(0)

    def be(self, state: str) -> None:
        """Changes what it does.

        Raises:
            ValueError: it knows no such state.
        """
        name, _, number = state.strip().partition(" ")
        if name not in ("pass", "hang", "delay", "tear", "reset"):
            raise ValueError(f"{state!r} is nothing that a line can do")
        self._state = name
        self._delay_s = float(number) if name == "delay" else 0.0
        if name == "hang":
            self._passes.clear()
        else:
            self._passes.set()
        if name == "reset":
            for ends in tuple(self._ends):
                _break(ends)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passes.wait()
        if self._state == "reset":
            _break((writer, writer))
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            _break((writer, writer))
            return
        ends = (writer, far_writer)
        self._ends.add(ends)
        try:
            await asyncio.gather(
                self._carry(reader, far_writer, ends, is_reply=False),
                self._carry(far_reader, writer, ends, is_reply=True),
            )
        finally:
            self._ends.discard(ends)
            _break(ends)

    async def _carry(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, ends: Ends, *, is_reply: bool
    ) -> None:
        """Hands on what comes, until one end is gone."""
        pending: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def hand_on() -> None:
            while True:
                arrived, chunk = await pending.get()
                await asyncio.sleep(max(0.0, arrived + self._delay_s - time.monotonic()))
                await self._passes.wait()
                if self._state == "tear" and is_reply:
                    sink.write(chunk[: len(chunk) // 2])
                    await sink.drain()
                    chunk = b""
                if not chunk:
                    _break(ends)
                    return
                sink.write(chunk)

        handing = asyncio.create_task(hand_on())
        try:
            while chunk := await source.read(CHUNK_BYTES):
                pending.put_nowait((time.monotonic(), chunk))
        except OSError:
            pass
        finally:
            pending.put_nowait((time.monotonic(), b""))  # the end comes after what was on its way
            try:
                await handing
            except OSError:
                _break(ends)


def _break(ends: Ends) -> None:
    for writer in ends:
        raw = writer.get_extra_info("socket")
        if raw is not None and not writer.transport.is_closing():
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            writer.transport.abort()


async def serve(port: int) -> None:
    """A line that is told on standard input what to do, until that ends."""
    proxy = Proxy(port)
    print("port", await proxy.open(), flush=True)
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        proxy.be(line.decode())
    await proxy.close()


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    asyncio.run(serve(int(arguments[0])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
