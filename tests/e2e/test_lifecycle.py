"""The end of a process, and of its workers: what is lost, what is said, and how long it takes."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import httpx

RECOMMEND = "/v1/users/anna/recommendations?k=2"


class Steady:
    """Clients that ask one after the other, each over one connection while it lasts, until nobody listens any more."""

    def __init__(self, url: str, clients: int = 4) -> None:
        self._port = int(url.rpartition(":")[2])
        self.outcomes: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        self._stop = threading.Event()

    def _ask(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=10)
        while not self._stop.is_set():
            try:
                connection.connect() if connection.sock is None else None
            except ConnectionRefusedError:
                self.outcomes["refused"] += 1
                return
            try:
                connection.request("GET", RECOMMEND)
                answer = connection.getresponse()
                answer.read()
                self.outcomes[str(answer.status)] += 1
            except (OSError, HTTPException) as error:
                self.outcomes[type(error).__name__] += 1
                connection.close()
        connection.close()

    def __enter__(self) -> "Steady":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def until(self, answers: int) -> None:
        while self.outcomes["200"] < answers:
            time.sleep(0.005)  # threads: there is nothing to wait on but what they have counted


def workers(service) -> set[int]:
    """The processes that serve."""
    tasks = Path(f"/proc/{service.pid}/task").glob("*/children")
    return {int(pid) for children in tasks for pid in children.read_text().split()}


def test_told_to_stop_under_steady_requests_none_that_was_accepted_is_lost(start_service, tmp_path):
    service = start_service(DRAIN_S="0.5", LOG=f"file://{tmp_path}/lists", TRACES=f"file://{tmp_path}/traces")
    with (
        socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as idle,
        Steady(service.url) as steady,
    ):
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
        steady.until(50)
        assert service.stop() == 0
        assert b"".join(iter(lambda: idle.recv(4096), b"")).startswith(
            b"HTTP/1.1 200"
        )  # it was closed and held up nobody
    # Every answer came, and each client heard that nobody listens any more before it could ask again.
    assert set(steady.outcomes) == {"200", "refused"}
    assert "Traceback" not in service.log()
    # What was waiting to be written is written: a list and a span for each answer.
    lists = [json.loads(line) for file in (tmp_path / "lists").iterdir() for line in file.read_text().splitlines()]
    spans = [json.loads(line) for line in (tmp_path / "traces").read_text().splitlines()]
    assert len(lists) == steady.outcomes["200"]
    assert sum(span["name"].endswith("/recommendations") for span in spans) == steady.outcomes["200"]


def test_unready_comes_first_and_connections_are_sent_elsewhere(start_service):
    service = start_service(DRAIN_S="60")
    with httpx.Client(base_url=service.url) as http:
        assert "connection" not in http.get("/readyz").headers
        os.kill(service.pid, signal.SIGTERM)
        give_up = time.monotonic() + 10
        while (probe := httpx.get(f"{service.url}/readyz")).status_code == 200:
            assert time.monotonic() < give_up
        assert (probe.status_code, probe.json()["code"]) == (503, "not_ready")
        assert probe.headers["retry-after"]
        while (answer := http.get(RECOMMEND)).headers.get("connection") != "close":
            assert time.monotonic() < give_up
        assert answer.status_code == 200
        assert httpx.get(f"{service.url}/livez").status_code == 200
        assert "sequitur_ready 0.0" in httpx.get(f"{service.url}/metrics").text
    # Sixty seconds are too long for whoever sends a second signal.
    assert service.stop(signal.SIGTERM) == -signal.SIGTERM


def test_killed_a_worker_is_replaced_and_a_signal_to_all_of_them_is_one_signal(start_service):
    service = start_service("--workers", "2", saying="2 workers", DRAIN_S="0.5")
    assert "ready" in service.said()
    before = workers(service)
    assert len(before) == 2
    with Steady(service.url) as steady:
        steady.until(50)
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        steady.until(steady.outcomes["200"] + 50)
        give_up = time.monotonic() + 60
        while service.log().count("is ready") < 3:  # as the supervisor says of every worker
            assert time.monotonic() < give_up, service.log()
            time.sleep(0.05)
    # What was in the hands of the one that was killed is lost: a request a client at most.
    lost = sum(count for outcome, count in steady.outcomes.items() if outcome != "200")
    assert lost <= 4
    after = workers(service)
    assert len(after) == 2
    assert after & before == before - {killed}
    metrics = httpx.get(f"{service.url}/metrics").text
    counted = re.search(r'^sequitur_requests_total{code="200".*recommendations"} (\d+)', metrics, re.M)
    assert counted is not None
    assert steady.outcomes["200"] - 4 <= int(counted[1]) <= steady.outcomes["200"] + 4
    give_up = time.monotonic() + 10
    while (
        "sequitur_in_flight 0.0" not in httpx.get(f"{service.url}/metrics").text
    ):  # workers tell each other by the second
        assert time.monotonic() < give_up
        time.sleep(0.2)

    with Steady(service.url) as steady:  # a service manager tells each process of the group, a person only the first
        steady.until(20)
        for pid in workers(service):
            os.kill(pid, signal.SIGTERM)
        assert service.stop() == 0
    assert set(steady.outcomes) == {"200", "refused"}
    assert service.log().count("ended") == 1


def test_without_its_supervisor_no_worker_stays(start_service):
    service = start_service("--workers", "2", saying="2 workers")
    assert "ready" in service.said()
    left = workers(service)
    service.stop(signal.SIGKILL)
    give_up = time.monotonic() + 20
    while any(alive(pid) for pid in left):
        assert time.monotonic() < give_up
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process still runs; one whose parent died may stay in the table for a while."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
