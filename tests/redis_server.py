"""A real redis-server for tests: on a free port of the loopback, in a directory of its own, gone at the end.

with RedisServer(tmp_path) as server:
    connect(server.url)
"""

import atexit
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import pytest

BINARY = "redis-server"
MISSING = "redis-server is not installed; on Debian and Ubuntu: apt-get install redis-server"
READY_WITHIN_S = 10.0


class RedisServer:
    """One server process, which can be killed and started again on its port.

    Args:
        directory: for its files; with `durable` a second start there finds what the first one acknowledged.
        durable: append-only file, synchronised before each reply.
        options: further settings as on the command line, `("--maxmemory", "2mb")`.
    """

    def __init__(self, directory: Path, *, durable: bool = False, options: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = directory
        self._settings = (
            *("--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--loglevel", "warning"),
            *("--appendonly", "yes" if durable else "no", "--appendfsync", "always"),
            *options,
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers. Skips the test where there is no redis-server."""
        if shutil.which(BINARY) is None:
            pytest.skip(MISSING)
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen([BINARY, *self._settings], cwd=self._directory, stdout=log, stderr=log)
        atexit.register(self.stop)  # also when the test run is interrupted
        give_up = time.monotonic() + READY_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.stop()
                raise RuntimeError(f"redis-server did not start:\n{(self._directory / 'log').read_text()}")
            time.sleep(0.01)  # another process: there is nothing to wait on but its answer

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it, by default as a power cut would."""
        atexit.unregister(self.stop)
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)  # a frozen process would not hear the next one
            self._process.send_signal(how)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Keep its connections open and answer nothing."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Go on where `freeze` stopped it."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def free_port() -> int:
    """A port on the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
