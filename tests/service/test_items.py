"""What callers say of items, and what comes of it in this process and in others."""

import asyncio
import hashlib
from urllib.parse import quote

import pytest

from retrieval.catalog import Catalog
from service import metrics
from service.errors import StoreUnavailable
from service.items import MAX_COLUMNS, kinds_of, unfit_attributes
from service.sessions import ItemChange, open_store

pytestmark = pytest.mark.anyio
EVERYTHING = {"k": 50, "exclude_seen": False}


async def shown(client, **body) -> list[str]:
    answer = await client.post("/v1/recommendations", json={**EVERYTHING, **body})
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


async def put(client, item_id: str, status: int = 200, **body) -> dict:
    answer = await client.put(f"/v1/items/{quote(item_id, safe='')}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_an_added_item_is_in_the_very_next_cold_start_answer_and_gone_in_the_next_after_it_is_removed(client):
    lane = {"filter": {"new_only": True}}
    assert await shown(client, history=["i05"], **lane) == []
    told = await put(client, "new", 201, attributes={"title": "Fresh", "price": 3, "categories": ["green"]})
    assert told == {
        "item_id": "new",
        "available": True,
        "attributes": {"title": "Fresh", "price": 3.0, "categories": ["green"]},
        "is_new": True,
        "edition": told["edition"],
    }
    for body in ({}, {"history": ["i05"]}):
        assert await shown(client, **body, **lane) == ["new"]
    assert await shown(client, filter={"categories": {"any": ["green"]}}) == ["new"]
    assert "new" in await shown(client, history=["i05"])
    assert (await client.delete("/v1/items/new")).status_code == 204
    for body in ({}, {"history": ["i05"]}):
        assert await shown(client, **body, **lane) == []
        assert "new" not in await shown(client, **body)


async def test_a_removed_item_is_in_no_answer_and_back_after_a_put(client):
    assert "i06" in await shown(client, history=["i05"])
    for _ in range(2):
        assert (await client.delete("/v1/items/i06")).status_code == 204
        assert "i06" not in await shown(client, history=["i05"])
        assert "i06" not in await shown(client)
    similar = (await client.get("/v1/items/i05/similar?k=50")).json()["items"]
    assert "i06" not in [item["item_id"] for item in similar]
    assert (await client.get("/v1/items/i06")).json()["available"] is False
    told = await put(client, "i06")
    assert told["attributes"] == {"title": "Item 6", "categories": ["red", "all"], "price": 6.0}
    assert "i06" in await shown(client, history=["i05"])


async def test_a_put_changes_all_attributes_or_none(client):
    assert (await put(client, "i06", attributes={"price": 99}))["attributes"] == {"price": 99.0}
    dear = {"filter": {"attributes": [{"name": "price", "op": ">", "value": 50}]}}
    assert await shown(client, **dear) == ["i06"]
    await put(client, "i06", available=False)
    assert await shown(client, **dear) == []
    await put(client, "i06")
    assert await shown(client, **dear) == ["i06"]
    assert (await client.get("/v1/items/i06")).json()["is_new"] is False


async def test_a_new_item_is_known_to_events_and_rankings_and_history(client):
    event = {"events": [{"user_id": "anna", "item_id": "new"}]}
    assert (await client.post("/v1/events", json=event)).json()["results"][0]["known"] is False
    await put(client, "new", 201, attributes={"price": 1})
    assert (await client.post("/v1/events", json=event)).json()["results"][0]["known"] is True
    ranked = await client.post("/v1/rankings", json={"history": ["i05"], "candidates": ["new", "i09"]})
    assert [item["item_id"] for item in ranked.json()["items"]] == ["i09", "new"]
    assert [item["known"] for item in ranked.json()["items"]] == [True, False]  # the encoder has no vector for it
    assert "new" not in await shown(client, user_id="anna", exclude_seen=True)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            {"attributes": {"price": "cheap"}},
            "attributes.price: 'price' holds a number in this catalog; 'cheap' is a text",
        ),
        ({"attributes": {"title": 3}}, "attributes.title: 'title' holds a text in this catalog; 3.0 is a number"),
        ({"attributes": {"categories": "red"}}, "attributes.categories: 'categories' holds a list of words"),
        ({"attributes": {"price": {}}}, "an attribute is a number, a text or a list of words"),
        ({"attributes": {"price": None}}, "an attribute is a number, a text or a list of words"),
        ({"attributes": {"price": True}}, "an attribute is a number, a text or a list of words"),
        ({"attributes": {"title": "x" * 4097}}, "4096"),
        ({"attributes": {"categories": ["x"] * 257}}, "256"),
        ({"attributes": {"categories": ["x" * 257]}}, "256"),
        ({"attributes": {f"a{n}": n for n in range(33)}}, "32"),
        ({"attributes": {"": 1}}, "at least 1 character"),
        ({"available": "no"}, "boolean"),
        ({"colour": "x"}, "colour"),
    ],
)
async def test_what_cannot_be_kept_of_an_item_is_named_and_nothing_changes(client, body, reason):
    before = (await client.get("/v1/items/i06")).json()
    answer = await client.put("/v1/items/i06", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert reason in answer.json()["detail"]
    assert (await client.get("/v1/items/i06")).json() == before


async def test_ids_have_a_limit_and_unknown_items_are_named(client):
    assert (await client.put(f"/v1/items/{'x' * 257}", json={})).status_code == 422
    assert (await client.put("/v1/items/", json={})).status_code == 422
    for method in ("GET", "DELETE"):
        answer = await client.request(method, "/v1/items/nothing")
        assert (answer.status_code, answer.json()["code"]) == (404, "unknown_item")
    odd = 'a b/ä,"☃'
    assert (await put(client, odd, 201))["item_id"] == odd
    assert odd in await shown(client, filter={"include_ids": [odd]})


async def test_changes_need_the_scope_write(open_client, tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"reader:read:{hashlib.sha256(b'reader').hexdigest()}\n")
    async with open_client(api_keys_file=path) as client:
        reader = {"x-api-key": "reader"}
        for method, expected in (("GET", 200), ("PUT", 403), ("DELETE", 403)):
            answer = await client.request(method, "/v1/items/i01", headers=reader, json={})
            assert answer.status_code == expected
        ranked = await client.post("/v1/rankings", headers=reader, json={"candidates": ["i01"]})
        assert ranked.status_code == 200


async def test_gone_store_means_that_nothing_changes_and_the_caller_is_told(open_client, away_store):
    async with open_client(app={"store": away_store}) as client:
        for method in ("PUT", "DELETE"):
            answer = await client.request(method, "/v1/items/i06", json={})
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert "i06" in await shown(client)


async def test_changes_survive_a_restart(open_client, tmp_path):
    url = f"sqlite:///{tmp_path / 'sessions.db'}"
    async with open_client(app={"store": open_store(url)}) as client:
        await put(client, "new", 201, attributes={"title": "Fresh"})
        await put(client, "i07", attributes={"price": 70})
        await put(client, "i07", available=False)
        await client.delete("/v1/items/i06")
        before = [(await client.get(f"/v1/items/{item}")).json() for item in ("new", "i07", "i06")]
        assert (await client.get("/v1/model")).json()["edition"] == 4
    async with open_client(app={"store": open_store(url)}) as client:
        after = [(await client.get(f"/v1/items/{item}")).json() for item in ("new", "i07", "i06")]
        assert [{**item, "edition": 0} for item in after] == [{**item, "edition": 0} for item in before]
        assert not {"i06", "i07"} & set(await shown(client))


async def test_changes_reach_another_process_on_the_same_store(open_client, tmp_path):
    url = f"sqlite:///{tmp_path / 'sessions.db'}"
    async with (
        open_client(app={"store": open_store(url)}) as here,
        open_client(app={"store": open_store(url)}) as there,
    ):
        await put(here, "new", 201)
        await here.delete("/v1/items/i06")
        await there.app.state.shell.items.refresh()  # what `follow` does every second
        assert "new" in await shown(there)
        assert "i06" not in await shown(there)
        await put(there, "i06")  # a change there is built upon what came from here
        assert {"new", "i06"} <= set(await shown(there))


async def test_following_goes_on_after_the_store_was_away(open_client, tmp_path, monkeypatch):
    monkeypatch.setattr("service.items.FOLLOW_EVERY_S", 0.001)
    url = f"sqlite:///{tmp_path / 'sessions.db'}"
    store, other = open_store(url), open_store(url)
    looked, away = asyncio.Event(), [StoreUnavailable("item_changes", "it is away"), RuntimeError("a surprise")]
    real = store.item_changes

    async def changes(since: int = 0):
        looked.set()
        if looks_fail and away:
            raise away.pop()
        return await real(since)

    looks_fail = False
    store.item_changes = changes
    async with open_client(app={"store": store}) as client:
        looks_fail = True
        await other.change_item(ItemChange("i06", available=False))
        while away or client.app.state.shell.variants.default.served.edition == 0:
            looked.clear()
            await looked.wait()
        assert "i06" not in await shown(client)
    await other.close()


async def test_changes_that_come_together_share_an_edition(client):
    before = (await client.get("/v1/model")).json()["edition"]
    await asyncio.gather(*(put(client, f"n{n}", 201) for n in range(20)))
    about = (await client.get("/v1/model")).json()
    assert about["catalog_items"] == 40
    assert before < about["edition"] < before + 20
    assert metrics.REGISTRY.get_sample_value("sequitur_edition") == about["edition"]
    assert metrics.REGISTRY.get_sample_value("sequitur_index_items", {"index": "exact"}) == 40


async def test_another_store_than_before_is_read_from_its_beginning(client):
    for available in (False, True):
        await put(client, "i06", available=available)
    store = client.app.state.shell.store
    store._version, store._versions, store._items = 0, {}, {}  # an emptied Redis, a file that was replaced
    await put(client, "i05", available=False)
    assert "i05" not in await shown(client)


async def test_what_another_bundle_could_hold_is_left_out_here_and_said(open_client, caplog):
    store = open_store("memory://")
    await store.change_item(ItemChange("i06", True, {"price": "on request", "title": "Kept"}))
    async with open_client(app={"store": store}) as client:
        assert (await client.get("/v1/items/i06")).json()["attributes"] == {"title": "Kept"}
    assert "goes without its attribute 'price'" in caplog.text


async def test_two_kinds_of_one_new_attribute_at_once_leave_the_first_and_stop_nothing(client, caplog):
    put_both = (put(client, item_id, 201, attributes={"size": size}) for item_id, size in (("n1", 7), ("n2", "large")))
    await asyncio.gather(*put_both)
    assert (await client.get("/v1/items/n1")).json()["attributes"] == {"size": 7}
    assert (await client.get("/v1/items/n2")).json()["attributes"] == {}
    assert "item 'n2' goes without its attribute 'size'" in caplog.text


def test_kinds_of_attributes_are_told_apart():
    kinds = kinds_of(Catalog.build(["a"], attributes={"n": [1.0], "t": ["x"], "l": [["x"]]}))
    fitting = {"n": 2, "t": "y", "l": ["y"]}
    assert unfit_attributes(kinds, {**fitting, "new": 1}) == {}
    for name in fitting:
        others = [value for own, value in fitting.items() if own != name]
        assert all(list(unfit_attributes(kinds, {name: value})) == [name] for value in others)


def test_full_a_catalog_takes_no_further_attributes():
    kinds = {str(n): "a number" for n in range(MAX_COLUMNS)}
    assert unfit_attributes(kinds, {"0": 1}) == {}
    assert "256 attributes" in unfit_attributes(kinds, {"another": 1})["another"]
