"""The loop closes: what the service saw and showed is what the next model learns from, and the service serves that."""

import json
import signal
import time

import httpx
import polars as pl
import pytest
import redis
from redis_server import RedisServer

from models.__main__ import main as models
from models.events import read_log
from service.journal.__main__ import main as journal

FORGOTTEN = "forgotten-reader"
TINY = ["d=8", "heads=2", "blocks=1", "window=6", "expansion=1", "batch=16", "epochs=2", "threads=1"]


def told(service, users) -> list[str]:
    """Readers walk around the circle of items, from list to list; the ids of the lists."""
    lists = []
    with httpx.Client(base_url=service.url) as http:
        for n, user in enumerate(users):
            for step in range(5):
                asked = {"user_id": user, "k": 5, "placement": "home"}
                shown = http.post("/v1/recommendations", json=asked).json()
                lists.append(shown["recommendation_id"])
                event = {
                    "user_id": user,
                    "item_id": f"i{(n + step) % 19 + 1:02d}" if step == 0 else shown["items"][0]["item_id"],
                    "event_type": "click",
                    "event_id": f"{user}-{step}",
                    "recommendation_id": shown["recommendation_id"],
                }
                for _ in range(2):  # a client that is not sure says it again
                    assert http.post("/v1/events", json={"events": [event]}).status_code == 202
        http.post("/v1/recommendations", json={"user_id": "no-consent", "consent": False}).raise_for_status()
    return lists


@pytest.mark.train
def test_from_what_was_served_to_the_next_model_and_back(start_service, tmp_path, capsys):
    log, out = tmp_path / "events", tmp_path / "next"
    service = start_service(LOG=f"file://{log}")
    users = [f"reader-{n}" for n in range(12)]
    lists = told(service, [*users, FORGOTTEN])
    assert httpx.delete(f"{service.url}/v1/users/{FORGOTTEN}").status_code == 204
    assert "sequitur_journal_buffer" in httpx.get(f"{service.url}/metrics").text
    assert service.stop() in (0, -signal.SIGTERM)

    read = read_log("log", log).events
    clicks, shown = (read.filter(pl.col("event_type").cast(pl.String) == kind) for kind in ("click", "impression"))
    assert sorted(set(read["user_id"])) == sorted(users)
    assert clicks.height == 5 * len(users)
    assert shown.height == 25 * len(users)
    assert set(shown["recommendation_id"]) == set(clicks["recommendation_id"]) == set(lists[:-5])
    assert read_log("log", log).report.dropped["of users who were erased since"] == 10
    assert "no-consent" not in "".join(file.read_text() for file in log.glob("*.jsonl"))

    digest = read_log("log", log).digest
    assert models(["compact", str(log)]) == 0
    parts = sorted(log.glob("*.parquet"))
    assert parts
    for part in parts:
        assert FORGOTTEN.encode() not in part.read_bytes()
        assert FORGOTTEN not in json.dumps(pl.read_parquet(part).to_dicts())
    assert read_log("log", log).digest == digest

    options = [part for option in TINY for part in ("--set", option)]
    learning = ["train", "--model", "sasrec", "--data", "log", "--events", str(log), "--out", str(out), *options]
    assert models(learning) == 0
    assert models(["evaluate", "--bundle", str(out), "--data", "log", "--events", str(log)]) == 0
    assert "ndcg@10" in capsys.readouterr().out

    again = start_service("--bundle", str(out))
    answer = httpx.post(f"{again.url}/v1/recommendations", json={"history": ["i03"], "k": 3}).json()
    assert [item["source"] for item in answer["items"]] == ["retrieval"] * 3
    assert answer["model"]["name"] == "sasrec"
    assert not answer["degraded"]


@pytest.mark.redis
def test_a_stream_in_redis_is_drained_into_the_same_log(start_service, tmp_path):
    log = tmp_path / "events"
    with RedisServer(tmp_path / "redis") as server, redis.Redis.from_url(server.url) as client:
        stream = server.url.replace("redis://", "redis-stream://") + "/shop"
        service = start_service(LOG=stream)
        told(service, ["anna", FORGOTTEN])
        assert httpx.delete(f"{service.url}/v1/users/{FORGOTTEN}").status_code == 204
        give_up = time.monotonic() + 10
        while client.xlen("shop") < 21:
            assert time.monotonic() < give_up
            time.sleep(0.02)  # another process: there is nothing to wait on but its writing
        service.stop(signal.SIGKILL)
        assert journal(["drain", stream, str(log)]) == 0
        assert client.xlen("shop") == 0
        assert journal(["drain", stream, str(log)]) == 0
    read = read_log("log", log).events
    assert set(read["user_id"]) == {"anna"}
    assert read.height == 5 + 25
