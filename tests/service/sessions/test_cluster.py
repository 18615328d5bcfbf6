"""A real cluster: slots that move, nodes that hang or die, calls that are cancelled."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from time import monotonic
from typing import Any

import pytest
import uvloop
from redis.crc import key_slot
from redis_server import RedisCluster, RedisServer

from service.errors import StoreUnavailable
from service.sessions import FrozenList, SessionStore, StoredEvent, open_store
from service.sessions.cluster import slot
from service.sessions.redis import keys

pytestmark = pytest.mark.redis


def event(item_id: str, at: float = 0.0, event_id: str | None = None) -> StoredEvent:
    return StoredEvent(item_id, "view", None, at, event_id)


def run(url: str, story: Callable[[SessionStore], Awaitable[None]], **limits: Any) -> None:
    async def told() -> None:
        store = open_store(url, **limits)
        await store.open()
        try:
            await story(store)
        finally:
            await store.close()

    uvloop.run(told())  # as the service does; the contract suite is run by asyncio's own loop


def of_node(number: int, prefix: str = "u") -> str:
    """A user whose slot the first, second or third node holds at the beginning."""
    bounds = (0, 5461, 10923, 16384)
    names = (f"{prefix}{i}" for i in range(1000))
    return next(name for name in names if bounds[number] <= key_slot(keys(name)[0].encode()) < bounds[number + 1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def test_a_slot_is_that_of_redis_for_any_key_and_command():
    for name in ("", "a", "}", "{", "{}", "🛒", "a:b{c}"):
        for key in keys(name):
            assert slot(("LRANGE", key, 0, -1)) == slot(("EVALSHA", "0" * 40, 1, key)) == key_slot(key.encode())
    assert slot(("PING",)) == 0


def test_a_slot_that_moved_is_followed_with_what_it_holds(cluster):
    user = of_node(0, "moved-")
    number = key_slot(keys(user)[0].encode())

    async def story(store: SessionStore) -> None:
        await store.append(user, [event("a", 1, "e1")])
        cluster.move_slot(number, cluster.nodes[0], cluster.nodes[1])
        assert len(await store.history(user)) == 1
        assert (await store.append(user, [event("a", 1, "e1"), event("b", 2)])).outcomes == ("duplicate", "accepted")
        assert cluster.tell(cluster.nodes[1], "CLUSTER", "COUNTKEYSINSLOT", number) > 0

    run(cluster.url, story)
    cluster.move_slot(number, cluster.nodes[1], cluster.nodes[0])


def test_a_slot_on_its_way_is_read_and_written_where_its_keys_are(cluster):
    user = of_node(0, "halfway-")
    number = key_slot(keys(user)[0].encode())

    async def story(store: SessionStore) -> None:
        await store.append(user, [event("a", 1, "e1"), event("b", 2), event("c", 3)])
        await store.keep_list(FrozenList("r", user, b""), at=0, ttl_s=60)
        cluster.move_slot(number, cluster.nodes[0], cluster.nodes[1], is_finished=False)
        assert [stored.item_id for stored in await store.history(user)] == ["b", "c"]
        # Redis refuses a script over several keys of such a slot when one of them is not there; here all are.
        assert (await store.append(user, [event("a", 9, "e1")])).outcomes == ("duplicate",)
        target = cluster.tell(cluster.nodes[1], "CLUSTER", "MYID")
        for node in cluster.nodes[1], cluster.nodes[0]:
            cluster.tell(node, "CLUSTER", "SETSLOT", number, "NODE", target)
        assert (await store.append(user, [event("d", 4)])).outcomes == ("accepted",)

    run(cluster.url, story, cap=2)
    cluster.move_slot(number, cluster.nodes[1], cluster.nodes[0])


def test_an_append_to_a_slot_on_its_way_waits_until_it_has_arrived(cluster):
    user = of_node(0, "waiting-")
    number = key_slot(keys(user)[0].encode())

    async def story(store: SessionStore) -> None:
        await store.append(user, [event("a", 1, "e1")])  # and no id that was trimmed: a key that is not there
        cluster.move_slot(number, cluster.nodes[0], cluster.nodes[1], is_finished=False)
        appending = asyncio.create_task(store.append(user, [event("b", 2)]))
        await asyncio.wait([appending], timeout=0.1)
        assert not appending.done()
        assert len(await store.history(user)) == 1, "reads go on"
        target = cluster.tell(cluster.nodes[1], "CLUSTER", "MYID")
        for node in cluster.nodes[1], cluster.nodes[0]:
            cluster.tell(node, "CLUSTER", "SETSLOT", number, "NODE", target)
        assert len((await appending).history) == 2

    run(cluster.url, story, timeout_s=5)
    cluster.move_slot(number, cluster.nodes[1], cluster.nodes[0])


def test_one_seed_is_enough_and_a_seed_that_is_away_does_not_matter(cluster):
    async def story(store: SessionStore) -> None:
        for number in range(3):
            assert (await store.append(of_node(number, "seed-"), [event("a")])).outcomes == ("accepted",)
        await store.ping()

    last = cluster.nodes[2].port
    run(f"redis+cluster://127.0.0.1:{last}", story)
    run(f"redis+cluster://127.0.0.1:1,127.0.0.1:{last}", story)


def test_a_cluster_asked_as_one_server_and_one_server_asked_as_a_cluster_say_so(cluster, tmp_path):
    async def as_one(store: SessionStore) -> None:
        with pytest.raises(StoreUnavailable, match=r"it is a cluster; write redis\+cluster://"):
            await store.append(of_node(1), [event("a")])

    async def as_cluster(store: SessionStore) -> None:
        with pytest.raises(StoreUnavailable, match="no part of a cluster") as refusal:
            await store.history("u")
        assert refusal.value.operation == "history"

    run(f"redis://127.0.0.1:{cluster.nodes[0].port}", as_one)
    with RedisServer(tmp_path) as server:
        run(f"redis+cluster://127.0.0.1:{server.port}", as_cluster)


def test_scripts_are_loaded_again_on_every_node(cluster):
    async def story(store: SessionStore) -> None:
        users = [of_node(number, "script-") for number in range(3)]
        await store.append_many({user: [event("a")] for user in users})
        for node in cluster.nodes:
            cluster.tell(node, "SCRIPT", "FLUSH")
        results = await store.append_many({user: [event("b", 1)] for user in users})
        assert all(len(result.history) == 2 for result in results.values())

    run(cluster.url, story)


def test_late_a_node_that_hangs_holds_up_nobody_else(cluster):
    async def story(store: SessionStore) -> None:
        users = [of_node(number, "hang-") for number in range(3)]
        await store.append_many({user: [event(user)] for user in users})
        cluster.nodes[1].freeze()
        try:
            hung = asyncio.gather(*(store.history(users[1]) for _ in range(20)), return_exceptions=True)
            began = monotonic()
            for _ in range(50):
                for user in (users[0], users[2]):
                    assert [stored.item_id for stored in await store.history(user)] == [user]
            assert monotonic() - began < 0.3
            assert all(isinstance(answer, StoreUnavailable) for answer in await hung)
        finally:
            cluster.nodes[1].thaw()
        while True:
            try:
                assert [stored.item_id for stored in await store.history(users[1])] == [users[1]]
                break
            except StoreUnavailable:
                await asyncio.sleep(0.01)  # until its probe is answered

    run(cluster.url, story, timeout_s=0.3)


@pytest.mark.parametrize("is_frozen", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gone_a_promoted_replica_takes_over_and_acknowledged_events_are_there(tmp_path, is_frozen):
    async def story(store: SessionStore) -> None:
        users = [of_node(number) for number in range(3)]
        for n in range(5):
            await store.append_many({user: [event(str(n), n, f"e{n}")] for user in users})
        cluster.replicate(cluster.nodes[0])
        if is_frozen:
            cluster.nodes[0].freeze()
        else:
            cluster.nodes[0].stop()
        began = monotonic()
        while True:
            for user in users[1:]:
                assert len(await store.history(user)) >= 5, "others are not concerned"
            try:
                result = await store.append(users[0], [event("4", 4, "e4"), event("new", 9)])
                break
            except StoreUnavailable:
                assert monotonic() - began < 20
                await asyncio.sleep(0.02)  # until the replica has been elected
        assert result.outcomes == ("duplicate", "accepted")
        assert len(result.history) == 6

    # Without a majority no replica is elected; the two that are left are one.
    with RedisCluster(tmp_path, replicas=1, options=("--cluster-require-full-coverage", "no")) as cluster:
        run(cluster.url, story)
