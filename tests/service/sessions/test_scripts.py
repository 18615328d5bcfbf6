"""The scripts as Redis knows them; what they do is asked of the store."""

from hashlib import sha1

import pytest
import redis
from redis_server import RedisServer

from service.sessions import scripts

EACH = [script for script in vars(scripts).values() if isinstance(script, scripts.Script)]


def test_every_script_is_found_by_its_digest():
    assert sorted(scripts.BY_DIGEST.values()) == sorted(EACH)
    for script in EACH:
        assert script.digest == sha1(script.source.encode()).hexdigest()


@pytest.mark.redis
def test_redis_can_read_every_script_and_gives_it_the_same_digest(tmp_path):
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        assert [client.script_load(script.source) for script in EACH] == [script.digest for script in EACH]


@pytest.mark.redis
@pytest.mark.parametrize("event_id", [b"", b'"e1"'])
@pytest.mark.parametrize("timestamp", [b"2.0", b"0.0"], ids=["newest", "late"])
def test_full_an_append_is_refused_before_it_has_written_anything(tmp_path, event_id, timestamp):
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:

        def append(*entry: bytes) -> None:
            limits = (10, 1000_000, 1000_000, "")
            client.eval(
                scripts.APPEND.source, 2, "{u}:events", "{u}:trimmed", *limits, b"\n".join((b"1", *entry, b"{}"))
            )

        append(b"1.0", b"")
        before = client.lrange("{u}:events", 0, -1)
        client.config_set("maxmemory", 1)  # byte
        with pytest.raises(redis.OutOfMemoryError):
            append(timestamp, event_id)
        assert client.lrange("{u}:events", 0, -1) == before
