"""A service in a thread that answers what a test tells it to."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from models.errors import VictimError
from models.victim import KEY_VARIABLE, CutOff, Victim

Serve = Callable[[int, dict], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a service that gives one answer for ever, and writes down what it was asked."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, answer: dict, heard: list | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if heard is not None:
                    heard.append((self.path, self.headers.get("authorization"), json.loads(body)))
                said = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(said)))
                self.send_header("retry-after", "7")
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_only_ids_are_read_so_hiding_scores_hides_nothing(serve: Serve) -> None:
    bare = [{"item_id": "b"}, {"item_id": "a"}]
    for items in (bare, [{**item, "score": 1.5, "rank": 1} for item in bare]):
        with Victim(serve(200, {"items": items})) as victim:
            assert victim.recommend(["x"], 2) == ["b", "a"]


def test_it_asks_as_anybody_would_and_is_remembered_by_nobody(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "k1")
    heard: list = []
    with Victim(serve(200, {"items": []}, heard)) as victim:
        victim.recommend(["x", "y"], 3)
        victim.recommend(["x"], 3)
    path, key, body = heard[0]
    assert (path, key, body["history"], body["k"], body["consent"]) == (
        "/v1/recommendations",
        "Bearer k1",
        ["x", "y"],
        3,
        False,
    )


def test_429_cuts_off_and_says_when_it_would_go_on(serve: Serve) -> None:
    with Victim(serve(429, {"code": "budget_exhausted"})) as victim, pytest.raises(CutOff) as cut:
        victim.recommend(["x"], 3)
    assert (cut.value.code, cut.value.retry_after_s) == ("budget_exhausted", 7)


def test_other_refusals_are_errors_that_say_what_was_said(serve: Serve) -> None:
    with (
        Victim(serve(422, {"detail": "k: too large"})) as victim,
        pytest.raises(VictimError, match="422: k: too large"),
    ):
        victim.recommend(["x"], 3)


@pytest.mark.parametrize("url", ["http://example.org", "http://10.0.0.1:8000", "https://127.0.0.1", "127.0.0.1:8000"])
def test_other_machines_are_left_alone(url: str) -> None:
    with pytest.raises(VictimError, match="not on this machine"):
        Victim(url)


def test_gone_service_is_said() -> None:
    with Victim("http://127.0.0.1:1") as victim, pytest.raises(VictimError, match="does not answer"):
        victim.recommend(["x"], 3)
