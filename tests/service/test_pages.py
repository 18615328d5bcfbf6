"""Further pages: frozen, without repeats and without gaps, whatever happens meanwhile."""

import asyncio
import json
import time

import numpy as np
import pytest

from retrieval.queries import Answer
from service import metrics
from service.errors import StoreUnavailable
from service.ladder import Call
from service.pages import KEPT_S, decoded, encoded
from service.sessions import open_store
from service.timing import Timings

pytestmark = pytest.mark.anyio
URL = "/v1/recommendations"
NOW = 1_700_000_000.0
BODY = {"user_id": "anna", "history": ["i05"], "k": 4}
RULES = {"caps": [{"attribute": "categories", "most": 3, "values": ["red"]}], "pins": [{"item_id": "i15"}]}


def ids(answer) -> list[str]:
    return [item["item_id"] for item in answer.json()["items"]]


def counted(outcome: str) -> float:
    return metrics.REGISTRY.get_sample_value("sequitur_frozen_lists_total", {"outcome": outcome}) or 0.0


async def first_page(client, **body):
    answer = await client.post(URL, json={**BODY, **body})
    assert answer.status_code == 200, answer.text
    return answer


async def pages(client, answer) -> list:
    """All pages, by the path that each one names."""
    every = [answer]
    while every[-1].json()["next"] is not None:
        every.append(await client.get(every[-1].json()["next"]))
        assert every[-1].status_code == 200, every[-1].text
    return every


@pytest.mark.parametrize("more", [{}, {"placement": RULES}, {"diversity": 0.5}, {"history": [], "user_id": "nobody"}])
async def test_pages_are_one_list_and_the_first_is_what_it_is_without_them(open_client, more):
    async with open_client(frozen_items=0) as client:
        alone = await first_page(client, **more)
        assert alone.json()["next"] is None
    async with open_client() as client:
        answer = await first_page(client, **more)
        first = answer.json()
        assert first["items"] == alone.json()["items"]
        every = [page.json() for page in await pages(client, answer)]
        shown = [item for page in every for item in page["items"]]
        listed = [item["item_id"] for item in shown]
        assert len(listed) == len(set(listed)) == (19 if more.get("history") == [] else 18)
        assert [item["rank"] for item in shown] == [*range(1, len(shown) + 1)]
        assert [len(page["items"]) for page in every[:-1]] == [4, 4, 4, 4]
        for page in every:
            assert page["recommendation_id"] == first["recommendation_id"]
            assert (page["model"], page["degraded_reasons"]) == (first["model"], first["degraded_reasons"])
        if not more:
            whole = (await first_page(client, k=18)).json()
            assert shown == whole["items"]
            assert whole["next"] is None  # nothing is left


async def test_generated_lists_and_ranked_ones_have_pages(open_client, generative, ranked):
    for served in (generative, ranked):
        async with open_client(app={"served": served}, frozen_items=0) as client:
            alone = (await first_page(client)).json()
        async with open_client(app={"served": served}) as client:
            answer = await first_page(client)
            listed = [item_id for page in await pages(client, answer) for item_id in ids(page)]
            assert answer.json()["items"] == alone["items"]
            assert answer.json().get("exact") == alone.get("exact")
            assert len(listed) == len(set(listed)) > 12


async def test_nothing_that_happens_meanwhile_changes_what_follows_but_what_is_removed_is_not_shown(open_client):
    async with open_client() as client:
        answer = await first_page(client)
        second = answer.json()["next"]
        before = (await client.get(second)).json()
        following = [item["item_id"] for item in before["items"]]
        events = [{"user_id": "anna", "item_id": item_id} for item_id in (following[0], "i15")]
        await client.post("/v1/events", json={"events": events})
        await client.put("/v1/items/new", json={"attributes": {"title": "Item 5"}})
        assert (await client.get(second)).json()["items"] == before["items"]
        await client.delete(f"/v1/items/{following[1]}")
        after = (await client.get(second)).json()
        kept = [item["item_id"] for item in after["items"]]
        assert kept[:3] == [following[0], *following[2:]]
        assert len(kept) == 4  # the place is filled by what follows
        assert after["next"] != before["next"]
        rest = [item_id for page in await pages(client, await client.get(second)) for item_id in ids(page)]
        assert len(rest) == len(set(rest)) == 13
        assert "new" not in rest


async def test_another_bundle_gives_the_same_items_with_what_it_knows_of_them(open_client, generative):
    async with open_client() as client:
        answer = await first_page(client)
        before = (await client.get(answer.json()["next"])).json()
        client.app.state.shell.variants.default.served = generative
        after = (await client.get(answer.json()["next"])).json()
        # Reasons are true in the space of the model that found the list, which is not here any more.
        assert after["items"] == [{key: said for key, said in i.items() if key != "reason"} for i in before["items"]]
        assert all("reason" in item for item in before["items"])
        assert after["model"] == before["model"]


