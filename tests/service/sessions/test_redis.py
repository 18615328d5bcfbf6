"""What is special to Redis: it goes away, hangs, fills up, restarts, and is shared."""

import asyncio
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import redis
import uvloop
from redis.crc import key_slot
from redis_server import RedisServer, free_port
from store_load import loaded

from service.errors import StoreUnavailable
from service.sessions import FrozenList, SessionStore, StoredEvent, open_store
from service.sessions.redis import keys

pytestmark = pytest.mark.redis


def event(item_id: str, at: float = 0.0, event_id: str | None = None) -> StoredEvent:
    return StoredEvent(item_id, "view", None, at, event_id)


def run(url: str, story: Callable[[SessionStore], Coroutine[Any, Any, None]], **limits: Any) -> None:
    async def told() -> None:
        store = open_store(url, **limits)
        await store.open()
        try:
            await story(store)
        finally:
            await store.close()

    uvloop.run(told())  # as the service does; the contract suite is run by asyncio's own loop


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """A server that this test may not harm, empty."""
    with redis.Redis.from_url(shared_server.url) as client:
        client.flushall()
        client.config_resetstat()
    return shared_server


def test_an_append_with_everything_is_one_round_trip_and_calls_share_one_connection(server):
    async def story(store: SessionStore) -> None:
        await store.append("u", [event("first")])  # loads the script
        with redis.Redis.from_url(server.url) as client:
            client.config_resetstat()
            await store.append("u", [event("c", 3, "e3"), event("a", 1, "e1"), event("c", 3, "e3"), event("d", 4)])
            stats = client.info("commandstats")
            assert stats["cmdstat_evalsha"]["calls"] == 1
            await asyncio.gather(*(store.history(f"u{i}") for i in range(300)))
            assert len([c for c in client.client_list() if c["id"] != str(client.client_id())]) <= 2

    run(server.url, story, cap=3)


def test_all_keys_of_a_user_expire_and_live_in_one_slot(server):
    async def story(store: SessionStore) -> None:
        await store.append("u", [event("a", 1, "e1"), event("b", 2), event("c", 3)])
        await store.keep_list(FrozenList("r", "u", b""), at=0, ttl_s=60)
        await store.keep_list(FrozenList("r", "u", b""), at=0, ttl_s=50)
        with redis.Redis.from_url(server.url) as client:
            assert {key.decode() for key in client.scan_iter()} == {*keys("u"), "{sequitur:r}:list"}
            events, trimmed, lists = keys("u")
            assert 59_000 < client.pttl(lists) <= 60_000
            assert 49_000 < client.pttl("{sequitur:r}:list") <= 50_000
            assert 999_000 < client.pttl(events) <= 1_000_000
            assert 99_000 < client.pttl(trimmed) <= 100_000

    run(server.url, story, cap=2, ttl_s=1000, dedup_ttl_s=100)
    for odd in ("u", "}", "{", "{}", "a}b", "}{", "", "%7D"):
        assert len({key_slot(key.encode()) for key in keys(odd)}) == 1


def test_gone_a_flushed_script_is_loaded_again(server):
    async def story(store: SessionStore) -> None:
        await store.append("u", [event("a")])
        with redis.Redis.from_url(server.url) as client:
            client.script_flush()
        both = await asyncio.gather(store.append("u", [event("b", 1)]), store.append("u", [event("c", 2)]))
        assert [result.outcomes for result in both] == [("accepted",)] * 2
        assert len(await store.history("u")) == 3

    run(server.url, story)


