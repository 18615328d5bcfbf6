"""A real redis-server for tests: on a free port of the loopback, in a directory of its own, gone at the end.

with RedisServer(tmp_path) as server:
    connect(server.url)

`RedisCluster` is three of them that share the slots.
"""

import atexit
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import redis

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


class RedisCluster:
    """Three servers that share the slots of one cluster, and as many replicas as asked for of the first.

    Args:
        directory: for their files.
        replicas: of the first server; one of them takes over when it is gone.
        options: further settings of every server.
    """

    def __init__(self, directory: Path, *, replicas: int = 0, options: tuple[str, ...] = ()) -> None:
        settings = ("--cluster-enabled", "yes", "--cluster-node-timeout", "500", "--repl-diskless-sync-delay", "0")
        self._buses = [free_port() for _ in range(3 + replicas)]
        self.nodes = [
            RedisServer(directory / str(bus), options=(*settings, "--cluster-port", str(bus), *options))
            for bus in self._buses
        ]
        self.url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:3])

    def start(self) -> None:
        """Start the servers, share the slots, wait until all agree."""
        for node in self.nodes:
            node.start()
        bounds = [0, 5461, 10923, 16384]
        for node, first, end in zip(self.nodes, bounds, bounds[1:], strict=False):
            self.tell(node, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        for epoch, node in enumerate(self.nodes, start=1):
            self.tell(node, "CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in self.nodes[1:]:
            self.tell(node, "CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, self._buses[0])
        self._wait(lambda node: self.tell(node, "CLUSTER", "NODES").count(b" connected") == len(self.nodes))
        first = self.tell(self.nodes[0], "CLUSTER", "MYID")
        for node in self.nodes[3:]:
            self.tell(node, "CLUSTER", "REPLICATE", first)
            self._wait(lambda node: b"master_link_status:up" in self.tell(node, "INFO", "replication"), [node])
        self._wait(lambda node: b"cluster_state:ok" in self.tell(node, "CLUSTER", "INFO"))

    def stop(self) -> None:
        """End all of it."""
        for node in self.nodes:
            node.stop()

    def tell(self, node: RedisServer, *command: str | bytes | int) -> Any:
        """The reply of one server to a command, whatever its place in the cluster."""
        with redis.Redis(port=node.port, protocol=2) as client:
            client.response_callbacks.clear()
            return client.execute_command(*command)

    def replicate(self, node: RedisServer) -> None:
        """Returns when the replica of a server has all that the server has."""

        def is_so(node: RedisServer) -> bool:
            told = self.tell(node, "INFO", "replication").decode()
            offsets = re.findall(r"(?:master_repl_offset:|,offset=)(\d+)", told)
            return len(offsets) == 2 and offsets[0] == offsets[1]

        self._wait(is_so, [node])

    def move_slot(self, slot: int, source: RedisServer, target: RedisServer, *, is_finished: bool = True) -> None:
        """Move a slot with its keys from one server to another; unless finished, it stays half-way, keys moved."""
        source_id, target_id = self.tell(source, "CLUSTER", "MYID"), self.tell(target, "CLUSTER", "MYID")
        self.tell(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        self.tell(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        while keys := self.tell(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
            self.tell(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        if is_finished:
            for node in (target, source):
                self.tell(node, "CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def _wait(self, is_so: Callable[[RedisServer], bool], nodes: Sequence[RedisServer] = ()) -> None:
        give_up = time.monotonic() + READY_WITHIN_S
        while not all(is_so(node) for node in nodes or self.nodes):
            if time.monotonic() > give_up:
                raise RuntimeError(
                    f"the cluster did not agree:\n{self.tell(self.nodes[0], 'CLUSTER', 'NODES').decode()}"
                )
            time.sleep(0.01)  # other processes, again

    def __enter__(self) -> "RedisCluster":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def free_port() -> int:
    """A port on the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
