from urllib.parse import quote

import orjson
import pytest

from service import metrics

pytestmark = pytest.mark.anyio
NOW = 1_700_000_000.0


def counted(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def event(**fields):
    return {"user_id": "u", "item_id": "i01", **fields}


async def post(client, *events):
    return await client.post("/v1/events", json={"events": list(events)})


async def test_each_event_has_its_result_in_the_order_given(client):
    answer = await post(
        client,
        event(event_id="e1", timestamp=NOW - 5),
        event(user_id="v", item_id="unheard of"),
        event(event_id="e1"),
        event(item_id="i02"),
    )
    assert answer.status_code == 202
    assert answer.json() == {
        "accepted": 3,
        "results": [
            {"outcome": "accepted", "known": True, "event_id": "e1"},
            {"outcome": "accepted", "known": False},
            {"outcome": "duplicate", "known": True, "event_id": "e1"},
            {"outcome": "accepted", "known": True},
        ],
    }


async def test_a_history_shows_what_was_sent_oldest_first(client):
    whole = event(
        event_type="click",
        value=2.5,
        timestamp="2023-11-14T22:13:19Z",
        event_id="e1",
        recommendation_id="r1",
        context={"page": "home"},
    )
    await post(client, event(item_id="i02"), whole)
    answer = await client.get("/v1/users/u/history")
    assert answer.json() == {
        "user_id": "u",
        "events": [
            {**{k: v for k, v in whole.items() if k != "user_id"}, "timestamp": NOW - 1},
            {"item_id": "i02", "event_type": "view", "value": None, "timestamp": NOW},
        ],
    }


async def test_empty_history_of_an_unknown_user(client):
    answer = await client.get("/v1/users/nobody/history")
    assert answer.json() == {"user_id": "nobody", "events": []}


@pytest.mark.parametrize(
    ("bad", "loc"),
    [
        (event(timestamp=NOW + 86_401), "events[1].timestamp"),
        (event(timestamp=-1), "events[1].timestamp"),
        (event(item_id=""), "events[1].item_id"),
        ({"item_id": "i01"}, "events[1].user_id"),
        (event(value="much"), "events[1].value"),
        (event(colour="red"), "events[1].colour"),
        (event(context={"a": {}}), "events[1].context.a"),
    ],
)
async def test_one_bad_event_is_named_and_nothing_is_stored(client, bad, loc):
    answer = await post(client, event(), bad)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["errors"][0]["loc"].startswith(loc)
    assert (await client.get("/v1/users/u/history")).json()["events"] == []


async def test_full_history_keeps_the_newest(open_client):
    async with open_client(history_cap=2) as client:
        answer = await post(client, *(event(item_id=f"i0{n}", timestamp=NOW + n) for n in (1, 2, 3)))
        assert answer.json()["accepted"] == 3
        late = await post(client, event(item_id="i04", timestamp=NOW - 100))
        assert late.json() == {"accepted": 0, "results": [{"outcome": "too_old", "known": True}]}
        kept = (await client.get("/v1/users/u/history")).json()["events"]
        assert [stored["item_id"] for stored in kept] == ["i02", "i03"]


async def test_gone_store_refuses_events_so_that_nothing_is_lost_silently(open_client, away_store):
    before = counted("sequitur_store_errors_total", operation="append")
    async with open_client(app={"store": away_store}) as client:
        for answer in (
            await post(client, event()),
            await client.get("/v1/users/u/history"),
            await client.delete("/v1/users/u"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
            assert answer.headers["retry-after"] == "1"
    assert counted("sequitur_store_errors_total", operation="append") == before + 1


async def test_a_user_is_forgotten_and_forgetting_twice_is_no_error(client):
    await post(client, event(event_id="e1"))
    for _ in range(2):
        assert (await client.delete("/v1/users/u")).status_code == 204
    assert (await client.get("/v1/users/u/history")).json()["events"] == []
    assert (await post(client, event(event_id="e1"))).json()["accepted"] == 1


async def test_clicks_on_recommendations_are_attributed_once(client):
    before, unknown = (counted("sequitur_attributed_clicks_total", variant=name) for name in ("default", "unknown"))
    listed = (await client.post("/v1/recommendations", json={})).json()["recommendation_id"]
    accepted = counted("sequitur_events_total", outcome="accepted")
    for _ in range(2):
        await post(client, event(event_id="e1", recommendation_id=listed), event(event_id="e2"))
    await post(client, event(event_id="e3", recommendation_id="made up"))
    assert counted("sequitur_attributed_clicks_total", variant="default") == before + 1
    assert counted("sequitur_attributed_clicks_total", variant="unknown") == unknown + 1
    assert counted("sequitur_events_total", outcome="accepted") == accepted + 3


@pytest.mark.parametrize("user_id", ["a,b", '"q"', "📚", "a/b", "a b?c#d&e=f", "history", "x" * 256])
async def test_ids_of_any_text_come_back_whole(client, user_id):
    await post(client, event(user_id=user_id, item_id=user_id))
    path = f"/v1/users/{quote(user_id, safe='')}"
    assert (await client.get(f"{path}/history")).json()["events"][0]["item_id"] == user_id
    assert (await client.get(f"{path}/recommendations")).status_code == 200
    assert (await client.delete(path)).status_code == 204
    assert (await client.get(f"{path}/history")).json() == {"user_id": user_id, "events": []}


def records(folder):
    return [orjson.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_bytes().splitlines()]


async def test_the_log_holds_what_was_accepted_once_and_what_was_erased(open_client, tmp_path):
    async with open_client(log=f"file://{tmp_path}") as client:
        whole = event(event_type="click", value=2.5, event_id="e1", recommendation_id="r1", context={"page": "home"})
        await post(client, whole, event(user_id="v", timestamp=NOW - 5))
        await post(client, whole)
        assert (await client.delete("/v1/users/v")).status_code == 204
    whole |= {"kind": "event", "time": NOW, "timestamp": NOW}
    first, second, erased = records(tmp_path)
    assert first == whole
    assert (second["user_id"], second["time"], second["timestamp"]) == ("v", NOW, NOW - 5)
    assert erased == {"kind": "erased", "time": NOW, "user_id": "v"}


async def test_a_log_that_cannot_be_told_of_an_erasure_says_so(open_client, tmp_path):
    (tmp_path / "file").touch()
    async with open_client(log=f"file://{tmp_path / 'file'}") as client:
        assert (await post(client, event())).status_code == 202
        answer = await client.delete("/v1/users/u")
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert "erase again" in answer.json()["detail"]


async def test_a_visitor_who_signs_in_is_merged_and_twice_does_no_harm(client):
    await post(client, event(user_id="visitor", item_id="i03", event_id="e", timestamp=NOW - 9))
    await post(client, event(user_id="ann", item_id="i05", timestamp=NOW - 5))
    for moved in (1, 0):
        answer = await client.post("/v1/users/merge", json={"from": "visitor", "into": "ann"})
        assert (answer.status_code, answer.json()) == (200, {"user_id": "ann", "moved": moved})
        seen = (await client.get("/v1/users/ann/history")).json()["events"]
        assert [one["item_id"] for one in seen] == ["i03", "i05"]
        assert (await client.get("/v1/users/visitor/history")).json()["events"] == []
    again = await post(client, event(user_id="ann", item_id="i03", event_id="e", timestamp=NOW - 9))
    assert again.json()["results"][0]["outcome"] == "duplicate"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"from": "ann", "into": "ann"}, "the same user"),
        ({"from": "ann"}, "into"),
        ({"source": "x", "into": "ann"}, "from"),
        ({"from": "", "into": "ann"}, "from"),
        ({"from": "x" * 257, "into": "ann"}, "256"),
    ],
)
async def test_users_that_cannot_be_merged_are_named(client, body, says):
    answer = await client.post("/v1/users/merge", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert says in answer.json()["detail"]


async def test_gone_store_merges_nothing_and_says_so(open_client, away_store):
    async with open_client(app={"store": away_store}) as client:
        answer = await client.post("/v1/users/merge", json={"from": "visitor", "into": "ann"})
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