def test_gone_it_fails_at_once_and_works_again_without_a_restart(tmp_path):
    async def story(store: SessionStore) -> None:
        with pytest.raises(StoreUnavailable, match="does not answer; is it running there"):
            await store.ping()
        server.start()
        await store.ping()
        await store.append("u", [event("a")])
        server.stop()
        began = monotonic()
        for call in (store.append("u", [event("b", 1)]), store.history("u"), store.erase("u"), store.ping()):
            with pytest.raises(StoreUnavailable, match=rf"Redis at 127\.0\.0\.1:{server.port}"):
                await call
        assert monotonic() - began < 1.0, "no waiting for the time-out of 5 s"
        server.start()
        assert len((await store.append("u", [event("c", 2)])).history) == 2, "at the first call"

    server = RedisServer(tmp_path, durable=True)
    try:
        run(server.url, story, timeout_s=5)
    finally:
        server.stop()


def test_gone_every_acknowledged_event_survives_a_killed_redis(tmp_path):
    acknowledged: set[str] = set()

    async def story(store: SessionStore) -> None:
        enough = asyncio.Event()

        async def stream(user: int) -> None:
            for i in range(100_000):
                await store.append(f"u{user}", [event(f"{user}-{i}", i)])
                acknowledged.add(f"{user}-{i}")
                if len(acknowledged) > 300:
                    enough.set()

        streams = [asyncio.create_task(stream(user)) for user in range(3)]
        await enough.wait()
        server.stop()  # SIGKILL, in the middle
        for ended in await asyncio.gather(*streams, return_exceptions=True):
            assert isinstance(ended, StoreUnavailable)
        server.start()
        kept = {stored.item_id for user in range(3) for stored in await store.history(f"u{user}")}
        assert acknowledged <= kept
        assert len(kept - acknowledged) <= 3, "at most the appends whose answer was on its way"

    with RedisServer(tmp_path, durable=True) as server:
        run(server.url, story, cap=10_000)


def test_late_a_redis_that_hangs_costs_the_timeout_and_its_late_answers_reach_nobody(tmp_path):
    async def story(store: SessionStore) -> None:
        for user in range(20):
            await store.append(f"u{user}", [event(f"item-{user}")])
        server.freeze()
        began = monotonic()
        hung = await asyncio.gather(*(store.history(f"u{user}") for user in range(10)), return_exceptions=True)
        assert all(isinstance(answer, StoreUnavailable) for answer in hung)
        assert monotonic() - began < 2.0
        server.thaw()
        for user in range(20):
            assert [stored.item_id for stored in await store.history(f"u{user}")] == [f"item-{user}"]

    with RedisServer(tmp_path) as server:
        run(server.url, story, timeout_s=0.2)


def test_late_replies_of_trips_out_of_time_reach_nobody_under_load(server):
    """Redis pauses again and again for longer than the time-out, while callers come and leave."""

    async def story(store: SessionStore) -> None:
        is_over = False

        async def pause() -> None:
            client = redis.asyncio.Redis.from_url(server.url)
            while not is_over:
                await client.client_pause(60)  # milliseconds
                await asyncio.sleep(0.12)
            await client.aclose()

        pausing = asyncio.create_task(pause())
        ended = await loaded(store, calls=8000)
        is_over = True
        await pausing
        assert min(ended["answered"], ended["cancelled"], ended["unavailable"]) >= 100, ended

    run(server.url, story, timeout_s=0.04)


def test_gone_a_replica_that_is_not_yet_promoted_refuses_and_then_serves_what_was_acknowledged(tmp_path):
    async def story(store: SessionStore) -> None:
        async def elsewhere(store: SessionStore) -> None:
            with pytest.raises(StoreUnavailable, match="read-only replica"):
                await store.append("u", [event("b", 1)])
            with redis.Redis.from_url(replica.url) as client:
                client.replicaof("NO", "ONE")
            assert (await store.append("u", [event("a", 0, "e"), event("b", 1)])).outcomes == ("duplicate", "accepted")

        await store.append("u", [event("a", 0, "e")])
        with redis.Redis.from_url(primary.url) as client:
            assert client.wait(1, 5000) == 1
        primary.stop()
        other = open_store(replica.url)
        await elsewhere(other)
        await other.close()

    with RedisServer(tmp_path / "primary", options=("--repl-diskless-sync-delay", "0")) as primary:
        of_primary = ("--replicaof", f"127.0.0.1 {primary.port}")
        with RedisServer(tmp_path / "replica", options=of_primary) as replica:
            run(primary.url, story)


