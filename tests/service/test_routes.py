"""What the wire shows: errors of the framework, the simple form, and keys."""

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


async def test_the_simple_form_answers_the_same_as_the_long_one_and_changes_nothing(client):
    await client.post("/v1/events", json={"events": [{"user_id": "u", "item_id": "i03"}]})
    before = (await client.get("/v1/users/u/history")).json()
    simple = (await client.get("/v1/users/u/recommendations", params={"k": 4})).json()
    long = (await client.post(URL, json={"user_id": "u", "k": 4})).json()
    assert simple["items"] == long["items"]
    assert simple["recommendation_id"] != long["recommendation_id"]
    assert (await client.get("/v1/users/u/history")).json() == before
    assert len((await client.get("/v1/users/u/recommendations")).json()["items"]) == 18  # k defaults to 20


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
