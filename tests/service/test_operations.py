"""What whoever runs the service asks: the model, probes, metrics and the pages."""

import asyncio

import pytest

pytestmark = pytest.mark.anyio
URL = "/v1/recommendations"


def is_problem(answer, status: int, code: str) -> bool:
    body = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(body) - {"errors"} == {"type", "title", "status", "detail", "code", "request_id"}
    assert body["request_id"] == answer.headers["x-request-id"]
    return (answer.status_code, body["status"], body["code"]) == (status, status, code)


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


async def test_the_docs_ask_nobody_else_for_anything(client):
    page = await client.get("/docs")
    script = await client.get("/static/docs.js")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for text in (page.text, script.text, (await client.get("/static/docs.css")).text):
        assert "http://" not in text
        assert "https://" not in text
