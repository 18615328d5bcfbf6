"""The stream against a real Redis, which goes away and comes back."""

import pytest
import redis
from redis_server import RedisServer

from service import metrics
from service.errors import ConfigurationError
from service.journal.stream import FIELD, MAXLEN, Address, Stream, address
from service.journal.writer import SinkFailure


def test_the_parts_of_a_url():
    assert address("redis-stream://me:pass@host:7000/2/shop%2Flog?maxlen=5") == Address(
        "redis://me:pass@host:7000/2", "shop/log", 5, "stream shop/log of Redis at host:7000"
    )
    assert address("rediss-stream://host/0/log")[:3] == ("rediss://host/0", "log", MAXLEN)


@pytest.mark.parametrize("end", ["/0", "", "/x/log", "/0/log?maxlen=0", "/0/log?maxlen=x", "/0/log?size=5"])
def test_a_url_without_its_parts_is_refused_without_its_password(end):
    with pytest.raises(ConfigurationError, match="redis-stream://host:port/db/name") as refused:
        address(f"redis-stream://me:secret@host:6379{end}")
    assert "secret" not in str(refused.value)


@pytest.mark.redis
def test_lines_arrive_in_order_and_the_stream_stays_short(tmp_path):
    def trimmed() -> float:
        return metrics.REGISTRY.get_sample_value("sequitur_journal_dropped_total", {"reason": "trimmed"}) or 0.0

    before = trimmed()
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        sink = Stream(server.url.replace("redis://", "redis-stream://") + "/log?maxlen=200")
        for start in range(0, 1_000, 20):
            sink.write([b"%d\n" % n for n in range(start, start + 20)])
        kept = [int(fields[FIELD]) for _, fields in client.xrange("log")]
        sink.close()
    assert kept == list(range(kept[0], 1_000))
    assert 200 <= len(kept) < 400
    assert trimmed() - before == pytest.approx(1_000 - len(kept), abs=200)


@pytest.mark.redis
def test_gone_redis_fails_and_works_again_when_it_is_back(tmp_path):
    server = RedisServer(tmp_path)
    server.start()
    try:
        sink = Stream(server.url.replace("redis://", "redis-stream://") + "/log")
        lines = [b"1\n"]
        sink.write(lines)
        assert lines == []
        server.stop()
        lines = [b"2\n"]
        with pytest.raises(SinkFailure, match="is Redis running there"):
            sink.write(lines)
        assert lines == [b"2\n"]
        server.start()
        sink.write(lines)
        sink.close()
    finally:
        server.stop()


@pytest.mark.redis
def test_a_refusal_leaves_the_lines_that_were_refused(tmp_path):
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("log", "something else")
        lines = [b"1\n"]
        with pytest.raises(SinkFailure, match="WRONGTYPE"):
            Stream(server.url.replace("redis://", "redis-stream://") + "/log").write(lines)
        assert lines == [b"1\n"]
