"""The story of one recommendation, and each thing that can be missing from it."""

import asyncio
import json
import threading

import numpy as np
import pytest

from retrieval.recommenders import Answer
from service import metrics
from service.sessions import NO_EVENTS, Columns, open_store

pytestmark = pytest.mark.anyio
URL = "/v1/recommendations"


def counted(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def ids(answer) -> list[str]:
    return [item["item_id"] for item in answer.json()["items"]]


async def remember(client, user_id: str, *item_ids: str) -> None:
    events = [{"user_id": user_id, "item_id": item_id} for item_id in item_ids]
    assert (await client.post("/v1/events", json={"events": events})).status_code == 202


async def test_a_history_is_answered_by_the_model(client):
    answer = await client.post(URL, json={"history": ["i02", {"item_id": "i03", "event_type": "click"}], "k": 3})
    body = answer.json()
    assert answer.status_code == 200
    assert not body["degraded"]
    assert ids(answer) == ["i04", "i01", "i05"]
    assert [item["rank"] for item in body["items"]] == [1, 2, 3]
    assert {item["source"] for item in body["items"]} == {"retrieval"}
    assert body["items"][0]["attributes"] == {"title": "Item 4", "categories": ["blue", "all"], "price": 4.0}
    assert body["next"] == f"{URL}/{body['recommendation_id']}/next?k=3&after=3"
    assert body["model"]["name"] == "toy"
    assert body["model"]["variant"] == "default"
    assert len(body["recommendation_id"]) >= 16
    assert set(body["timings_ms"]) == {"filter", "state", "queue", "encode", "retrieve", "respond"}
    assert answer.headers["server-timing"].startswith("filter;dur=")


async def test_a_stored_history_is_answered_by_the_model_and_what_was_seen_is_left_out(client):
    await remember(client, "anna", "i04", "i03")
    answer = await client.post(URL, json={"user_id": "anna", "k": 18})
    assert not {"i03", "i04"} & set(ids(answer))
    assert len(ids(answer)) == 17  # twenty, less one unavailable and two seen: all there are
    again = await client.post(URL, json={"user_id": "anna", "k": 18, "exclude_seen": False})
    assert {"i03", "i04"} <= set(ids(again))


async def test_a_history_in_the_body_is_what_the_model_reads_and_the_stored_one_still_counts_as_seen(client):
    await remember(client, "bert", "i10", "i04")
    both = await client.post(URL, json={"user_id": "bert", "history": ["i03"], "k": 1})
    assert ids(both) == ["i02"]  # beside i03; i04 lies beside it, too, and was seen


async def test_no_history_is_answered_from_the_popular_items(client):
    before = counted("sequitur_degraded_total", reason="no_history")
    for body in ({}, {"user_id": "nobody"}, {"history": ["unknown"]}):
        answer = await client.post(URL, json={**body, "k": 2})
        assert ids(answer) == ["i01", "i02"]
        assert answer.json()["degraded_reasons"] == ["no_history"]
        assert answer.json()["items"][0]["source"] == "popular"
    assert counted("sequitur_degraded_total", reason="no_history") == before + 3


async def test_without_consent_no_history_is_touched(open_client, empty_store):
    async def touched(_user_id: str):
        raise AssertionError("history was read")

    empty_store.columns = touched
    async with open_client(app={"store": empty_store}) as client:
        answer = await client.post(URL, json={"user_id": "anna", "history": ["i03"], "k": 1, "consent": False})
        assert (answer.status_code, answer.json()["degraded"]) == (200, False)


async def test_gone_store_uses_the_history_of_the_body(open_client, away_store):
    before = counted("sequitur_store_errors_total", operation="history")
    async with open_client(app={"store": away_store}) as client:
        answer = await client.post(URL, json={"user_id": "anna", "history": ["i03"], "k": 1})
        assert answer.json()["degraded_reasons"] == ["store_unavailable"]
        assert answer.json()["items"][0]["source"] == "retrieval"
        answer = await client.post(URL, json={"user_id": "anna", "k": 1})
        assert answer.json()["degraded_reasons"] == ["store_unavailable", "no_history"]
        assert ids(answer) == ["i01"]
    assert counted("sequitur_store_errors_total", operation="history") == before + 2


async def test_late_store_is_done_without(open_client, away_store):
    async def never(_user_id: str):
        await asyncio.Event().wait()

    away_store.columns = never
    async with open_client(app={"store": away_store}, store_timeout_ms=1) as client:
        answer = await client.post(URL, json={"user_id": "anna", "history": ["i03"], "k": 1})
        assert answer.json()["degraded_reasons"] == ["store_unavailable"]


async def test_late_model_is_answered_from_the_popular_items(open_client, with_recommender, recommending):
    gate = threading.Event()
    real = recommending.act
    async with open_client(app={"served": with_recommender}) as client:
        recommending.act = lambda queries, stage: gate.wait(10) and real(queries, stage)
        answer = await client.post(URL, json={"history": ["i03"], "k": 2, "deadline_ms": 300})
        gate.set()
        assert answer.json()["degraded_reasons"] == ["deadline"]
        assert ids(answer) == ["i01", "i02"]


async def test_late_with_nothing_to_show_is_504(open_client, empty_store):
    ticks = [0.0]

    def clock() -> float:
        return ticks[0]

    async def slow(_user_id: str) -> Columns:
        ticks[0] += 1.0
        return NO_EVENTS

    empty_store.columns = slow
    before = counted("sequitur_deadline_exceeded_total", stage="respond")
    async with open_client(app={"store": empty_store, "clock": clock}, deadline_ms=500) as client:
        answer = await client.post(URL, json={"user_id": "anna"})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert counted("sequitur_deadline_exceeded_total", stage="respond") == before + 1


async def test_a_model_that_raises_is_answered_from_the_popular_items_and_said(
    open_client, with_recommender, recommending, caplog
):
    def broken(*_):
        raise RuntimeError("the graph is broken")

    before = counted("sequitur_errors_total", code="internal")
    async with open_client(app={"served": with_recommender}) as client:
        recommending.act = broken
        answer = await client.post(URL, json={"history": ["i03"], "k": 2})
    assert answer.status_code == 200
    assert answer.json()["degraded_reasons"] == ["encoder_failed"]
    assert ids(answer) == ["i01", "i02"]
    assert "the graph is broken" in caplog.text
    assert counted("sequitur_errors_total", code="internal") == before + 1


async def test_a_model_that_finds_nothing_sensible_is_said_to_have_failed(open_client, with_recommender, recommending):
    rows = np.array([1, 2])
    async with open_client(app={"served": with_recommender}) as client:
        recommending.act = lambda *_: [Answer.of(rows, rows.astype(np.float32), "popular")]
        answer = await client.post(URL, json={"history": ["i03"], "k": 2})
    assert answer.json()["degraded_reasons"] == ["encoder_failed"]


async def test_gone_worker_is_answered_from_the_popular_items(client):
    owner = client.app.state.shell.pools["encoder"]._owner
    owner.cancel()
    await asyncio.wait([owner])
    answer = await client.post(URL, json={"history": ["i03"], "k": 2})
    assert answer.json()["degraded_reasons"] == ["encoder_failed"]
    assert ids(answer) == ["i01", "i02"]


async def test_full_house_is_refused_before_any_work(open_client, with_recommender, recommending):
    gate = threading.Event()
    real = recommending.act
    async with open_client(app={"served": with_recommender}, max_in_flight=1) as client:
        entered = threading.Event()
        recommending.act = lambda queries, stage: (entered.set(), gate.wait(10)) and real(queries, stage)
        first = asyncio.create_task(client.post(URL, json={"history": ["i03"]}))
        await asyncio.to_thread(entered.wait, 10)
        refused = await client.post(URL, json={"history": ["i03"]})
        gate.set()
        assert (await first).status_code == 200
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"] == "1"


async def test_a_filter_holds_in_the_model_and_in_what_stands_in_for_it(client):
    rules = {
        "exclude_ids": ["i06", "unheard of"],
        "categories": {"any": ["red"], "none": ["green"]},
        "attributes": [{"name": "price", "op": "<=", "value": 12}],
    }
    for body in ({"history": ["i05"]}, {}):
        answer = await client.post(URL, json={**body, "filter": rules, "k": 10})
        assert sorted(ids(answer)) == ["i03", "i09", "i12"]
    only = await client.post(URL, json={"history": ["i05"], "filter": {"include_ids": ["i20", "i19", "i07"]}})
    assert sorted(ids(only)) == ["i07", "i19"]  # i20 is not available


async def test_empty_when_nothing_is_eligible_and_counted_as_short(client):
    before = counted("sequitur_short_lists_total")
    answer = await client.post(URL, json={"history": ["i05"], "filter": {"categories": {"any": ["green"]}}})
    assert (answer.status_code, ids(answer)) == (200, [])
    assert counted("sequitur_short_lists_total") == before + 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"filter": {"attributes": [{"name": "colour", "op": "==", "value": "x"}]}}, "no attribute 'colour'"),
        ({"filter": {"attributes": [{"name": "price", "op": "<", "value": "x"}]}}, "price"),
        ({"filter": {"attributes": [{"name": "price", "op": "in", "value": 3}]}}, "`in` takes a list"),
        ({"model": "other"}, "'other' is not served here; leave it out or use default"),
        ({"history": [{"item_id": "i01", "timestamp": 1.7e12}]}, r"history[0].timestamp"),
    ],
)
async def test_what_cannot_be_meant_is_named(client, body, reason):
    answer = await client.post(URL, json=body)
    assert answer.status_code == 422
    assert reason in answer.json()["detail"]


