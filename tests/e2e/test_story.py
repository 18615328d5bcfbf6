"""The story of a reader, over real HTTP, against a process that starts, serves, stops and starts again."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from redis_server import RedisServer


def told(service) -> None:
    """Anna opens a book; the next answer knows it."""
    with httpx.Client(base_url=service.url) as http:
        first = http.get("/v1/users/anna/recommendations", params={"k": 3}).json()
        assert first["degraded_reasons"] == ["no_history"]

        for item_id, neighbours in (("i05", {"i04", "i06"}), ("i15", {"i14", "i16"})):
            event = {"user_id": "anna", "item_id": item_id, "recommendation_id": first["recommendation_id"]}
            assert http.post("/v1/events", json={"events": [event]}).json()["accepted"] == 1
            answer = http.post("/v1/recommendations", json={"user_id": "anna", "k": 3}).json()
            assert not answer["degraded"]
            assert answer["items"][0]["item_id"] in neighbours
            assert item_id not in {item["item_id"] for item in answer["items"]}


def history(service) -> list[str]:
    events = httpx.get(f"{service.url}/v1/users/anna/history").json()["events"]
    return [event["item_id"] for event in events]


def test_an_event_is_in_effect_in_the_next_answer_and_a_restart_keeps_the_history(start_service):
    service = start_service()
    told(service)
    assert service.stop() in (0, -signal.SIGTERM)

    again = start_service()  # the default store: an SQLite file below the working directory
    assert history(again) == ["i05", "i15"]
    answer = httpx.get(f"{again.url}/v1/users/anna/recommendations", params={"k": 1}).json()
    assert answer["items"][0]["item_id"] in {"i14", "i16"}
    assert httpx.delete(f"{again.url}/v1/users/anna").status_code == 204
    assert history(again) == []
    assert "Traceback" not in again.log()


def cold_start(service, *, history: str = "i05") -> list[str]:
    """New items only, as any worker answers."""
    body = {"history": [history], "filter": {"new_only": True}}
    answer = httpx.post(f"{service.url}/v1/recommendations", json=body)
    return [item["item_id"] for item in answer.json()["items"]]


def test_an_item_that_was_added_is_there_at_once_after_a_restart_and_gone_when_it_is_removed(start_service):
    service = start_service()
    new = {"attributes": {"title": "Fresh", "price": 3}}
    assert httpx.put(f"{service.url}/v1/items/fresh", json=new).status_code == 201
    assert cold_start(service) == ["fresh"]
    service.stop(signal.SIGKILL)

    again = start_service()
    assert cold_start(again) == ["fresh"]
    assert httpx.get(f"{again.url}/v1/items/fresh").json()["attributes"] == new["attributes"]
    assert httpx.delete(f"{again.url}/v1/items/fresh").status_code == 204
    assert cold_start(again) == []
    assert "Traceback" not in again.log()


def test_killed_in_the_middle_of_a_stream_keeps_every_event_that_was_acknowledged(start_service):
    service = start_service()
    acknowledged = []
    with httpx.Client(base_url=service.url) as http:
        for n in range(1, 16):
            event = {"user_id": "anna", "item_id": f"i{n:02d}", "event_id": f"e{n}"}
            if http.post("/v1/events", json={"events": [event]}).status_code == 202:
                acknowledged.append(event["item_id"])
    service.stop(signal.SIGKILL)
    assert history(start_service()) == acknowledged
    assert len(acknowledged) == 15


@pytest.mark.redis
def test_the_same_story_with_redis_which_may_go_away_and_come_back(start_service, tmp_path):
    redis = RedisServer(tmp_path / "redis", durable=True)
    redis.start()
    try:
        service = start_service(STORE=redis.url)
        told(service)

        redis.stop()
        body = {"user_id": "anna", "history": ["i05"], "k": 1}
        answer = httpx.post(f"{service.url}/v1/recommendations", json=body)
        assert answer.status_code == 200
        assert answer.json()["degraded_reasons"] == ["store_unavailable"]
        assert answer.json()["items"][0]["source"] == "retrieval"
        event = {"events": [{"user_id": "anna", "item_id": "i01"}]}
        refused = httpx.post(f"{service.url}/v1/events", json=event)
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert "retry-after" in refused.headers
        assert httpx.get(f"{service.url}/readyz").json()["store"] == "away"

        redis.start()
        assert history(service) == ["i05", "i15"]
        assert service.stop() in (0, -signal.SIGTERM)
        assert history(start_service(STORE=redis.url)) == ["i05", "i15"]
    finally:
        redis.stop()


def test_several_workers_share_the_store_and_their_metrics(start_service):
    service = start_service("--workers", "2", saying="2 workers")
    service.wait_until_ready()

    def read(n: int) -> str:
        # A connection each, so that both workers get some.
        event = {"user_id": f"u{n}", "item_id": "i05"}
        httpx.post(f"{service.url}/v1/events", json={"events": [event]}).raise_for_status()
        answer = httpx.get(f"{service.url}/v1/users/u{n}/recommendations", params={"k": 1})
        return str(answer.json()["items"][0]["item_id"])

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(read, range(24))) <= {"i04", "i06"}
    assert httpx.put(f"{service.url}/v1/items/fresh", json={}).status_code == 201
    give_up = time.monotonic() + 10
    while "sequitur_edition 1.0" not in httpx.get(f"{service.url}/metrics").text:  # the least of all workers
        assert time.monotonic() < give_up
        time.sleep(0.05)  # other processes: there is nothing to wait on but their answers
    assert all(cold_start(service) == ["fresh"] for _ in range(8))
    metrics = httpx.get(f"{service.url}/metrics").text
    assert 'sequitur_events_total{outcome="accepted"} 24.0' in metrics
    assert 'sequitur_requests_total{code="202",method="POST",route="/v1/events"} 24.0' in metrics
    assert service.stop() == 0


def test_requests_under_way_are_answered_when_the_service_is_told_to_stop(start_service):
    service = start_service(BATCH_WAIT_MS="1500")
    with ThreadPoolExecutor(1) as threads, httpx.Client(base_url=service.url) as http:
        asked = threads.submit(httpx.post, f"{service.url}/v1/recommendations", json={"history": ["i05"], "k": 2})
        while 'sequitur_queue_depth{pool="encoder"} 1.0' not in http.get("/metrics").text:
            assert not asked.done()
        assert service.stop() in (0, -signal.SIGTERM)
        assert len(asked.result().json()["items"]) == 2


def test_a_client_that_goes_away_is_noticed_and_nothing_is_computed_for_it(start_service):
    service = start_service(BATCH_WAIT_MS="300")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{service.url}/v1/recommendations", json={"history": ["i05"]}, timeout=0.05)
    expected = {
        'sequitur_requests_total{code="499",method="POST",route="/v1/recommendations"} 1.0',
        'sequitur_shed_total{reason="abandoned"} 1.0',
    }
    give_up = time.monotonic() + 10
    metrics: set[str] = set()
    while not expected <= metrics and time.monotonic() < give_up:
        metrics = set(httpx.get(f"{service.url}/metrics").text.splitlines())
    assert expected <= metrics


def test_chunked_bodies_and_connections_kept_alive(start_service):
    service = start_service()
    with httpx.Client(base_url=service.url) as http:
        for _ in range(3):
            answer = http.post(
                "/v1/recommendations",
                content=iter([b'{"history": ', b'["i05"]}']),
                headers={"content-type": "application/json"},
            )
            assert answer.status_code == 200
        too_large = http.post("/v1/events", content=iter([b" " * 65_536] * 17))
        assert (too_large.status_code, too_large.json()["code"]) == (413, "body_too_large")
        assert http.get("/livez").status_code == 200
