"""Both ways to an endpoint give the same answers, and only what is listed takes the shorter one."""

import asyncio
from functools import partial

import pytest

from service.express import A_TURN, CALLS, Turns
from service.routes import api

pytestmark = pytest.mark.anyio

BODIES = {
    "/v1/recommendations": {"history": ["i02", "i03"], "k": 3},
    "/v1/events": {"events": [{"user_id": "anna", "item_id": "i02"}]},
    "/v1/rankings": {"history": ["i02"], "candidates": ["i05", "i03", "unknown"]},
}
CHANGES = ("recommendation_id", "next", "timings_ms", "request_id")


def lasting(answer) -> dict:
    return {name: value for name, value in answer.json().items() if name not in CHANGES}


def test_every_express_call_is_an_endpoint_and_has_a_case_here():
    posted = {route.path for route in api.routes if "POST" in route.methods}
    assert set(CALLS) == set(BODIES)
    assert set(CALLS) <= posted


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("body", ["good", "empty", "no json", "no media"])
async def test_the_express_lane_answers_as_the_framework_does(open_client, path, body):
    content, media = {
        "good": (None, None),
        "empty": (b"", "application/json"),
        "no json": (b"{", "application/json"),
        "no media": (b"{}", "text/plain"),
    }[body]
    async with open_client() as client:
        given = {"json": BODIES[path]} if content is None else {"content": content, "headers": {"content-type": media}}
        express = await client.post(path, **given)
        client.app._express = {}
        usual = await client.post(path, **given)
    assert express.status_code == usual.status_code
    assert lasting(express) == lasting(usual)
    left_out = {"x-request-id", "server-timing", "content-length"}
    assert {k: v for k, v in express.headers.items() if k not in left_out} == {
        k: v for k, v in usual.headers.items() if k not in left_out
    }


async def test_requests_of_the_lane_are_counted_for_as_long_as_they_are_here(open_client):
    async with open_client() as client:
        permits, lane = client.app.state.shell.permits, client.app.lane
        seen = []
        usual = permits._take
        permits._take = lambda **given: (seen.append(permits.here), usual(**given))
        scope = {"type": "http", "path": "/v1/events", "headers": [], "client": None}
        posted = lane.begin(scope, "/v1/events")
        assert permits.here == 1
        answer = await lane.answer(posted, b'{"events": [{"user_id": "anna", "item_id": "i02"}]}')
        lane.end(posted, answer.status_code)
    assert (seen, permits.here) == ([1], 0)


async def test_another_method_takes_the_usual_way(client):
    answer = await client.get("/v1/events")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_a_bug_in_an_express_call_is_a_problem(open_client, monkeypatch):
    async with open_client() as client:
        monkeypatch.setattr(client.app._express["/v1/events"], "endpoint", lambda _request: 1 / 0)
        answer = await client.post("/v1/events", json={})
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")


async def test_a_crowd_is_begun_a_few_at_a_time_in_order_and_the_loop_comes_by_in_between():
    waits, begun, turns = [], [], []
    clock = iter(range(1_000))
    lane = Turns(felt=waits.append, clock=lambda: next(clock))
    count = 3 * A_TURN + 1
    for number in range(count):
        lane.begin(partial(begun.append, number))
    assert begun == [*range(A_TURN)]
    assert len(lane) == count - A_TURN
    assert waits == [0.0] * A_TURN  # who is begun at once has not waited
    while len(lane):
        await asyncio.sleep(0)
        turns.append(len(begun))
    assert begun == [*range(count)]
    assert turns == [2 * A_TURN, 3 * A_TURN, count]
    assert min(waits[A_TURN:]) > 0
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    lane.begin(partial(begun.append, count))
    assert begun[-1] == count  # nobody waits any more