async def test_with_after_a_page_comes_again_and_without_it_calls_go_on(open_client):
    async with open_client() as client:
        answer = await first_page(client)
        page = f"{URL}/{answer.json()['recommendation_id']}/next"
        again = [ids(await client.get(f"{page}?k=3&after=7")) for _ in range(3)]
        assert again[0] == again[1] == again[2]
        together = await asyncio.gather(*(client.get(f"{page}?k=3") for _ in range(4)))
        shown = [item_id for one in together for item_id in ids(one)]
        assert len(shown) == len(set(shown)) == 12
        assert not {*shown} & {*ids(answer)}
        rest = await client.get(page)  # as many as on the first page, of which two are left
        assert (len(ids(rest)), rest.json()["next"]) == (2, None)
        assert (await client.get(page)).json()["items"] == []
        await client.delete(f"/v1/items/{ids(rest)[0]}")


async def test_calls_that_go_on_fill_up_for_what_was_removed(open_client):
    async with open_client() as client:
        answer = await first_page(client)
        page = f"{URL}/{answer.json()['recommendation_id']}/next"
        listed = ids(await client.get(f"{page}?k=14&after=4"))
        for item_id in listed[1:3]:
            await client.delete(f"/v1/items/{item_id}")
        assert ids(await client.get(f"{page}?k=3")) == [listed[0], listed[3], listed[4]]
        assert ids(await client.get(f"{page}?k=3")) == listed[5:8]


@pytest.mark.parametrize(
    "body",
    [{"consent": False}, {"k": 18}, {"filter": {"include_ids": ["i04", "i06"]}}, {"k": 500}],
)
async def test_without_consent_and_where_nothing_follows_nothing_is_kept(open_client, body):
    store = open_store("memory://")

    async def refused(*_, **__):
        raise AssertionError("nothing was to be kept")

    store.keep_list = refused
    async with open_client(app={"store": store}) as client:
        assert (await first_page(client, **body)).json()["next"] is None


async def test_the_simple_form_changes_nothing_and_has_no_pages(client):
    assert (await client.get("/v1/users/anna/recommendations?k=2")).json()["next"] is None


@pytest.mark.parametrize("user", [{}, {"user_id": None}])
async def test_a_store_that_is_away_leaves_a_list_without_pages_and_degrades_nothing(open_client, away_store, user):
    lost = counted("lost")
    async with open_client(app={"store": away_store}) as client:
        await first_page(client, **user)
        await client.app.state.shell.pages.settled()
        lost += bool(user)
        answer = (await first_page(client, **user)).json()
        await client.app.state.shell.pages.settled()
        assert answer["next"] is None
        assert answer["degraded_reasons"] == ([] if user else ["store_unavailable"])
        assert counted("lost") == lost + bool(user)  # where the history could not be read nothing is even tried
        gone = await client.get(f"{URL}/abc/next")
        assert (gone.status_code, gone.json()["code"]) == (503, "store_unavailable")


async def test_a_store_that_is_slow_is_not_waited_for(open_client):
    store = open_store("memory://")
    waits = asyncio.Event()

    async def slow(*_, **__):
        await waits.wait()

    real, store.keep_list = store.keep_list, slow
    async with open_client(app={"store": store}, store_timeout_ms=5) as client:
        pages = client.app.state.shell.pages
        promised = (await first_page(client)).json()  # nobody knows yet
        assert (promised["degraded"], len(promised["items"])) == (False, 4)
        assert (await client.get(promised["next"])).json()["code"] == "list_gone"
        answer = (await first_page(client)).json()
        assert (answer["next"], answer["degraded"], len(answer["items"])) == (None, False, 4)
        await pages.settled()
        store.keep_list = real
        assert (await first_page(client)).json()["next"] is None  # it is tried, and was not promised
        await pages.settled()
        assert (await client.get((await first_page(client)).json()["next"])).status_code == 200


def held_up():
    """A store in which lists arrive only when an event says so, and the event."""
    store, arrives = open_store("memory://"), asyncio.Event()
    real = store.keep_list

    async def slow(*given, **more):
        await arrives.wait()
        await real(*given, **more)

    store.keep_list = slow
    return store, arrives


@pytest.mark.parametrize("is_here", [True, False])
async def test_late_a_list_is_waited_for_by_whoever_asks_for_its_next_page(open_client, is_here):
    """Here by looking at what is under way, elsewhere by looking twice."""
    store, arrives = held_up()
    async with open_client(app={"store": store}, store_timeout_ms=1_000) as client:
        answer = (await first_page(client)).json()
        if not is_here:
            client.app.state.shell.pages._under_way = {}
        asyncio.get_running_loop().call_later(0.01, arrives.set)
        assert (await client.get(answer["next"])).status_code == 200


async def test_full_of_lists_on_their_way_no_more_are_sent(open_client, monkeypatch):
    monkeypatch.setattr("service.pages.MOST_UNDER_WAY", 0)
    lost = counted("lost")
    async with open_client() as client:
        assert (await first_page(client)).json()["next"] is None
    assert counted("lost") == lost + 1