async def test_what_needs_no_doing_is_accepted(client):
    body = {"model": "toy", "placement": "home", "explain": True, "diversity": 0, "context": {"hour": 3, "page": "x"}}
    assert (await client.post(URL, json=body)).status_code == 200


async def test_the_model_gets_types_values_times_and_the_context(open_client, with_recommender, recommending):
    real = recommending.act
    seen = []

    def watch(queries, stage):
        seen.extend(queries)
        return real(queries, stage)

    body = {
        "history": [
            "i01",
            {"item_id": "gone", "event_type": "purchase"},
            {"item_id": "i02", "event_type": "purchase", "value": 4.5, "timestamp": 10},
            {"item_id": "i03", "event_type": "unheard of"},
        ],
        "context": {"hour": 3, "page": "home", "signed_in": True},
    }
    async with open_client(app={"served": with_recommender}) as client:
        recommending.act = watch
        await client.post(URL, json=body)
    (query,) = seen
    history = query.request.history
    assert history.rows.tolist() == [1, 2, 3]
    assert history.event_types.tolist() == [1, 3, 0]
    assert np.isnan(history.values[0])
    assert history.values[1] == 4.5
    assert history.timestamps.tolist() == [1_700_000_000.0, 10.0, 1_700_000_000.0]
    assert query.request.time == 1_700_000_000.0
    assert query.request.context == {"hour": 3.0}


