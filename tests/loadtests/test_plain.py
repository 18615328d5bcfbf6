"""The plain endpoint gives what the toy's arithmetic gives, so it is a fair rival."""

import asyncio
import json

import httpx
import numpy as np
import pytest
import toy

from loadtests import plain


@pytest.fixture
def endpoint(toy_bundle, tmp_path):
    items = tmp_path / "items.json"
    items.write_text(json.dumps({"ids": ["", *toy.ITEM_IDS], "available": [False] + [True] * 19 + [False]}))
    graph, vectors = toy_bundle / "encoder.onnx", toy_bundle / "item_vectors.npy"
    return plain.create_app(graph, vectors, items, window=toy.WINDOW, threads=1)


def ask(app, body):
    async def once():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://plain") as client:
            return (await client.post("/recommendations", json=body)).json()

    return asyncio.run(once())


def test_the_nearest_items_come_first_without_the_seen_and_the_unavailable(endpoint):
    found = ask(endpoint, {"history": ["i01", "unknown", "i02"], "k": 17})["items"]
    query = toy.vectors()[2] + 0.5 * toy.vectors()[1]
    scores = toy.vectors() @ query
    expected = sorted(set(range(1, 20)) - {1, 2}, key=lambda row: -float(scores[row]))
    assert [item["item_id"] for item in found] == [toy.ITEM_IDS[row - 1] for row in expected]
    assert np.all(np.diff([item["score"] for item in found]) <= 0)


def test_a_long_history_is_cut_to_the_window(endpoint):
    seen = toy.ITEM_IDS[:15]
    found = ask(endpoint, {"history": seen, "k": 4})["items"]
    assert {item["item_id"] for item in found} == {"i16", "i17", "i18", "i19"}
