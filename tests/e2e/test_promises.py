"""The promises of the contract's REST chapter that this version makes, one test each, in the contract's own words.

They are kept by the whole application over the toy bundle; the details of each have tests of their own below
`tests/service/`.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import toy_ranker
from fastapi import FastAPI
from toy_generative import toy_generative

from retrieval.bundle import Bundle
from retrieval.queries import NOTHING
from retrieval.recommenders import Composed, Served, TwoStage, load
from service.app import create_app
from service.errors import StoreUnavailable
from service.settings import Settings

Asked = Callable[..., list[httpx.Response]]


@pytest.fixture(scope="module")
def served(toy_bundle: Path) -> Served:
    return load(Bundle.open(toy_bundle))


@pytest.fixture(scope="module")
def generative(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return load(Bundle.open(toy_generative(tmp_path_factory.mktemp("generative") / "toy")))


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return load(Bundle.open(toy_ranker.write(tmp_path_factory.mktemp("ranked") / "toy")))


@pytest.fixture
def ask(served: Served) -> Asked:
    """Sends requests, one after the other, to one fresh service: `ask(("GET", path), ("POST", path, body))`."""

    def asked(
        *requests: tuple[Any, ...], store: Any = None, headers: Any = None, of: Served = served, **settings: Any
    ) -> list[httpx.Response]:
        async def told() -> list[httpx.Response]:
            chosen = Settings(**{"store": "memory://", "deadline_ms": 5_000, **settings})
            app = create_app(chosen, served=of, store=store)
            transport = httpx.ASGITransport(app)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=transport, base_url="http://s", headers=headers) as http,
            ):
                return [
                    await http.request(method, path, json=body[0] if body else None) for method, path, *body in requests
                ]

        return asyncio.run(told())

    return asked


def events(*item_ids: str, user_id: str = "anna", **more: Any) -> tuple[Any, ...]:
    return ("POST", "/v1/events", {"events": [{"user_id": user_id, "item_id": item, **more} for item in item_ids]})


def ids(answer: httpx.Response) -> list[str]:
    return [item["item_id"] for item in answer.json()["items"]]


RECOMMEND = "/v1/recommendations"


def test_unknown_users_and_unknown_items_in_a_history_are_never_an_error(ask):
    answers = ask(
        ("POST", RECOMMEND, {"user_id": "nobody", "history": ["nothing", "i05"]}),
        ("GET", "/v1/users/nobody/recommendations"),
        ("GET", "/v1/users/nobody/history"),
        ("DELETE", "/v1/users/nobody"),
        events("nothing"),
    )
    assert [answer.status_code for answer in answers] == [200, 200, 200, 204, 202]


def test_up_to_500_events_202_with_a_result_per_event(ask):
    many, too_many = ask(events(*["i01"] * 500), events(*["i01"] * 501))
    assert (many.status_code, len(many.json()["results"])) == (202, 500)
    assert too_many.status_code == 422
    assert "500" in too_many.json()["detail"]


def test_event_id_de_duplicates(ask):
    once, again, history = ask(
        events("i01", event_id="e"), events("i01", event_id="e"), ("GET", "/v1/users/anna/history")
    )
    assert [answer.json()["results"][0]["outcome"] for answer in (once, again)] == ["accepted", "duplicate"]
    assert len(history.json()["events"]) == 1


def test_an_event_is_visible_to_the_very_next_recommendation(ask):
    _, answer = ask(events("i05"), ("GET", "/v1/users/anna/recommendations?k=1"))
    assert ids(answer)[0] in {"i04", "i06"}


def test_the_get_form_is_side_effect_free(ask):
    _, before, _, after = ask(
        events("i05"),
        ("GET", "/v1/users/anna/history"),
        ("GET", "/v1/users/anna/recommendations"),
        ("GET", "/v1/users/anna/history"),
    )
    assert before.json() == after.json()


def test_k_is_1_to_500_and_20_when_left_out(ask):
    answers = ask(*(("POST", RECOMMEND, {"k": k, "exclude_seen": False}) for k in (1, 500)), ("POST", RECOMMEND, {}))
    assert [len(ids(answer)) for answer in answers] == [1, 19, 19]  # nineteen are available
    for refused in ask(*(("POST", RECOMMEND, {"k": k}) for k in (0, 501))):
        assert refused.status_code == 422


def test_exactly_k_items_whenever_k_are_eligible_even_with_a_strict_filter(ask):
    red = {"categories": {"any": ["red"]}, "exclude_ids": ["i06"]}
    (answer,) = ask(("POST", RECOMMEND, {"history": ["i10"], "k": 5, "filter": red}))
    assert sorted(ids(answer)) == ["i03", "i09", "i12", "i15", "i18"]


def test_never_an_id_outside_the_catalogue_or_the_filter_and_never_a_duplicate(ask):
    (answer,) = ask(("POST", RECOMMEND, {"history": ["i05"], "filter": {"include_ids": ["i07", "i07", "x", "i20"]}}))
    assert ids(answer) == ["i07"]


def test_exclude_seen_is_the_models_word_unless_the_caller_says_otherwise(ask):
    default, told = ask(
        ("POST", RECOMMEND, {"history": ["i05"]}), ("POST", RECOMMEND, {"history": ["i05"], "exclude_seen": False})
    )
    assert "i05" not in ids(default)
    assert "i05" in ids(told)


def test_consent_false_means_that_nothing_is_read_or_stored(ask):
    body = {"user_id": "anna", "history": ["i15"], "consent": False, "k": 18}
    _, answer, history = ask(events("i05"), ("POST", RECOMMEND, body), ("GET", "/v1/users/anna/history"))
    assert "i05" in ids(answer)  # what is remembered of her was not read
    assert [event["item_id"] for event in history.json()["events"]] == ["i05"]


def test_the_answer_has_the_fields_of_the_contract(ask):
    (answer,) = ask(("POST", RECOMMEND, {"history": ["i05"], "k": 1}))
    body = answer.json()
    assert set(body) == {
        "recommendation_id", "items", "next", "model", "degraded", "degraded_reasons", "timings_ms"
    }  # fmt: skip
    assert set(body["items"][0]) == {"item_id", "score", "rank", "source", "reason", "attributes"}
    assert set(body["model"]) == {"name", "bundle", "variant"}
    sent = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert {stage: float(ms) for stage, ms in sent.items()} == body["timings_ms"]


def test_exact_where_a_beam_search_can_prove_it_and_a_reason_per_item(ask, generative):
    (answer,) = ask(("POST", RECOMMEND, {"history": ["i05"], "k": 3, "explain": True}), of=generative)
    assert answer.json()["exact"] is True
    for item in answer.json()["items"]:
        assert item["source"] == "generated"
        assert item["reason"] == {"kind": "near", "item_id": "i05"}
        shares = [step["log_probability"] for step in item["explanation"]["path"]]
        assert sum(shares) == pytest.approx(item["score"], abs=1e-5)


def test_generative_model_over_its_time_then_the_encoder(ask, generative):
    class Slow:
        def __getattr__(self, name: str) -> Any:
            return getattr(generative.generative, name)

        def recommend(self, queries: Any, stage: Any) -> Any:
            if queries[0].request.history.rows.tolist() != [5]:  # the warm-up
                return generative.generative.recommend(queries, stage)
            while all(query.in_time() for query in queries):
                time.sleep(0.005)  # what a search does between two looks at the clock
            return [NOTHING] * len(queries)

    stages = generative.recommender
    two_stage = TwoStage(Composed(Slow(), generative.dense.first), stages.ranker, stages.arranger)
    slow = replace(generative, recommender=two_stage)
    (answer,) = ask(("POST", RECOMMEND, {"history": ["i05"], "deadline_ms": 1500}), of=slow)
    assert answer.status_code == 200
    assert answer.json()["degraded_reasons"] == ["generator_late"]
    assert ids(answer)[0] in {"i04", "i06"}


def test_rankings_order_the_callers_own_candidates_and_unknown_ids_come_last_flagged(ask, generative):
    for of in ({}, {"of": generative}):
        recommended, ranked = ask(
            ("POST", RECOMMEND, {"history": ["i05"], "k": 4}),
            ("POST", "/v1/rankings", {"history": ["i05"], "candidates": ["i10", "nothing", "i06", "i04"]}),
            **of,
        )
        assert ids(ranked)[-1] == "nothing"
        assert [item["known"] for item in ranked.json()["items"]] == [True, True, True, False]
        scores = {item["item_id"]: item["score"] for item in recommended.json()["items"]}
        for item in ranked.json()["items"]:
            if item["item_id"] in scores:
                assert item["score"] == pytest.approx(scores[item["item_id"]], abs=1e-6)


def test_a_new_or_changed_item_is_effective_on_the_next_request_and_so_is_its_removal(ask, generative):
    lane = ("POST", RECOMMEND, {"history": ["i05"], "filter": {"new_only": True}})
    new = {"attributes": {"title": "Item 7", "categories": ["blue", "all"]}}
    for of in ({}, {"of": generative}):
        before, put, there, removed, gone, back, again = ask(
            lane,
            ("PUT", "/v1/items/n", new),
            lane,
            ("DELETE", "/v1/items/n"),
            lane,
            ("PUT", "/v1/items/n", {}),
            lane,
            **of,
        )
        assert [answer.status_code for answer in (put, removed, back)] == [201, 204, 200]
        assert [ids(answer) for answer in (before, there, gone, again)] == [[], ["n"], [], ["n"]]
        assert back.json()["attributes"] == new["attributes"]


def test_see_and_erase_everywhere(ask):
    *_, seen, erased, gone, recommended = ask(
        events("i05", event_id="e"),
        ("GET", "/v1/users/anna/history"),
        ("DELETE", "/v1/users/anna"),
        ("GET", "/v1/users/anna/history"),
        ("GET", "/v1/users/anna/recommendations"),
    )
    assert len(seen.json()["events"]) == 1
    assert erased.status_code == 204
    assert gone.json()["events"] == []
    assert recommended.json()["degraded_reasons"] == ["no_history"]


def test_item_to_item(ask):
    (answer,) = ask(("GET", "/v1/items/i05/similar?k=2"))
    assert set(ids(answer)) == {"i04", "i06"}


def test_the_model_says_bundle_digest_data_dates_catalogue_size_and_quality(ask, served):
    about = ask(("GET", "/v1/model"))[0].json()
    assert about["digest"] == served.bundle.digest
    assert {"first", "last"} <= set(about["data"])
    assert (about["catalog_items"], about["metrics"]["loo"]["recall@10"]) == (20, 0.5)


def test_errors_are_problems_everywhere_and_the_openapi_file_declares_them(ask):
    *refused, document = ask(
        ("GET", "/nowhere"),
        ("PATCH", RECOMMEND),
        ("POST", RECOMMEND, {"k": 0}),
        ("GET", "/v1/items/nothing/similar"),
        ("GET", "/openapi.json"),
    )
    for answer in refused:
        assert answer.headers["content-type"] == "application/problem+json"
        assert set(answer.json()) >= {"type", "title", "status", "detail", "code", "request_id"}
    declared = document.json()["paths"][RECOMMEND]["post"]["responses"]
    assert {"400", "401", "403", "413", "415", "422", "500", "503", "504"} <= set(declared)


@pytest.mark.parametrize(
    ("request_", "status", "limit"),
    [
        (("POST", RECOMMEND, {"user_id": "x" * (1 << 20)}), 413, "1048576 bytes"),
        (("POST", RECOMMEND, {"user_id": "x" * 257}), 422, "256"),
        (("POST", RECOMMEND, {"history": ["i01"] * 1001}), 422, "1000"),
        (("POST", RECOMMEND, {"k": 501}), 422, "500"),
        (("GET", "/v1/users/anna/recommendations?k=501"), 422, "500"),
        (("GET", f"/v1/users/{'x' * 257}/history"), 422, "256"),
        (("POST", RECOMMEND, {"history": ["x" * 257]}), 422, "256"),
        (("POST", RECOMMEND, {"filter": {"include_ids": ["i01"] * 10_001}}), 422, "10000"),
        (("POST", RECOMMEND, {"context": {str(n): n for n in range(33)}}), 422, "32"),
        (("POST", RECOMMEND, {"deadline_ms": 10_001}), 422, "10000"),
        (("POST", RECOMMEND, {"diversity": 1.5}), 422, "1"),
        (("POST", "/v1/rankings", {"candidates": [str(n) for n in range(501)]}), 422, "500"),
        (("POST", "/v1/events", {"events": [{"user_id": "a", "item_id": "x" * 257}]}), 422, "256"),
        (("PUT", "/v1/items/n", {"attributes": {str(n): n for n in range(33)}}), 422, "32"),
        (("POST", "/v1/users/merge", {"from": "x" * 257, "into": "a"}), 422, "256"),
        (("GET", "/v1/recommendations/x/next?k=501"), 422, "500"),
    ],
)
def test_beyond_a_limit_the_answer_names_it(ask, request_, status, limit):
    (answer,) = ask(request_)
    assert answer.status_code == status
    assert limit in answer.json()["detail"]


def test_at_the_limits_all_is_well(ask):
    (answer,) = ask(("POST", RECOMMEND, {"user_id": "x" * 256, "history": ["i01"] * 1000, "k": 500}))
    assert answer.status_code == 200


def test_api_keys_on_everything_but_probes(ask, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"shop:read,write,metrics:{hashlib.sha256(b'secret').hexdigest()}\n")
    calls = [("GET", "/livez"), ("GET", "/readyz"), ("GET", "/v1/model"), ("GET", "/metrics"), ("POST", RECOMMEND, {})]
    without = ask(*calls, api_keys_file=keys)
    assert [answer.status_code for answer in without] == [200, 200, 401, 401, 401]
    within = ask(*calls, api_keys_file=keys, headers={"authorization": "Bearer secret"})
    assert [answer.status_code for answer in within] == [200] * 5


@asynccontextmanager
async def with_one_permit(served: Served) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    """A running service that works on one request at a time, and a client of it."""
    app = create_app(Settings(store="memory://", max_in_flight=1, batch_wait_ms=50, deadline_ms=5_000), served=served)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as http,
    ):
        yield app, http


def test_overload_is_503_with_retry_after_before_any_work_is_done(served):
    async def told() -> list[httpx.Response]:
        async with with_one_permit(served) as (_, http):
            return await asyncio.gather(*(http.post(RECOMMEND, json={"history": ["i05"]}) for _ in range(4)))

    answers = asyncio.run(told())
    assert sorted(answer.status_code for answer in answers) == [200, 503, 503, 503]
    assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status_code == 503)


def test_overload_is_said_before_a_body_is_even_parsed(served):
    async def told() -> list[httpx.Response]:
        async with with_one_permit(served) as (app, http):
            busy = asyncio.create_task(http.post(RECOMMEND, json={"history": ["i05"]}))
            while not app.state.shell.permits.taken:
                await asyncio.sleep(0)
            return [await http.post(RECOMMEND, content="{no json"), await busy]

    refused, answered = asyncio.run(told())
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert answered.status_code == 200


def test_degradation_in_order_each_visible(ask):
    class Away:
        name, durable = "away", False

        async def open(self) -> None: ...
        async def close(self) -> None: ...

        async def columns(self, _user_id: str) -> Any:
            raise StoreUnavailable("history", "it is away")

        async def item_changes(self, _since: int = 0) -> Any:
            raise StoreUnavailable("item_changes", "it is away")

        async def announced(self, _name: str) -> Any:
            raise StoreUnavailable("announced", "it is away")

    body, nothing, late = ask(
        ("POST", RECOMMEND, {"user_id": "anna", "history": ["i05"], "k": 1}),
        ("POST", RECOMMEND, {"user_id": "anna", "k": 1}),
        ("GET", "/metrics"),
        store=Away(),
    )
    assert body.json()["degraded_reasons"] == ["store_unavailable"]  # history from the body
    assert ids(body)[0] in {"i04", "i06"}
    assert nothing.json()["degraded_reasons"] == ["store_unavailable", "no_history"]  # popular
    assert ids(nothing) == ["i01"]
    for reason in ("store_unavailable", "no_history"):
        assert f'sequitur_degraded_total{{reason="{reason}"}}' in late.text


def test_deadline_near_then_the_ranker_is_skipped_visibly(ask, ranked, monkeypatch):
    body = {"history": ["i05"], "k": 3, "explain": True}
    in_time, plain = ask(("POST", RECOMMEND, body), ("POST", RECOMMEND, {**body, "deadline_ms": 4_000}), of=ranked)
    assert in_time.json()["degraded_reasons"] == []
    assert in_time.json()["ranking"]["ranked"] == plain.json()["ranking"]["ranked"] > 0
    monkeypatch.setattr("service.pace.Pace.affordable", lambda *_: 0)  # there is time for no candidate
    late, metrics = ask(("POST", RECOMMEND, body), ("GET", "/metrics"), of=ranked)
    assert (len(ids(late)), late.json()["degraded_reasons"]) == (3, ["ranker_late"])
    assert late.json()["ranking"]["ranked"] == 0
    assert 'sequitur_degraded_total{reason="ranker_late"}' in metrics.text


def test_deadline_passed_with_nothing_to_show_is_504(ask):
    with_history, without = ask(
        ("POST", RECOMMEND, {"history": ["i05"], "deadline_ms": 1e-6}), ("POST", RECOMMEND, {"deadline_ms": 1e-6})
    )
    for answer in (with_history, without):
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")


def test_placements_have_defaults_of_their_own_and_the_body_stands_in_place_of_them(ask, tmp_path):
    file = tmp_path / "placements.toml"
    file.write_text('[shelf]\nk = 3\nexclude_seen = false\nfilter = {categories = {any = ["red"]}}\n')
    body = {"history": ["i06"], "placement": "shelf"}
    own, simple, other, unknown = ask(
        ("POST", RECOMMEND, body),
        ("GET", "/v1/users/anna/recommendations?placement=shelf"),
        ("POST", RECOMMEND, {**body, "k": 2, "exclude_seen": True, "filter": {"include_ids": ["i05", "i06"]}}),
        ("POST", RECOMMEND, {"placement": "shelve"}),
        placements=file,
    )
    assert (ids(own)[0], len(ids(own)), len(ids(simple))) == ("i06", 3, 3)
    assert all(int(item_id[1:]) % 3 == 0 for item_id in ids(own) + ids(simple))
    assert ids(other) == ["i05"]
    assert (unknown.status_code, "use shelf" in unknown.json()["detail"]) == (422, True)


def test_a_new_item_is_found_where_its_words_are_and_said_to_be_described_and_one_without_words_as_before(ask):
    lane = {"history": ["i07"], "filter": {"new_only": True}}
    *_, found, similar = ask(
        ("PUT", "/v1/items/alike", {"attributes": {"title": "Item 7", "categories": ["blue"]}}),
        ("PUT", "/v1/items/bare", {"attributes": {"price": 7}}),
        ("POST", RECOMMEND, lane),
        ("GET", "/v1/items/alike/similar?k=3"),
    )
    items = {item["item_id"]: item for item in found.json()["items"]}
    assert {name: item["source"] for name, item in items.items()} == {"alike": "described", "bare": "retrieval"}
    assert items["alike"]["reason"] == {"kind": "near", "item_id": "i07"}
    assert "reason" not in items["bare"]
    assert (found.json()["degraded"], len(ids(similar))) == (False, 3)


def test_placements_with_goals_and_diversity_of_their_own(ask, ranked, tmp_path):
    file = tmp_path / "placements.toml"
    file.write_text("[cheap]\ngoals = {click = 1}\n[dear]\ngoals = {like = 1}\ndiversity = 0.5\n")
    body = {"history": ["i05"], "k": 5, "explain": True, "exclude_seen": False}
    cheap, dear, own, far = ask(
        ("POST", RECOMMEND, {**body, "placement": "cheap"}),
        ("POST", RECOMMEND, {**body, "placement": "dear"}),
        ("POST", RECOMMEND, {**body, "placement": {"goals": {"click": 1, "like": 0.5}}}),
        ("POST", RECOMMEND, {**body, "diversity": 1.0}),
        of=ranked,
        placements=file,
    )
    assert cheap.json()["ranking"]["formula"] == "1 * click"
    assert dear.json()["ranking"]["formula"] == "1 * like"
    assert own.json()["ranking"]["formula"] == "1 * click + 0.5 * like"
    assert ids(cheap) != ids(dear)
    assert len({*ids(far)}) == 5


def test_next_page_of_a_frozen_list_no_repeats_no_gaps_whatever_happens_meanwhile(served):
    async def told() -> tuple[list[str], list[str], httpx.Response]:
        app = create_app(Settings(store="memory://", deadline_ms=5_000), served=served)
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://s") as http,
        ):
            whole = await http.post(RECOMMEND, json={"history": ["i05"], "k": 18})
            page = await http.post(RECOMMEND, json={"user_id": "anna", "history": ["i05"], "k": 5})
            listed = ids(page)
            while page.json()["next"]:
                await http.post("/v1/events", json={"events": [{"user_id": "anna", "item_id": listed[-1]}]})
                page = await http.get(page.json()["next"])
                listed += ids(page)
            return listed, ids(whole), await http.get("/v1/recommendations/nobody/next?k=5")

    listed, whole, gone = asyncio.run(told())
    assert listed == whole
    assert (gone.status_code, gone.json()["code"]) == (404, "list_gone")


def test_merge_anonymous_into_signed_in(ask):
    merge = ("POST", "/v1/users/merge", {"from": "visitor", "into": "anna"})
    *_, merged, again, one, other = ask(
        events("i05", user_id="visitor", event_id="e", timestamp=5),
        events("i07", timestamp=7),
        events("i05", event_id="e", timestamp=5),
        merge,
        merge,
        ("GET", "/v1/users/visitor/history"),
        ("GET", "/v1/users/anna/history"),
    )
    assert merged.json()["user_id"] == "anna"
    assert again.json() == {"user_id": "anna", "moved": 0}
    assert one.json()["events"] == []
    assert [event["item_id"] for event in other.json()["events"]] == ["i05", "i07"]


def test_another_model_than_those_that_are_served_is_named(ask):
    (other,) = ask(("POST", RECOMMEND, {"model": "another"}))
    assert "'another' is not served here" in other.json()["detail"]
