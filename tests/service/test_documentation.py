"""The OpenAPI document says what the service does."""

import json
import re

import pytest

from service.errors import TABLE

pytestmark = pytest.mark.anyio


async def document(client) -> dict:
    return (await client.get("/openapi.json")).json()


async def test_every_call_of_this_version_is_described(client):
    paths = (await document(client))["paths"]
    calls = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert calls == {
        ("POST", "/v1/recommendations"),
        ("GET", "/v1/users/{user_id}/recommendations"),
        ("GET", "/v1/users/{user_id}/history"),
        ("DELETE", "/v1/users/{user_id}"),
        ("POST", "/v1/rankings"),
        ("GET", "/v1/items/{item_id}/similar"),
        ("GET", "/v1/items/{item_id}"),
        ("PUT", "/v1/items/{item_id}"),
        ("DELETE", "/v1/items/{item_id}"),
        ("POST", "/v1/events"),
        ("GET", "/v1/recommendations/{recommendation_id}/next"),
        ("POST", "/v1/users/merge"),
        ("GET", "/v1/admin/bundles"),
        ("POST", "/v1/admin/bundles/activate"),
        ("POST", "/v1/admin/bundles/rollback"),
        ("GET", "/v1/model"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/metrics"),
    }
    for methods in paths.values():
        for call in methods.values():
            assert call["summary"]
            assert call["description"]


async def test_every_reference_leads_somewhere(client):
    described = await document(client)
    for name in set(re.findall(r"#/components/schemas/([^\"]+)", json.dumps(described))):
        assert name in described["components"]["schemas"], name


async def test_errors_are_declared_as_problems_with_statuses_of_the_table(client):
    known = {str(status) for status, _ in TABLE.values()}
    for path, methods in (await document(client))["paths"].items():
        for call in methods.values():
            errors = {status: answer for status, answer in call["responses"].items() if status >= "400"}
            assert set(errors) <= known
            for answer in errors.values():
                assert list(answer["content"]) == ["application/problem+json"]
            if path.startswith("/v1"):
                assert {"401", "403", "500", "503"} <= set(errors)


async def test_examples_are_accepted(client):
    described = (await document(client))["components"]["schemas"]
    for method, path, name in (
        ("POST", "/v1/recommendations", "RecommendationRequest"),
        ("POST", "/v1/rankings", "RankingRequest"),
        ("POST", "/v1/events", "EventsRequest"),
        ("PUT", "/v1/items/new", "ItemRequest"),
    ):
        answer = await client.request(method, path, json=described[name]["example"])
        assert answer.status_code < 300, answer.text
