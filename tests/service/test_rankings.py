"""`POST /v1/rankings`: the caller's candidates in the order of the model."""

import threading

import pytest

pytestmark = pytest.mark.anyio
URL = "/v1/rankings"


def order(answer) -> list[str]:
    return [item["item_id"] for item in answer.json()["items"]]


async def test_candidates_come_back_by_the_very_numbers_that_recommendations_are_scored_with(client):
    body = {"history": ["i05", "i07"]}
    recommended = await client.post("/v1/recommendations", json={**body, "k": 20, "exclude_seen": False})
    scores = {item["item_id"]: item["score"] for item in recommended.json()["items"]}
    answer = await client.post(URL, json={**body, "candidates": sorted(scores)})
    assert answer.status_code == 200
    assert answer.json()["source"] == "retrieval"
    assert not answer.json()["degraded"]
    assert order(answer) == list(scores)
    assert {item["item_id"]: item["score"] for item in answer.json()["items"]} == scores
    assert [item["rank"] for item in answer.json()["items"]] == list(range(1, 20))
    assert "rank" in answer.json()["timings_ms"]
    assert answer.headers["server-timing"].startswith("state;dur=")


async def test_unknown_candidates_come_last_in_the_order_given_and_are_flagged(client):
    answer = await client.post(URL, json={"history": ["i05"], "candidates": ["zz", "i15", "aa", "i06"]})
    assert order(answer) == ["i06", "i15", "zz", "aa"]
    assert [item["known"] for item in answer.json()["items"]] == [True, True, False, False]
    assert [item["score"] for item in answer.json()["items"]][2:] == [None, None]


async def test_every_candidate_comes_back_seen_or_not_available_or_not(client):
    answer = await client.post(URL, json={"history": ["i05"], "candidates": ["i05", "i20"]})
    assert {(item["item_id"], item["known"]) for item in answer.json()["items"]} == {("i05", True), ("i20", True)}


async def test_a_stored_history_is_read_and_without_consent_it_is_not(client):
    await client.post("/v1/events", json={"events": [{"user_id": "anna", "item_id": "i15"}]})
    body = {"user_id": "anna", "candidates": ["i05", "i16"]}
    assert order(await client.post(URL, json=body)) == ["i16", "i05"]
    alone = await client.post(URL, json={**body, "consent": False})
    assert order(alone) == ["i05", "i16"]
    assert alone.json()["degraded_reasons"] == ["no_history"]


async def test_empty_history_is_ranked_by_popularity_and_said(client):
    for body in ({}, {"history": ["unheard of"]}, {"user_id": "nobody"}):
        answer = await client.post(URL, json={**body, "candidates": ["i09", "zz", "i01", "i20"]})
        assert order(answer) == ["i01", "i09", "i20", "zz"]
        assert (answer.json()["degraded_reasons"], answer.json()["source"]) == (["no_history"], "popular")
        assert [item["known"] for item in answer.json()["items"]] == [True, True, True, False]


async def test_gone_store_is_ranked_by_popularity_and_said(open_client, away_store):
    async with open_client(app={"store": away_store}) as client:
        answer = await client.post(URL, json={"user_id": "anna", "candidates": ["i09", "i01"]})
    assert answer.json()["degraded_reasons"] == ["store_unavailable", "no_history"]
    assert order(answer) == ["i01", "i09"]


async def test_late_model_is_ranked_by_popularity_and_said(client):
    gate = threading.Event()
    pool = client.app.state.shell.pools["encoder"]
    held = pool._worker.submit(gate.wait, 10)
    answer = await client.post(URL, json={"history": ["i05"], "candidates": ["i09", "i01"], "deadline_ms": 50})
    gate.set()
    held.result()
    assert answer.json()["degraded_reasons"] == ["deadline"]
    assert order(answer) == ["i01", "i09"]


@pytest.mark.parametrize(
    ("candidates", "reason"),
    [
        ([], "at least 1 item"),
        (["i01"] * 501, "500"),
        (["i01", "i02", "i01"], "'i01' stands twice, at 0 and at 2; send each candidate once"),
        ([""], "candidates[0]"),
        (["x" * 257], "256"),
        ("i01", "array"),
    ],
)
async def test_candidates_that_cannot_be_meant_are_named(client, candidates, reason):
    answer = await client.post(URL, json={"candidates": candidates})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert reason in answer.json()["detail"]


async def test_500_candidates_are_ranked(client):
    candidates = [f"i{n:02d}" for n in range(1, 501)]
    answer = await client.post(URL, json={"history": ["i05"], "candidates": candidates})
    assert len(order(answer)) == 500
    assert sum(item["known"] for item in answer.json()["items"]) == 20
