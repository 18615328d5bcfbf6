"""A real service on the toy bundle, and a false one that can be made to lie."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from containers import running


@pytest.fixture(scope="session")
def service(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a service in a process of its own."""
    log = tmp_path_factory.mktemp("service") / "log"
    command = ["python", "-m", "service", "--bundle", str(toy_bundle), "--port", "0"]
    quiet = {"SEQUITUR_STORE": "memory://", "SEQUITUR_DEADLINE_MS": "10000"}  # the machine may be busy
    with running(command, log, **quiet) as process:
        process.until(lambda: "ready on" in log.read_text(), "readiness")
        yield log.read_text().partition("ready on ")[2].split()[0]


class FakeService:
    """Answers like a service with `count` items; replace `recommend` or `record` to make it misbehave."""

    def __init__(self, count: int) -> None:
        self.item_ids = [f"f{n}" for n in range(count)]
        self.model: dict[str, Any] = {"name": "fake", "digest": "0", "catalog_items": count, "exclude_seen": True}
        self.asked: list[dict[str, Any]] = []
        self.recommend: Callable[[dict[str, Any]], tuple[int, Any]] = self.honest
        self.record: Callable[[dict[str, Any]], tuple[int, Any]] = lambda body: (202, {"accepted": len(body["events"])})
        self.url = ""

    def honest(self, body: dict[str, Any]) -> tuple[int, Any]:
        """What a right answer is."""
        hidden = {*body.get("history", ()), *body.get("filter", {}).get("exclude_ids", ())}
        left = [item_id for item_id in self.item_ids if item_id not in hidden]
        return 200, self.answer(left[: body["k"]])

    def answer(self, item_ids: list[str]) -> dict[str, Any]:
        """The body of an answer with these items."""
        items = [{"item_id": item_id} for item_id in item_ids]
        return {"recommendation_id": "r", "items": items, "degraded_reasons": []}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        self.asked.append(body)
        return self.record(body) if path == "/v1/events" else self.recommend(body)


@pytest.fixture
def fake_service() -> Iterator[Callable[[int], FakeService]]:
    """Starts false services; they end with the test."""
    started: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(count: int = 30) -> FakeService:
        fake = FakeService(count)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.give(200, fake.model)

            def do_DELETE(self) -> None:
                self.give(204, None)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self.give(*fake.post(self.path, body))

            def give(self, status: int, content: Any) -> None:
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "0" if status == 204 else str(len(raw)))
                self.end_headers()
                if status != 204:
                    self.wfile.write(raw)

            def log_message(self, *_words: Any) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            request_queue_size = 64  # a crowd that is not taken in at once would wait a second and try again

        server = Server(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        started.append((server, thread))
        fake.url = f"http://127.0.0.1:{server.server_port}"
        return fake

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()