@pytest.mark.parametrize("ends", ["erase", "merge"])
async def test_late_a_list_on_its_way_does_not_outlive_its_user(open_client, ends):
    store, arrives = held_up()
    async with open_client(app={"store": store}, store_timeout_ms=1_000) as client:
        answer = (await first_page(client)).json()
        asyncio.get_running_loop().call_later(0.01, arrives.set)
        if ends == "erase":
            assert (await client.delete("/v1/users/anna")).status_code == 204
            assert (await client.get(answer["next"])).json()["code"] == "list_gone"
        else:
            await client.post("/v1/users/merge", json={"from": "anna", "into": "berta"})
            assert [kept.kept.user_id for kept in store._lists.values()] == ["berta"]


async def test_gone_lists_are_said_to_be_gone_with_what_to_do(open_client):
    now = [1e9]
    async with open_client(app={"store": open_store("memory://", clock=lambda: now[0])}) as client:
        answer = await first_page(client)
        await client.app.state.shell.pages.settled()
        now[0] += KEPT_S - 1
        assert (await client.get(answer.json()["next"])).status_code == 200
        now[0] += 2
        for path in (answer.json()["next"], f"{URL}/nobody/next", f"{URL}/nobody/next?after=5"):
            gone = await client.get(path)
            assert (gone.status_code, gone.json()["code"]) == (404, "list_gone")
            assert "ask for recommendations again" in gone.json()["detail"]


async def test_an_erased_user_has_no_pages(client):
    answer = await first_page(client)
    assert (await client.delete("/v1/users/anna")).status_code == 204
    assert (await client.get(answer.json()["next"])).json()["code"] == "list_gone"


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("after=3", "after=4"),
        ("after=0", "1"),
        ("k=0", "1"),
        ("k=501", "500"),
        ("after=501", "500"),
        ("k=x", "integer"),
    ],
)
async def test_what_cannot_be_meant_is_named(client, query, says):
    answer = await first_page(client)
    refused = await client.get(f"{URL}/{answer.json()['recommendation_id']}/next?{query}")
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert says in refused.json()["detail"]


async def test_beyond_the_end_a_page_is_empty(client):
    answer = await first_page(client)
    page = (await client.get(f"{URL}/{answer.json()['recommendation_id']}/next?after=300")).json()
    assert (page["items"], page["next"]) == ([], None)


async def test_keeping_is_refused_by_what_fails_and_by_nothing_else(open_client):
    store = open_store("memory://")
    async with open_client(app={"store": store}) as client:
        answer = await first_page(client)

        async def away(*_):
            raise StoreUnavailable("advance_list", "it is away")

        store.advance_list = away
        assert (await client.get(answer.json()["next"])).json()["code"] == "store_unavailable"


async def test_the_log_holds_every_page_with_whose_list_it_is(open_client, tmp_path):
    async with open_client(log=f"file://{tmp_path}") as client:
        every = [page.json() for page in await pages(client, await first_page(client))]
    (file,) = tmp_path.glob("*.jsonl")
    served = [json.loads(line) for line in file.read_text().splitlines()]
    assert [found["items"] for found in served] == [[item["item_id"] for item in page["items"]] for page in every]
    assert [found["first"] for found in served] == [page["items"][0]["rank"] for page in every]
    assert {found["recommendation_id"] for found in served} == {every[0]["recommendation_id"]}
    assert {found["user_id"] for found in served} == {"anna"}
    assert [found.get("since") for found in served] == [None, *[NOW] * (len(every) - 1)]


def test_a_kept_list_is_small_and_read_as_it_was_written(served):
    rows = np.arange(1, 19)
    scores = np.linspace(0.9, 0.1, 18).astype(np.float32)
    answer = Answer(rows, scores, ("retrieval",) * 16 + ("popular",) * 2)
    history = np.array([3, 5])
    call = Call(served, NOW, 1e9, 1e9, Timings(time.monotonic), reasons=["deadline"])
    payload = encoded(call, answer, history, 4, ("toy", served.bundle.name, "default"), user_id="u")
    assert len(payload) < 23 * 14 + 90
    ahead = decoded(payload)
    assert ahead.ids == [f"i{n:02d}" for n in range(5, 19)]
    items = ahead.items(range(4, 18), served, rows[4:])
    assert [item["score"] for item in items] == scores[4:].tolist()
    assert [item["source"] for item in items] == ["retrieval"] * 12 + ["popular"] * 2
    near = served.catalog.ids
    reasons = [near[row] for row in served.reasons.nearest(answer, history).tolist()[4:]]
    assert [item.get("reason", {}).get("item_id", "") for item in items] == reasons
    assert {*reasons[:12]} <= {"i03", "i05"}
    assert reasons[12:] == ["", ""]
    assert decoded(payload.replace(b"[2,", b"[1,", 1)) is None
