"""The session stores behind one face, each with a way to let time pass."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
import redis
from redis_server import RedisCluster, RedisServer

from service.sessions import SessionStore, open_store

T = TypeVar("T")


class Room(Protocol):
    """A place where a store keeps its bytes; several stores may be opened on it, one after the other or at once."""

    def store(self, **limits: Any) -> SessionStore: ...

    def run(self, story: Callable[[SessionStore], Awaitable[T]], **limits: Any) -> T: ...

    def advance(self, seconds: float) -> None: ...

    def contents(self) -> bytes: ...


class _Room:
    def __init__(self, url: str) -> None:
        self.url = url
        self.now = 1_700_000_000.0

    def store(self, **limits: Any) -> SessionStore:
        return open_store(self.url, clock=lambda: self.now, **limits)

    def run(self, story: Callable[[SessionStore], Awaitable[T]], **limits: Any) -> T:
        """Open a store, let the story use it, close it."""

        async def told() -> T:
            store = self.store(**limits)
            await store.open()
            try:
                return await story(store)
            finally:
                await store.close()

        return asyncio.run(told())

    def advance(self, seconds: float) -> None:
        """Let wall-clock time pass."""
        self.now += seconds

    def contents(self) -> bytes:
        """Everything that is kept outside of this process."""
        return b""


class _FileRoom(_Room):
    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}")
        self._path = path

    def contents(self) -> bytes:
        return b"".join(path.read_bytes() for path in self._path.parent.glob(f"{self._path.name}*"))


_READERS: dict[bytes, Callable[[redis.Redis, bytes], list[Any]]] = {
    b"string": lambda client, key: [client.get(key)],
    b"list": lambda client, key: client.lrange(key, 0, -1),
    b"zset": lambda client, key: client.zrange(key, 0, -1, withscores=False),
    b"hash": lambda client, key: [part for pair in client.hgetall(key).items() for part in pair],
}


class _RedisRoom(_Room):
    """One server, or all those of a cluster."""

    def __init__(self, url: str, servers: Sequence[RedisServer]) -> None:
        super().__init__(url)
        self._clients = [redis.Redis(port=server.port, protocol=2) for server in servers]
        for client in self._clients:
            client.flushall()

    def advance(self, seconds: float) -> None:
        """What Redis would look like by then: keys nearer to their end, remembered ids older."""
        for client in self._clients:
            for key in client.scan_iter():
                remaining_ms = client.pttl(key)
                assert remaining_ms > 0, f"{key!r} never expires"
                client.pexpire(key, max(0, remaining_ms - round(seconds * 1000)))
                if client.type(key) == b"zset":
                    for member in client.zrange(key, 0, -1):
                        client.zincrby(key, -seconds * 1000, member)

    def contents(self) -> bytes:
        """Keys and values in plain text; a dump would not do, it is compressed."""
        found = []
        for client in self._clients:
            for key in client.scan_iter():
                values = _READERS[client.type(key)](client, key)
                found += [key, *(value if isinstance(value, bytes) else repr(value).encode() for value in values)]
        return b"\n".join(found)

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


REDIS = [pytest.param(name, marks=pytest.mark.redis) for name in ("redis", "cluster")]


@pytest.fixture(params=["memory", "sqlite", *REDIS])
def room(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Room]:
    """Each store in turn, empty."""
    if request.param == "memory":
        yield _Room("memory://")
    elif request.param == "sqlite":
        yield _FileRoom(tmp_path / "sessions.db")
    else:
        server = request.getfixturevalue(f"redis_{'server' if request.param == 'redis' else 'cluster'}")
        redis_room = _RedisRoom(server.url, getattr(server, "nodes", [server]))
        yield redis_room
        redis_room.close()