async def test_callers_at_the_same_time_share_a_batch_and_each_gets_its_own(
    open_client, with_recommender, recommending
):
    async with open_client(app={"served": with_recommender}, batch_wait_ms=200, max_batch=4) as client:
        recommending.batches.clear()
        answers = await asyncio.gather(
            *(client.post(URL, json={"history": [f"i{n:02d}"], "k": n}) for n in range(2, 6))
        )
        assert recommending.batches == [4]
    assert [len(ids(answer)) for answer in answers] == [2, 3, 4, 5]
    assert all(f"i{n:02d}" not in ids(answer) for n, answer in zip(range(2, 6), answers, strict=True))


async def test_similar_items_lie_near_and_exclude_the_item_itself(client):
    answer = await client.get("/v1/items/i05/similar", params={"k": 2})
    assert sorted(ids(answer)) == ["i04", "i06"]
    assert {item["source"] for item in answer.json()["items"]} == {"similar"}
    assert len(ids(await client.get("/v1/items/i05/similar", params={"k": 500}))) == 18
    unknown = await client.get("/v1/items/nothing/similar")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_item")


async def test_an_event_is_in_effect_in_the_very_next_answer(open_client, tmp_path):
    for url in ("memory://", f"sqlite:///{tmp_path / 'sessions.db'}"):
        async with open_client(app={"store": open_store(url)}) as client:
            await remember(client, "anna", "i03")
            first = await client.get("/v1/users/anna/recommendations", params={"k": 1})
            await remember(client, "anna", "i15")
            second = await client.get("/v1/users/anna/recommendations", params={"k": 1})
            assert ids(first)[0] in ("i02", "i04")
            assert ids(second)[0] in ("i14", "i16")


