"""Cases drawn from an OpenAPI document: of every call, within it and against it."""

import pytest

from loadtests import drawings

DOCUMENT = {
    "openapi": "3.1.0",
    "info": {"title": "t", "version": "1"},
    "paths": {
        "/v1/things/{name}": {
            "get": {
                "parameters": [
                    {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}},
                    {"name": "k", "in": "query", "schema": {"type": "integer", "minimum": 1}},
                ],
                "responses": {"200": {"description": "."}},
            }
        },
        "/v1/things": {
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": {"type": "object", "properties": {"k": {"type": "integer"}}, "required": ["k"]}
                        }
                    },
                },
                "responses": {"200": {"description": "."}},
            }
        },
        "/livez": {"get": {"responses": {"200": {"description": "."}}}},
    },
}


@pytest.fixture(scope="module")
def cases():
    return drawings.drawn(DOCUMENT, seed=1, count=60, headers={"authorization": "Bearer key"})


def test_every_call_is_asked(cases):
    asked = {case.parts[0].split(b"?")[0].split(b" ")[1][:10] for case in cases}
    assert {b"/v1/things", b"/livez"} <= asked
    assert {case.family for case in cases} == {drawings.FAMILY}
    assert 20 <= len(cases) <= 60


def test_they_are_whole_requests_with_the_key_and_one_length(cases):
    for case in cases:
        (raw,) = case.parts
        head = raw.split(b"\r\n\r\n")[0].lower()
        assert head.split(b"\r\n")[0].endswith(b"http/1.1")
        assert head.count(b"\r\nauthorization: bearer key") == 1
        assert head.count(b"\r\ncontent-length:") <= 1


def test_the_same_seed_draws_the_same(cases):
    assert drawings.drawn(DOCUMENT, seed=1, count=60, headers={"authorization": "Bearer key"}) == cases
