"""Forget a user, everywhere: after a life with pages, event ids and a merge nothing that is kept names them.

The whole application works on a real Redis, whose every key and value is read, and on an SQLite file, whose every byte
is; and then its own memory is searched.
"""

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import httpx
import pytest
import redis
from redis_server import RedisServer

from retrieval.bundle import Bundle
from retrieval.recommenders import Served, load
from service.app import create_app
from service.settings import Settings

VICTIM, VISITOR, WITNESS = "victim-ünique-17", "visitor-of-victim-23", "witness-31"
EVENT_ID = "event-of-victim-99"
CODE = (type, FunctionType, ModuleType)  # what leads to everything that was ever imported
READERS = {
    b"string": lambda client, key: [client.get(key)],
    b"list": lambda client, key: client.lrange(key, 0, -1),
    b"set": lambda client, key: client.smembers(key),
    b"zset": lambda client, key: client.zrange(key, 0, -1),
    b"hash": lambda client, key: [part for pair in client.hgetall(key).items() for part in pair],
    b"stream": lambda client, key: [
        part for _, fields in client.xrange(key) for pair in fields.items() for part in pair
    ],
}


class Place:
    """Where a store keeps its bytes, and all of them."""

    def __init__(self, url: str) -> None:
        self.url = url

    def contents(self) -> bytes:
        raise NotImplementedError


class RedisPlace(Place):
    def contents(self) -> bytes:
        with redis.Redis.from_url(self.url, protocol=2) as client:
            keys = list(client.scan_iter())
            parts = [part for key in keys for part in (key, *READERS[client.type(key)](client, key))]
        return b"\n".join(part if isinstance(part, bytes) else repr(part).encode() for part in parts)


class FilePlace(Place):
    def contents(self) -> bytes:
        path = Path(self.url.removeprefix("sqlite:///"))
        return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        yield FilePlace(f"sqlite:///{tmp_path / 'sessions.db'}")
        return
    with RedisServer(tmp_path / "redis") as server:
        yield RedisPlace(server.url)


@pytest.fixture(scope="module")
def served(toy_bundle: Path) -> Served:
    return load(Bundle.open(toy_bundle))


async def live(http: httpx.AsyncClient, user_id: str) -> None:
    """Everything that a user can leave behind."""
    for number, item_id in enumerate(("i05", "i06", "i07")):
        event = {"user_id": user_id, "item_id": item_id, "event_id": f"{EVENT_ID}-{user_id}-{number}"}
        answer = await http.post("/v1/events", json={"events": [{**event, "context": {"said by": user_id}}]})
        assert answer.status_code == 202
    for body in ({}, {"history": ["i09"]}, {"placement": {"diversity": 0.3}}, {"explain": True}):
        answer = await http.post("/v1/recommendations", json={"user_id": user_id, "k": 3, **body})
        assert (await http.get(answer.json()["next"])).status_code == 200
        page = await http.get(f"/v1/recommendations/{answer.json()['recommendation_id']}/next")
        assert page.status_code == 200, page.text
    await http.post("/v1/rankings", json={"user_id": user_id, "candidates": ["i01", "i02"]})
    await http.get(f"/v1/users/{user_id}/recommendations")
    await http.get(f"/v1/users/{user_id}/history")


def held_by(root: Any, *names: str) -> list[Any]:
    """What an object holds, however deep, that is a text with one of the names."""
    found, seen, edge = [], {id(root): root}, [root]  # kept alive: an id is only that of what lives
    while edge:
        keys = [key for one in edge if isinstance(one, dict) for key in one]  # the collector passes texts over
        within = {id(one): one for one in (*keys, *gc.get_referents(*edge)) if not isinstance(one, CODE)}
        edge = [one for key, one in within.items() if key not in seen]
        found += [one for one in edge if isinstance(one, str | bytes) and names_in(one, names)]
        seen |= within
    return found


def names_in(text: str | bytes, names: tuple[str, ...]) -> bool:
    return any(name in text if isinstance(text, str) else name.encode() in text for name in names)


def test_erase_leaves_nothing_that_names_the_user_and_all_of_everybody_else(place: Place, served: Served) -> None:
    async def told() -> None:
        settings = Settings(store=place.url, deadline_ms=5_000, log_level="error")
        app = create_app(settings, served=served)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://service") as http,
        ):
            for user_id in (VICTIM, VISITOR, WITNESS):
                await live(http, user_id)
            assert (await http.post("/v1/users/merge", json={"from": VISITOR, "into": VICTIM})).status_code == 200
            await live(http, VICTIM)
            assert VICTIM.encode() in place.contents()
            for _ in range(2):
                assert (await http.delete(f"/v1/users/{VICTIM}")).status_code == 204
            kept = place.contents()
            for name in (VICTIM, VISITOR):
                assert name.encode() not in kept
                assert name.encode("unicode_escape") not in kept
            assert WITNESS.encode() in kept
            history = (await http.get(f"/v1/users/{WITNESS}/history")).json()["events"]
            assert [event["item_id"] for event in history] == ["i05", "i06", "i07"]
            assert (await http.get(f"/v1/users/{VICTIM}/history")).json()["events"] == []

            state = app.state.shell
            state.users.planted = {VICTIM: 1}
            assert held_by(state, VICTIM), "a search that finds nothing proves nothing"
            del state.users.planted
            assert held_by(state, VICTIM, VISITOR) == []

    asyncio.run(told())
