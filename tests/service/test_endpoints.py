"""What the wire shows of bodies: their form, their size, and all that is wrong with them."""

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
