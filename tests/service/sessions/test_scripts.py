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
