"""A bundle that generates, behind the same calls: what it says of its answers, and what answers when it cannot."""

import asyncio
import copy
import threading
from dataclasses import replace

import numpy as np
import pytest
import toy_generative as toy

from retrieval.bundle import Bundle
from retrieval.errors import BundleError
from retrieval.recommenders import load
from service import metrics

pytestmark = pytest.mark.anyio
URL = "/v1/recommendations"
BODY = {"history": ["i03", "i05"], "k": 5}


def ids(answer) -> list[str]:
    return [item["item_id"] for item in answer.json()["items"]]


def sources(answer) -> set[str]:
    return {item["source"] for item in answer.json()["items"]}


def counted(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture
def opened(open_client, generative):
    """Opens a client on the bundle that generates, or on another one given as `served`."""

    def open_(served=generative, app=None, **settings):
        return open_client(app={"served": served, **(app or {})}, **settings)

    return open_


def stepping(served, step):
    """The bundle with `step` around the decoder's own: called with what would be called, and its arguments."""
    decoder = copy.copy(served.generative.decoder)
    real = decoder.step
    decoder.step = lambda *arguments: step(real, *arguments)
    generator = copy.copy(served.generative)
    generator.decoder = decoder
    composed, recommender = copy.copy(served.recommender.first), copy.copy(served.recommender)
    composed._recommenders = (generator, *composed._recommenders[1:])
    recommender.first = composed
    retrievers = (generator, *served.retrievers[1:])
    return replace(served, generative=generator, recommender=recommender, retrievers=retrievers)


class Held:
    """A pool whose worker is busy until the block ends."""

    def __init__(self, client, *pools: str) -> None:
        self._workers = [client.app.state.shell.pools[pool]._worker for pool in pools]
        self._gate = threading.Event()

    def __enter__(self):
        self._busy = [worker.submit(self._gate.wait, 10) for worker in self._workers]

    def __exit__(self, *_) -> None:
        self._gate.set()
        for busy in self._busy:
            busy.result()


async def test_items_are_generated_by_the_scores_of_the_model_and_the_list_is_proven(opened):
    before = counted("sequitur_generated_lists_total", exact="true")
    async with opened() as client:
        answer = await client.post(URL, json=BODY)
        assert counted("sequitur_generated_lists_total", exact="true") > before
    assert sources(answer) == {"generated"}
    assert answer.json()["exact"] is True
    assert not answer.json()["degraded"]
    scores = toy.scores([3, 5])
    scores[[3, 5, 20]] = -np.inf  # seen, and not available
    best = np.argsort(-scores, kind="stable")[:5]
    assert ids(answer) == [f"i{row:02d}" for row in best]
    assert [item["score"] for item in answer.json()["items"]] == pytest.approx(scores[best], abs=1e-5)
    assert {"prefill", "decode", "beam"} <= set(answer.json()["timings_ms"])


async def test_a_list_that_is_not_proven_says_so(tmp_path, opened):
    narrow = toy.toy_generative(tmp_path / "narrow", generation={"beams": 1, "widen": 0})
    async with opened(load(Bundle.open(narrow))) as client:
        before = counted("sequitur_generated_lists_total", exact="false")
        answer = await client.post(URL, json={**BODY, "k": 1})
        assert counted("sequitur_generated_lists_total", exact="false") == before + 1
    assert answer.json()["exact"] is False
    assert len(ids(answer)) == 1


async def test_explained_items_come_with_the_codes_that_led_to_them_and_what_each_added(opened):
    async with opened() as client:
        answer = await client.post(URL, json={**BODY, "k": 18, "explain": True})
        plain = await client.post(URL, json=BODY)
    generated = [item for item in answer.json()["items"] if item["source"] == "generated"]
    assert len(generated) == 16
    for item in generated:
        path = item["explanation"]["path"]
        assert [step["code"] for step in path] == toy.codes().codes[int(item["item_id"][1:])].tolist()
        assert sum(step["log_probability"] for step in path) == pytest.approx(item["score"], abs=1e-5)
        assert all(step["log_probability"] <= 0 for step in path)
    (other,) = (item for item in answer.json()["items"] if item["source"] != "generated")
    assert (other["item_id"], "explanation" in other) == ("i18", False)  # it has no code
    assert all("explanation" not in item for item in plain.json()["items"])


async def test_exact_is_absent_where_nothing_was_generated(opened):
    async with opened() as client:
        for body in ({}, {"history": ["i18"]}, {**BODY, "filter": {"include_ids": ["i18"]}}):
            assert "exact" not in (await client.post(URL, json=body)).json()


async def test_what_the_generator_cannot_read_or_reach_is_the_encoders_and_no_degradation(opened):
    async with opened() as client:
        for body in ({"history": ["i18"], "k": 3}, {**BODY, "filter": {"include_ids": ["i18"]}}):
            answer = await client.post(URL, json=body)
            assert sources(answer) == {"retrieval"}
            assert answer.json()["degraded_reasons"] == []


async def test_late_generator_falls_back_to_the_encoder(opened):
    before = counted("sequitur_degraded_total", reason="generator_late")
    async with opened() as client:
        with Held(client, "generator"):
            answer = await client.post(URL, json={**BODY, "deadline_ms": 400})
    assert answer.json()["degraded_reasons"] == ["generator_late"]
    assert sources(answer) == {"retrieval"}
    assert ids(answer)[0] in {"i04", "i06"}
    assert "exact" not in answer.json()
    assert counted("sequitur_degraded_total", reason="generator_late") == before + 1


async def test_late_generator_and_late_encoder_leave_the_popular_items(opened):
    async with opened() as client:
        with Held(client, "generator", "encoder"):
            answer = await client.post(URL, json={**BODY, "deadline_ms": 100})
    assert answer.json()["degraded_reasons"] == ["generator_late", "deadline"]
    assert sources(answer) == {"popular"}


async def test_late_generator_without_an_encoder_leaves_the_popular_items(tmp_path, opened):
    alone = load(Bundle.open(toy.toy_generative(tmp_path / "alone", dense=False)))
    async with opened(alone) as client:
        assert sources(await client.post(URL, json=BODY)) == {"generated"}
        with Held(client, "generator"):
            answer = await client.post(URL, json={**BODY, "deadline_ms": 100})
        assert answer.json()["degraded_reasons"] == ["generator_late"]
        assert sources(answer) == {"popular"}
        unread = await client.post(URL, json={"history": ["i18"]})
        assert unread.json()["degraded_reasons"] == ["no_history"]


async def test_failed_generator_falls_back_to_the_encoder(opened, generative, caplog):
    is_broken = False

    def step(real, *arguments):
        if is_broken:
            raise RuntimeError("the graph is broken")
        return real(*arguments)

    async with opened(stepping(generative, step)) as client:
        is_broken = True
        answer = await client.post(URL, json=BODY)
    assert answer.json()["degraded_reasons"] == ["generator_failed"]
    assert sources(answer) == {"retrieval"}
    assert "the graph is broken" in caplog.text


async def test_a_generator_whose_numbers_are_none_falls_back_to_the_encoder(opened, generative):
    is_broken = False

    def step(real, *arguments):
        said = real(*arguments)
        return np.full_like(said, np.nan) if is_broken else said

    async with opened(stepping(generative, step)) as client:
        is_broken = True
        answer = await client.post(URL, json=BODY)
        ranked = await client.post("/v1/rankings", json={"history": ["i05"], "candidates": ["i04", "i15"]})
    assert answer.json()["degraded_reasons"] == ["generator_failed"]
    assert sources(answer) == {"retrieval"}
    assert (ranked.json()["degraded_reasons"], ranked.json()["source"]) == (["generator_failed"], "retrieval")


async def test_full_generator_falls_back_to_the_encoder_at_once(opened):
    async with opened(queue_limit=1) as client:
        pool = client.app.state.shell.pools["generator"]
        with Held(client, "generator"):
            crowd = []
            for waiting in (0, 1):  # one whose batch has left for the worker, one in the queue
                crowd.append(asyncio.create_task(client.post(URL, json=BODY)))
                while len(pool._queue) != waiting or len(crowd) > client.app.state.shell.permits.taken:
                    await asyncio.sleep(0)
            answer = await client.post(URL, json=BODY)
        assert answer.json()["degraded_reasons"] == ["generator_late"]
        assert sources(answer) == {"retrieval"}
        assert [sources(done) for done in await asyncio.gather(*crowd)] == [{"generated"}] * 2


async def test_a_search_whose_time_is_over_takes_no_further_step(opened, generative):
    ticks, steps = [1000.0], []

    def step(real, *arguments):
        steps.append(ticks[0])
        ticks[0] += step_s
        return real(*arguments)

    step_s = 0.0
    async with opened(stepping(generative, step), app={"clock": lambda: ticks[0]}, deadline_ms=1000) as client:
        for seconds, taken, reasons in ((0.1, 3, []), (0.6, 1, ["generator_late"])):
            step_s = seconds
            steps.clear()
            answer = await client.post(URL, json=BODY)
            assert (len(steps), answer.json()["degraded_reasons"]) == (taken, reasons)


async def test_a_generator_that_fails_its_warm_up_is_not_served(opened, generative):
    def step(*_):
        raise RuntimeError("no")

    with pytest.raises(BundleError, match="failed 4 of 4 warm-up requests"):
        async with opened(stepping(generative, step)):
            pytest.fail("it was served")


async def test_hybrid_candidates_come_from_both_and_the_generated_ones_are_proven(tmp_path, opened):
    hybrid = load(Bundle.open(toy.toy_generative(tmp_path / "hybrid", generation={"candidates": "hybrid"})))
    async with opened(hybrid) as client:
        answer = await client.post(URL, json={**BODY, "explain": True})
        with Held(client, "generator"):
            late = await client.post(URL, json={**BODY, "deadline_ms": 400})
    assert sources(answer) == {"generated", "retrieval"}
    assert answer.json()["exact"] is True
    assert all(("explanation" in item) == (item["source"] == "generated") for item in answer.json()["items"])
    assert (late.json()["degraded_reasons"], sources(late)) == (["generator_late"], {"retrieval"})


async def test_a_filter_holds_while_items_are_generated(opened):
    rules = {"exclude_ids": ["i06"], "categories": {"any": ["red"]}}
    async with opened() as client:
        answer = await client.post(URL, json={**BODY, "k": 10, "filter": rules})
    assert sorted(ids(answer)) == ["i09", "i12", "i15", "i18"]
    assert answer.json()["exact"] is True


async def test_callers_at_the_same_time_share_each_step_and_each_gets_its_own(opened, generative):
    waves = []

    def step(real, memory, prefix):
        waves.append(len(prefix))
        return real(memory, prefix)

    async with opened(stepping(generative, step), batch_wait_ms=200, max_batch=4) as client:
        waves.clear()
        bodies = [{"history": [f"i{n:02d}"], "k": n} for n in range(2, 6)]
        together = await asyncio.gather(*(client.post(URL, json=body) for body in bodies))
        assert waves == [4, 4, 4]
    async with opened() as client:
        alone = [await client.post(URL, json=body) for body in bodies]
    assert [ids(answer) for answer in together] == [ids(answer) for answer in alone]


async def test_rankings_are_by_the_very_numbers_that_items_are_generated_with(opened):
    async with opened() as client:
        recommended = await client.post(URL, json={**BODY, "k": 19, "exclude_seen": False})
        generated = {i["item_id"]: i["score"] for i in recommended.json()["items"] if i["source"] == "generated"}
        candidates = [*sorted(generated), "i18", "unheard of"]
        ranked = await client.post("/v1/rankings", json={"history": BODY["history"], "candidates": candidates})
    assert (ranked.json()["source"], ranked.json()["degraded"]) == ("generated", False)
    known = {item["item_id"]: item["score"] for item in ranked.json()["items"] if item["known"]}
    assert known == pytest.approx(generated, abs=1e-6)
    assert ids(ranked)[:18] == list(generated)
    assert ids(ranked)[18:] == ["i18", "unheard of"]
    assert [item["known"] for item in ranked.json()["items"]][18:] == [False, False]


async def test_late_rankings_fall_back_to_the_encoder_and_then_to_popularity(opened):
    body = {"history": ["i05"], "candidates": ["i15", "i04", "unheard of"]}
    async with opened() as client:
        with Held(client, "generator"):
            by_encoder = await client.post("/v1/rankings", json={**body, "deadline_ms": 400})
        with Held(client, "generator", "encoder"):
            by_popularity = await client.post("/v1/rankings", json={**body, "deadline_ms": 100})
    assert (by_encoder.json()["source"], ids(by_encoder)[0]) == ("retrieval", "i04")
    assert by_encoder.json()["degraded_reasons"] == ["generator_late"]
    assert (by_popularity.json()["source"], ids(by_popularity)[0]) == ("popular", "i04")
    assert by_popularity.json()["degraded_reasons"] == ["generator_late", "deadline"]


async def test_a_new_item_is_generated_in_the_very_next_cold_start_answer_and_gone_in_the_next(opened):
    lane = {**BODY, "filter": {"new_only": True}, "explain": True}
    async with opened() as client:
        assert ids(await client.post(URL, json=lane)) == []
        told = await client.put(
            "/v1/items/new", json={"attributes": {"title": "Item 7", "categories": ["blue", "all"]}}
        )
        assert told.status_code == 201
        answer = await client.post(URL, json=lane)
        assert (ids(answer), sources(answer), answer.json()["exact"]) == (["new"], {"generated"}, True)
        assert len(answer.json()["items"][0]["explanation"]["path"]) == 3
        ranked = await client.post("/v1/rankings", json={"history": ["i05"], "candidates": ["new"]})
        assert ranked.json()["items"][0]["known"] is True
        about = (await client.get("/v1/model")).json()
        assert (about["kind"], about["edition"], about["catalog_items"]) == ("generative", 1, 21)
        assert about["generation"]["beams"] == 8
        assert (await client.delete("/v1/items/new")).status_code == 204
        assert ids(await client.post(URL, json=lane)) == []


@pytest.mark.parametrize("pool", ["generator", "encoder"])
async def test_an_old_request_finishes_on_its_edition(opened, generative, served, pool):
    bundle = {"generator": generative, "encoder": served}[pool]
    async with opened(bundle) as client:
        first = ids(await client.post(URL, json=BODY))
        with Held(client, pool):
            old = asyncio.create_task(client.post(URL, json=BODY))
            queue = client.app.state.shell.pools[pool]
            while not client.app.state.shell.permits.taken or queue._queue:
                await asyncio.sleep(0)
            assert (await client.delete(f"/v1/items/{first[0]}")).status_code == 204
            new = asyncio.create_task(client.post(URL, json=BODY))
        assert ids(await old) == first
        assert ids(await new)[:4] == first[1:]
