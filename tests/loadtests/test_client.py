"""Whatever happens to a request is an outcome."""

import asyncio
import socket

import pytest
from containers import free_port

from loadtests.client import connected
from loadtests.target import LoadError


def post(url, body, *, timeout_s=5.0):
    async def once():
        async with connected(url, connections=1, timeout_s=timeout_s) as client:
            return await client.post("/v1/recommendations", body)

    return asyncio.run(once())


def test_an_answer_is_its_status_and_its_body(fake_service):
    fake = fake_service(3)
    got = post(fake.url, {"k": 2})
    assert (got.code, got.is_ok) == ("200", True)
    assert [item["item_id"] for item in got.body["items"]] == ["f0", "f1"]


def test_a_problem_is_no_success(fake_service):
    fake = fake_service()
    fake.recommend = lambda _body: (503, {"code": "overloaded"})
    got = post(fake.url, {"k": 2})
    assert (got.code, got.is_ok, got.body) == ("503", False, {"code": "overloaded"})


def test_a_torn_answer_is_no_success(fake_service):
    fake = fake_service()
    fake.recommend = lambda _body: (200, b'{"items": [')
    assert post(fake.url, {"k": 2}).code == "torn"


def test_nobody_there_is_an_outcome():
    got = post(f"http://127.0.0.1:{free_port()}", {})
    assert not got.is_ok
    assert "Connect" in got.code


def test_a_server_that_never_answers_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the connection, nobody reads from it
        assert post(f"http://127.0.0.1:{silent.getsockname()[1]}", {}, timeout_s=0.05).code == "timeout"


def test_a_foreign_host_is_refused():
    with pytest.raises(LoadError):
        post("http://example.com", {})