async def test_the_budget_counts_what_the_model_reads_wherever_it_came_from(open_client):
    async with open_client(query_budget=2) as client:

        async def ask(**body):
            return await client.post("/v1/recommendations", json={"k": 3, **body})

        await client.post("/v1/events", json={"events": [{"user_id": "u", "item_id": "i01"}]})
        assert (await ask(history=["i01"])).status_code == 200
        assert (await ask(history=["never heard of", "i01"])).status_code == 200
        assert (await ask(user_id="u")).status_code == 200
        assert (await client.get("/v1/users/u/recommendations")).status_code == 200
        ranked = await client.post("/v1/rankings", json={"history": ["i02"], "candidates": ["i03", "i04"]})
        assert ranked.status_code == 200
        refused = await ask(history=["i03"])
        assert (refused.status_code, refused.json()["code"]) == (429, "budget_exhausted")
        assert 0 < int(refused.headers["retry-after"]) <= 86_400
        ranked = await client.post("/v1/rankings", json={"history": ["i03"], "candidates": ["i04"]})
        assert ranked.status_code == 429
        assert (await ask(history=["i01"], k=5)).status_code == 200
        assert (await ask()).status_code == 200  # no history, so nothing of the model
        assert (await client.get("/v1/items/i01/similar")).status_code == 200


async def test_the_log_holds_lists_as_they_went_out_and_nothing_without_consent(open_client, tmp_path):
    async with open_client(log=f"file://{tmp_path}") as client:
        assert (await client.post(URL, json={"user_id": "secret", "consent": False})).status_code == 200
        answers = [
            await client.post(URL, json={"user_id": "anna", "history": ["i03"], "k": 3, "placement": "home"}),
            await client.post(URL, json={"history": ["i03"], "k": 2}),
            await client.get("/v1/users/anna/recommendations?k=2"),
        ]
    lines = [line for file in tmp_path.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert "secret" not in "".join(lines)
    served = [json.loads(line) for line in lines]
    for found, answer in zip(served, answers, strict=True):
        body = answer.json()
        assert found["kind"] == "served"
        assert found["recommendation_id"] == body["recommendation_id"]
        assert found["items"] == ids(answer)
        assert found["scores"] == [item["score"] for item in body["items"]]
        assert found["sources"] == [item["source"] for item in body["items"]]
        assert (found["bundle"], found["variant"]) == (body["model"]["bundle"], "default")
        assert found["timings_ms"] == body["timings_ms"]
    assert [found["user_id"] for found in served] == ["anna", None, "anna"]
    assert [found["k"] for found in served] == [3, 2, 2]
    assert [found.get("placement") for found in served] == ["home", None, None]
    assert [found["degraded"] for found in served] == [[], [], ["no_history"]]
