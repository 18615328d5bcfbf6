"""From a real stream into files, interrupted wherever it may be."""

import pytest
import redis
from redis_server import RedisServer

from service.journal import drain as draining
from service.journal.__main__ import main
from service.journal.drain import drain, reached
from service.journal.stream import Stream, address
from service.journal.writer import SinkFailure

pytestmark = pytest.mark.redis


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture
def url(server):
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return server.url.replace("redis://", "redis-stream://") + "/shop"


def write(url, *numbers):
    sink = Stream(url)
    sink.write([b"%d\n" % n for n in numbers])
    sink.close()


def drained(folder):
    files = sorted(folder.glob("stream-shop-*.jsonl"))
    return [int(line) for file in files for line in file.read_text().splitlines()]


def test_all_entries_move_and_nothing_moves_twice(url, tmp_path):
    write(url, *range(10))
    said = []
    assert drain(address(url), tmp_path, together=4, on_progress=said.append) == 10
    assert said == [4, 8, 10]
    assert drained(tmp_path) == list(range(10))
    assert drain(address(url), tmp_path) == 0
    write(url, 10, 11)
    assert drain(address(url), tmp_path) == 2
    assert drained(tmp_path) == list(range(12))


def test_killed_between_segment_and_cut_goes_on_behind_the_segment(url, tmp_path, monkeypatch):
    write(url, *range(6))
    with monkeypatch.context() as killed:
        killed.setattr(draining, "_cut", interrupt)
        with pytest.raises(KeyboardInterrupt):
            drain(address(url), tmp_path, together=4)
    assert drained(tmp_path) == [0, 1, 2, 3]
    (segment,) = tmp_path.glob("*.jsonl")
    segment.rename(segment.with_suffix(".parquet"))  # compacted meanwhile
    assert reached(tmp_path, "shop") is not None
    assert drain(address(url), tmp_path) == 2
    assert drained(tmp_path) == [4, 5]


def interrupt(*_):
    raise KeyboardInterrupt


def test_streams_of_other_names_do_not_count(tmp_path):
    (tmp_path / "stream-shop2-1-0-9-0.jsonl").touch()
    (tmp_path / "20231114T221320-00000000.jsonl").touch()
    assert reached(tmp_path, "shop") is None


def test_gone_redis_is_an_error_that_says_so(tmp_path):
    with pytest.raises(SinkFailure, match="drain again when Redis is there"):
        drain(address("redis-stream://127.0.0.1:1/0/shop"), tmp_path)


def test_the_command(url, tmp_path, capsys):
    write(url, 1, 2)
    assert main(["drain", url, str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"2 records in {tmp_path}\n"
    assert main(["drain", "redis-stream://x", str(tmp_path)]) == 2
    assert "redis-stream://host:port/db/name" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["drain", url, str(tmp_path / "file")]) == 2
