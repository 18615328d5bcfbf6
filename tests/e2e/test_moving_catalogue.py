"""A catalogue that moves under two processes on one store: what one is told the other shows, also after a restart."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from redis_server import RedisServer

WITHIN_S = 10.0  # about one second, on a machine that has time
LANE = {"history": ["i05"], "k": 50, "exclude_seen": False}


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'sessions.db'}"
        return
    with RedisServer(tmp_path / "redis") as server:
        yield server.url


def shown(url: str) -> dict[str, str]:
    """What one process recommends, with the source of each."""
    answer = httpx.post(f"{url}/v1/recommendations", json=LANE)
    assert answer.status_code == 200, answer.text
    return {item["item_id"]: item["source"] for item in answer.json()["items"]}


def until(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + WITHIN_S
    while not holds():
        assert time.monotonic() < give_up, f"not within {WITHIN_S} s"
        time.sleep(0.05)  # another process: there is nothing to wait on but its answer


def test_new_is_there_and_removed_is_gone_at_once_here_soon_there_and_still_after_a_restart(start_service, store):
    here, there = (start_service(STORE=store) for _ in range(2))
    new = {"attributes": {"title": "Item 5", "categories": ["blue"]}}
    assert httpx.put(f"{here.url}/v1/items/new", json=new).status_code == 201
    assert shown(here.url)["new"] == "described"
    until(lambda: shown(there.url).get("new") == "described")
    assert httpx.delete(f"{there.url}/v1/items/i06").status_code == 204
    assert "i06" not in shown(there.url)
    until(lambda: "i06" not in shown(here.url))
    scores = [httpx.get(f"{one.url}/v1/items/new/similar", params={"k": 5}).json()["items"] for one in (here, there)]
    assert scores[0] == scores[1]  # both made the same vector of it
    here.stop()
    here.start()
    assert shown(here.url) == shown(there.url)
    assert "i06" not in shown(here.url)
