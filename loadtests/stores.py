"""A redis-server of one's own for a run: on a free port of the loopback, nothing on disk, gone at the end."""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from loadtests.target import LoadError

BINARY = "redis-server"
START_S = 10.0


@contextmanager
def redis() -> Iterator[str]:
    """The URL of a server that lives as long as the block, and runs where this thread may run.

    Raises:
        LoadError: there is no redis-server, or it does not start.
    """
    if shutil.which(BINARY) is None:
        raise LoadError(f"{BINARY} is not installed; on Debian and Ubuntu: apt-get install redis-server")
    port = free_port()
    command = [BINARY, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    with tempfile.TemporaryDirectory(prefix="sequitur-redis-") as folder, tempfile.TemporaryFile() as log:
        process = subprocess.Popen([*command, "--loglevel", "warning"], cwd=folder, stdout=log, stderr=log)
        try:
            until = time.monotonic() + START_S
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > until:
                    raise LoadError(f"{BINARY} did not start on port {port}")
                time.sleep(0.01)  # another process: there is nothing to wait on but its answer
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port on the loopback that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False
