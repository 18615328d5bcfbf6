"""The processes that a run starts, and their ends: nothing else on the machine is ever signalled."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from loadtests import report
from loadtests.target import LoadError

START_S = 60.0
END_S = 20.0
PAUSE_S = 0.02
REDIS = "redis-server"
_READY = re.compile(r"ready on (http://\S+)")


class Missing(Exception):
    """What a scenario needs is not here: a program, or a right; the message says which."""


class Child:
    """A process of ours; its output goes to a file, as it would in earnest.

    Args:
        command: what to run.
        log: the file.
        environment: all of it.
        core: where it may run; None: where we may.
        stdin: whether it is to be written to.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        *,
        core: int | None = None,
        stdin: bool = False,
    ) -> None:
        self.log = log
        before = os.sched_getaffinity(0)
        if core is not None:
            os.sched_setaffinity(0, {core})  # is inherited, by its threads as well
        try:
            with log.open("ab") as out:
                self._process = subprocess.Popen(
                    command,
                    env=dict(environment),
                    cwd=report.ROOT,
                    stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                )
        finally:
            os.sched_setaffinity(0, before)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def said(self) -> str:
        """Its output so far."""
        return self.log.read_text(errors="replace")

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Returns when something holds.

        Raises:
            LoadError: the process ended before, or it took too long.
        """
        give_up = time.monotonic() + START_S
        while not holds():
            if not self.is_running:
                raise LoadError(f"a process ended with {self._process.returncode} before {what}: {self.said()[-500:]}")
            if time.monotonic() > give_up:
                raise LoadError(f"no {what} within {START_S:g} s: {self.said()[-500:]}")
            time.sleep(PAUSE_S)

    def tell(self, line: str) -> None:
        """Writes a line to its input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def send(self, sent: signal.Signals) -> None:
        """Signals it."""
        self._process.send_signal(sent)

    def kill(self) -> None:
        """Ends it at once, as a power cut would."""
        self.send(signal.SIGCONT)
        self.send(signal.SIGKILL)
        self._process.wait()

    def end(self) -> None:
        """Asks it to end, and waits; one that does not is killed."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self.is_running:
            self.send(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(timeout=END_S)
            except subprocess.TimeoutExpired:
                self.kill()


class Service(Child):
    """The service in processes of its own; `url` is where it is.

    Args:
        bundle: what it serves.
        settings: by name, without their prefix.
        folder: for its log.
        core: where it runs.
        launcher: what stands before its own arguments on the command line.
    """

    def __init__(
        self,
        bundle: Path,
        settings: Mapping[str, str],
        folder: Path,
        *,
        core: int | None,
        launcher: Sequence[str] = ("-m", "service"),
    ) -> None:
        said = {f"SEQUITUR_{name.upper()}": value for name, value in settings.items()}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SEQUITUR_")}
        command = [sys.executable, *launcher, "--bundle", str(bundle.resolve()), "--port", "0"]
        super().__init__(command, folder / "service.log", {**environment, **said}, core=core)
        self.url = ""

    def wait(self, workers: int = 1) -> None:
        """Returns when it is ready, and all of its workers are.

        Raises:
            LoadError: it does not get there.
        """
        self.until(lambda: _READY.search(self.said()) is not None, "readiness")
        found = _READY.search(self.said())
        assert found is not None
        self.url = found[1]
        if workers > 1:
            self.until(lambda: len(self.workers()) == workers, "workers")

    def workers(self) -> list[int]:
        """The processes that it started and that serve."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"service.worker" in _command(int(pid))]

    def resident_mb(self) -> float:
        """Memory of it and its workers."""
        return round(sum(_resident(pid) for pid in (self.pid, *self.workers())) / 1e6, 1)


def _command(pid: int) -> bytes:
    """The command line of a process; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


class Redis:
    """A redis-server on a free port that survives its own death: every append is on the disk before its reply.

    Args:
        folder: for its files; a second start there finds what the first one acknowledged.
        core: where it runs.

    Raises:
        Missing: there is no redis-server.
    """

    FSYNC = "always"

    def __init__(self, folder: Path, *, core: int | None = None) -> None:
        if shutil.which(REDIS) is None:
            raise Missing("redis-server is not installed; on Debian and Ubuntu: apt-get install redis-server")
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder, self._core = folder, core
        self._child: Child | None = None

    def start(self) -> None:
        """Starts it and waits until it answers, its file read."""
        options = ("--save", "", "--loglevel", "warning", "--appendonly", "yes", "--appendfsync", self.FSYNC)
        place = ("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._folder))
        self._child = Child([REDIS, *place, *options], self._folder / "redis.log", os.environ, core=self._core)
        self._child.until(self._answers, "answer of Redis")

    def kill(self) -> None:
        """Ends it at once."""
        if self._child is not None:
            self._child.kill()

    def freeze(self) -> None:
        """Its connections stay open, and nothing is answered."""
        assert self._child is not None
        self._child.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on where it was stopped."""
        assert self._child is not None
        self._child.send(signal.SIGCONT)

    def ask(self, *words: str) -> str:
        """The reply to one command, as it comes over the wire."""
        parts = [word.encode() for word in words]
        request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(request)
            return connection.recv(1 << 16).decode(errors="replace")

    def used_bytes(self) -> int:
        """Memory in use, as it counts it."""
        found = re.search(r"used_memory:(\d+)", self.ask("INFO", "memory"))
        assert found is not None
        return int(found[1])

    def _answers(self) -> bool:
        try:
            return self.ask("PING").startswith("+PONG")
        except OSError:
            return False

    def end(self) -> None:
        """Ends it for good; nothing of it is wanted any more."""
        if self._child is not None and self._child.is_running:
            self._child.kill()


class Line:
    """A line to a server on this machine that can be cut, slowed and torn: see `proxy`. `port` is its near end."""

    def __init__(self, port: int, folder: Path, *, core: int | None = None) -> None:
        command = [sys.executable, "-m", "loadtests.faults.proxy", str(port)]
        self._child = Child(command, folder / "proxy.log", os.environ, core=core, stdin=True)
        self._child.until(lambda: "port " in self._child.said(), "line")
        self.port = int(self._child.said().partition("port ")[2].split()[0])

    def be(self, state: str) -> None:
        """From now on: `pass`, `hang`, `reset`, `tear` or `delay SECONDS`."""
        self._child.tell(state)

    def end(self) -> None:
        """Takes it down."""
        self._child.end()


@contextmanager
def mounted(folder: Path, size_bytes: int) -> Iterator[Path]:
    """A file system of that size, for a block.

    Raises:
        Missing: we may not mount one.
    """
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Missing(f"no file system can be mounted here ({error}); run this one as root") from error
    if done.returncode:
        raise Missing(f"no file system can be mounted here ({done.stderr.strip()}); run this one as root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


def free_port() -> int:
    """A port on the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