def test_full_a_full_redis_refuses_with_the_remedy_and_still_answers_reads(tmp_path):
    async def story(store: SessionStore) -> None:
        await store.append("u", [event("a")])

        async def fill() -> None:
            for i in range(10_000):
                await store.append(f"u{i}", [event("x" * 10_000)])

        with pytest.raises(StoreUnavailable, match="it is full; raise its maxmemory"):
            await fill()
        assert len(await store.history("u")) == 1
        assert await store.erase("u") is True

    with RedisServer(tmp_path, options=("--maxmemory", "3mb", "--maxmemory-policy", "noeviction")) as server:
        run(server.url, story)


def test_a_wrong_password_is_named_and_not_shown(tmp_path):
    async def story(store: SessionStore) -> None:
        with pytest.raises(StoreUnavailable, match="wants another password") as refusal:
            await store.ping()
        assert "hunter2" not in str(refusal.value)

    async def allowed(store: SessionStore) -> None:
        await store.ping()

    with RedisServer(tmp_path, options=("--requirepass", "open-sesame")) as server:
        run(server.url, story)
        run(server.url.replace("//", "//:hunter2@"), story)
        run(server.url.replace("//", "//:open-sesame@"), allowed)


def test_a_key_of_something_else_and_a_newer_layout_are_refused(server):
    async def story(store: SessionStore) -> None:
        with redis.Redis.from_url(server.url) as client:
            client.set(keys("taken")[0], "x")
            client.rpush(keys("newer")[0], b"2\nwhatever\n")
        for user, reason in (("taken", "belongs to something else"), ("newer", "a newer version of the service")):
            with pytest.raises(StoreUnavailable, match=reason):
                await store.history(user)
            with pytest.raises(StoreUnavailable, match=reason):
                await store.append(user, [event("b", 1, "e")])
        results = await asyncio.gather(
            store.append("taken", [event("a")]), store.append("good", [event("a")]), return_exceptions=True
        )
        assert isinstance(results[0], StoreUnavailable)
        assert not isinstance(results[1], BaseException), "whoever shares the pipeline does not share the failure"

    run(server.url, story)


def test_rediss_speaks_tls(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make_certificate(key, certificate)

    async def story(store: SessionStore) -> None:
        assert len((await store.append("u", [event("a", 0, "e")])).history) == 1
        assert (await store.append("u", [event("a", 0, "e")])).outcomes == ("duplicate",)
        await store.keep_list(FrozenList("r", "u", b"page" * 50_000), at=0, ttl_s=60)
        assert await store.advance_list("r", 5) == (b"page" * 50_000, 0)
        assert await store.merge("u", "v") == 1
        assert (await loaded(store, calls=500))["answered"] >= 100
        assert await store.erase("v") is True
        assert await store.advance_list("r", 0) is None
        await store.ping()

    async def untrusted(store: SessionStore) -> None:
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate"):
            await store.ping()

    tls_port = free_port()
    server = RedisServer(
        tmp_path / "redis",
        options=(
            *("--tls-port", str(tls_port), "--tls-auth-clients", "no"),
            *("--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-ca-cert-file", str(certificate)),
        ),
    )
    with server:
        run(f"rediss://localhost:{tls_port}/0?ssl_ca_certs={certificate}", story)
        run(f"rediss://localhost:{tls_port}/0", untrusted)
        run(f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate}", untrusted)
        run(f"rediss://127.0.0.1:{tls_port}/0?ssl_ca_certs={certificate}&ssl_check_hostname=false", story)


def make_certificate(key: Path, certificate: Path) -> None:
    """A self-signed certificate for localhost."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    try:
        subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed; on Debian and Ubuntu: apt-get install openssl")
