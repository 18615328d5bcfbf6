"""What the wire shows: the body's form, errors of the framework, keys, probes and pages."""

import asyncio
import hashlib

import pytest

pytestmark = pytest.mark.anyio
URL = "/v1/recommendations"


def is_problem(answer, status: int, code: str) -> bool:
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(body) - {"errors"} == {"type", "title", "status", "detail", "code", "request_id"}
    assert body["request_id"] == answer.headers["x-request-id"]
    return (answer.status_code, body["status"], body["code"]) == (status, status, code)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/static/nothing.js", 404, "not_found"),
        ("PUT", "/v1/events", 405, "method_not_allowed"),
        ("GET", "/v1/users/u/recommendations?k=0", 422, "invalid_request"),
        ("GET", "/v1/users/u/recommendations?k=501", 422, "invalid_request"),
        ("GET", "/v1/users/u/recommendations?k=many", 422, "invalid_request"),
        ("GET", f"/v1/users/{'u' * 257}/history", 422, "invalid_request"),
        ("DELETE", "/v1/users/", 422, "invalid_request"),
        ("GET", "/v1/items//similar", 422, "invalid_request"),
    ],
)
async def test_what_the_framework_refuses_is_a_problem_too(client, method, path, status, code):
    assert is_problem(await client.request(method, path), status, code)


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"k": 1} x', b'{"user_id": "\xff"}', b'{"user_id": "\\ud800"}', b"[" * 5000]
)
async def test_a_body_that_is_not_json_is_400(client, content):
    answer = await client.post(URL, content=content)
    assert is_problem(answer, 400, "malformed_json")


@pytest.mark.parametrize("content", [b"[]", b"null", b"1", b'"text"'])
async def test_json_that_is_no_object_is_422(client, content):
    assert is_problem(await client.post(URL, content=content), 422, "invalid_request")


async def test_a_body_that_says_it_is_something_else_is_415(client):
    answer = await client.post(URL, content=b"{}", headers={"content-type": "application/x-www-form-urlencoded"})
    assert is_problem(answer, 415, "unsupported_media_type")
    for accepted in ("application/json; charset=utf-8", "application/ld+json"):
        assert (await client.post(URL, content=b"{}", headers={"content-type": accepted})).status_code == 200


async def test_a_body_over_1_mib_is_413_and_names_the_limit(client):
    answer = await client.post("/v1/events", content=b" " * (1 << 20) + b"{}")
    assert is_problem(answer, 413, "body_too_large")
    assert "1048576 bytes" in answer.json()["detail"]


async def test_several_errors_are_all_named(client):
    answer = await client.post(URL, json={"k": 0, "colour": "red"})
    assert {error["loc"] for error in answer.json()["errors"]} == {"k", "colour"}


async def test_the_simple_form_answers_the_same_as_the_long_one_and_changes_nothing(client):
    await client.post("/v1/events", json={"events": [{"user_id": "u", "item_id": "i03"}]})
    before = (await client.get("/v1/users/u/history")).json()
    simple = (await client.get("/v1/users/u/recommendations", params={"k": 4})).json()
    long = (await client.post(URL, json={"user_id": "u", "k": 4})).json()
    assert simple["items"] == long["items"]
    assert simple["recommendation_id"] != long["recommendation_id"]
    assert (await client.get("/v1/users/u/history")).json() == before
    assert len((await client.get("/v1/users/u/recommendations")).json()["items"]) == 18  # k defaults to 20


async def test_the_model_tells_what_is_being_served(client, served):
    about = (await client.get("/v1/model")).json()
    assert about["digest"] == served.bundle.digest
    assert (about["name"], about["kind"], about["catalog_items"], about["window"]) == ("toy", "encoder", 20, 10)
    assert about["metrics"] == {"loo": {"recall@10": 0.5}}
    assert about["index"] == {"kind": "exact", "served": "exact"}


async def test_probes(client, open_client, away_store):
    assert (await client.get("/livez")).json() == {"status": "alive"}
    assert (await client.get("/readyz")).json()["store"] == "ok"
    async with open_client(app={"store": away_store}) as degraded:
        answer = await degraded.get("/readyz")
        assert (answer.status_code, answer.json()["store"]) == (200, "away")


async def test_before_and_after_its_life_the_service_is_alive_and_not_ready(client):
    client.app.state.shell = None
    assert (await client.get("/livez")).status_code == 200
    for answer in (await client.get("/readyz"), await client.post(URL, json={}), await client.get("/v1/model")):
        assert is_problem(answer, 503, "not_ready")


async def test_a_service_whose_batcher_died_is_not_ready(client):
    owner = client.app.state.shell.pools["encoder"]._owner
    owner.cancel()
    await asyncio.wait([owner])
    assert is_problem(await client.get("/readyz"), 503, "not_ready")


async def test_metrics_are_counted_by_template_and_code_and_hold_no_id(client):
    await client.get("/v1/users/somebody-special/recommendations")
    await client.get("/v1/users/somebody-special/recommendations?k=0")
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    route = 'route="/v1/users/{user_id}/recommendations"'
    for code in (200, 422):
        assert f'sequitur_requests_total{{code="{code}",method="GET",{route}}}' in answer.text
    assert f"sequitur_request_seconds_count{{{route}}}" in answer.text
    assert "special" not in answer.text


@pytest.fixture
def keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(
        "".join(
            f"{name}:{scopes}:{hashlib.sha256(name.encode()).hexdigest()}\n"
            for name, scopes in (("reader", "read"), ("shop", "read,write"), ("prometheus", "metrics"))
        )
    )
    return path


async def test_keys_guard_everything_but_probes_and_pages(open_client, keys):
    async with open_client(api_keys_file=keys, client="10.0.0.1") as client:
        for path in ("/livez", "/readyz", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        for path in ("/v1/model", "/metrics", "/nowhere"):
            assert is_problem(await client.get(path), 401, "unauthenticated")
        reader, shop = {"authorization": "Bearer reader"}, {"x-api-key": "shop"}
        event = {"events": [{"user_id": "u", "item_id": "i01"}]}
        assert (await client.post(URL, json={}, headers=reader)).status_code == 200
        assert is_problem(await client.post("/v1/events", json=event, headers=reader), 403, "forbidden")
        assert (await client.post("/v1/events", json=event, headers=shop)).status_code == 202
        assert is_problem(await client.get("/metrics", headers=shop), 403, "forbidden")
        assert (await client.get("/metrics", headers={"authorization": "bearer prometheus"})).status_code == 200


async def test_the_docs_ask_nobody_else_for_anything(client):
    page = await client.get("/docs")
    script = await client.get("/static/docs.js")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for text in (page.text, script.text, (await client.get("/static/docs.css")).text):
        assert "http://" not in text
        assert "https://" not in text
