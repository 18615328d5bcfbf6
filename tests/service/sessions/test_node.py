"""One server: what a call finds there, and what its errors mean."""

import asyncio
from pathlib import Path
from time import monotonic

import pytest
from redis_server import RedisServer

from service.errors import StoreUnavailable
from service.sessions import scripts
from service.sessions.address import Address
from service.sessions.link import Command, Refusal
from service.sessions.node import Node, failure

pytestmark = pytest.mark.redis
COUNT: Command = ("EVALSHA", scripts.COUNT_DISTINCT.digest, 1, "k", 1000, "a")
ADVANCE: Command = ("EVALSHA", scripts.ADVANCE.digest, 1, "l", 1)


def test_missing_scripts_are_loaded_once_and_a_refused_command_fails_alone(tmp_path: Path):
    async def story() -> None:
        node = Node(Address("127.0.0.1", server.port), timeout_s=5)
        first, second, third = await asyncio.gather(
            node.call([COUNT, ADVANCE], operation="append"),
            node.call([("NONSENSE",)], operation="append"),
            node.call([COUNT, ("ECHO", "x")], operation="append"),
        )
        assert first == [1, [None, 0]]
        assert isinstance(second[0], Refusal)
        assert third == [1, b"x"]
        await node.close()

    with RedisServer(tmp_path) as server:
        asyncio.run(story())


def test_a_frozen_server_is_refused_at_once_and_recovery_is_noticed_with_its_first_reply(tmp_path: Path):
    async def story() -> None:
        node = Node(Address("127.0.0.1", server.port), timeout_s=0.4)
        await node.ping()
        server.freeze()
        waits = []
        for _ in range(8):
            began = monotonic()
            with pytest.raises(StoreUnavailable, match="answer"):
                await asyncio.gather(*(node.ping() for _ in range(20)))
            waits.append(monotonic() - began)
        assert max(waits) < 1.0
        assert sum(wait < 0.1 for wait in waits) >= 6, "only the first, and then one probe at a time, wait"
        server.thaw()
        began = monotonic()
        while True:
            try:
                await node.ping()
                break
            except StoreUnavailable:
                await asyncio.sleep(0.01)
        assert monotonic() - began < 1.0
        await asyncio.gather(*(node.ping() for _ in range(20)))
        await node.close()

    with RedisServer(tmp_path) as server:
        asyncio.run(story())


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (Refusal("OOM command not allowed"), "raise its maxmemory"),
        (Refusal("WRONGPASS invalid"), "another password"),
        (Refusal("MOVED 1 h:2"), "redis+cluster://"),
        (Refusal("CLUSTERDOWN Hash slot not served"), "does not cover all keys"),
        (Refusal("ERR what"), "it refused"),
        (ConnectionResetError("gone"), "is it running there?"),
    ],
)
def test_an_error_comes_with_its_remedy(error, remedy):
    assert remedy in str(failure(Address("h", 1, password="hunter2"), error))
