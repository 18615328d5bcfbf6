"""The plain endpoint gives what the toy's arithmetic gives, so it is a fair rival."""

import asyncio
import json

import httpx
import numpy as np
import pytest
import toy
from redis_server import RedisServer

from loadtests import plain


@pytest.fixture
def model(toy_bundle, tmp_path):
    items = tmp_path / "items.json"
    known = {"ids": ["", *toy.ITEM_IDS], "available": [False] + [True] * 19 + [False]}
    items.write_text(json.dumps({**known, "popularity": [0, *range(20, 0, -1)]}))
    return plain.Model(
        toy_bundle / "encoder.onnx", toy_bundle / "item_vectors.npy", items, window=toy.WINDOW, threads=1
    )


def post(app, *requests):
    """The answers to `(path, body)` one after the other."""

    async def all_of_them():
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://plain") as client,
        ):
            return [await client.post(path, json=body) for path, body in requests]

    return asyncio.run(all_of_them())


def ask(model, body, **options):
    (answer,) = post(plain.create_app(model, **options), ("/recommendations", body))
    return answer.json()


def test_the_nearest_items_come_first_without_the_seen_and_the_unavailable(model):
    found = ask(model, {"history": ["i01", "unknown", "i02"], "k": 17})["items"]
    query = toy.vectors()[2] + 0.5 * toy.vectors()[1]
    scores = toy.vectors() @ query
    expected = sorted(set(range(1, 20)) - {1, 2}, key=lambda row: -float(scores[row]))
    assert [item["item_id"] for item in found] == [toy.ITEM_IDS[row - 1] for row in expected]
    assert np.all(np.diff([item["score"] for item in found]) <= 0)


def test_a_long_history_is_cut_to_the_window(model):
    seen = toy.ITEM_IDS[:15]
    found = ask(model, {"history": seen, "k": 4})["items"]
    assert {item["item_id"] for item in found} == {"i16", "i17", "i18", "i19"}


def test_the_popular_come_where_nothing_is_known_and_no_more_than_there_are(model):
    assert [item["item_id"] for item in ask(model, {"k": 2})["items"]] == ["i01", "i02"]
    assert len(ask(model, {"history": ["i01"], "k": 50})["items"]) == 18


def test_the_thread_pool_gives_the_same(model):
    body = {"history": ["i01", "i02"], "k": 5}
    assert ask(model, body, pooled=True) == ask(model, body)


def test_without_a_store_no_event_is_taken(model):
    (answer,) = post(plain.create_app(model), ("/events", {"events": [{"user_id": "u", "item_id": "i01"}]}))
    assert answer.status_code == 503


@pytest.mark.redis
def test_stored_events_count_like_those_of_the_body(model, tmp_path):
    with RedisServer(tmp_path / "redis") as server:
        events = [{"user_id": "u", "item_id": item_id} for item_id in ("i01", "i02")]
        app = plain.create_app(model, redis_url=server.url)
        told, answer = post(app, ("/events", {"events": events}), ("/recommendations", {"user_id": "u", "k": 4}))
    assert told.status_code == 202
    assert answer.json() == ask(model, {"history": ["i01", "i02"], "k": 4})
