"""Spans as an exporter sees them, and the file and the wire that they go to."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service import tracing as tracing_module
from service.errors import ConfigurationError
from service.tracing import Tracing, open_tracing

ROOT = Path(__file__).resolve().parents[2]
PARENT = (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
UNSAMPLED = (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
FIELDS = {"route": "/v1/recommendations", "method": "POST", "code": 200, "ms": 9.0, "request_id": "r1"}


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def tracing(exporter):
    made = Tracing(exporter, is_batched=False)
    yield made
    made.close()


def test_one_span_with_a_child_per_stage_end_to_end(tracing, exporter):
    trace = tracing.begin([(b"host", b"x")])
    trace.end({**FIELDS, "variant": "default", "degraded": ["deadline"]}, 0.009, {"state": 1.0, "encode": 2.5})
    state, encode, whole = exporter.get_finished_spans()
    assert whole.name == "POST /v1/recommendations"
    assert whole.kind.name == "SERVER"
    assert f"{whole.context.trace_id:032x}" == trace.trace_id
    assert dict(whole.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v1/recommendations",
        "http.response.status_code": 200,
        "sequitur.variant": "default",
        "sequitur.degraded": ("deadline",),
        "sequitur.request_id": "r1",
    }
    assert whole.end_time - whole.start_time == 9_000_000
    assert [(state.name, state.start_time), (encode.name, encode.start_time)] == [
        ("state", whole.start_time),
        ("encode", state.end_time),
    ]
    assert encode.end_time - encode.start_time == 2_500_000
    assert {span.parent.span_id for span in (state, encode)} == {whole.context.span_id}
    assert whole.resource.attributes["service.name"] == "sequitur"


def test_the_trace_of_the_caller_is_taken_up(tracing, exporter):
    trace = tracing.begin([PARENT])
    trace.end(FIELDS, 0.001, {})
    (span,) = exporter.get_finished_spans()
    assert trace.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"


def test_what_the_caller_does_not_sample_is_not_exported_and_still_has_its_id(tracing, exporter):
    trace = tracing.begin([UNSAMPLED])
    trace.end(FIELDS, 0.001, {"state": 1.0})
    assert trace.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert exporter.get_finished_spans() == ()


@pytest.mark.parametrize(
    "broken", [b"", b"00-zz-b7ad6b7169203331-01", b"\xff\xfe", b"00-" + b"0" * 32 + b"-" + b"0" * 16]
)
def test_broken_a_traceparent_begins_a_trace_of_our_own(tracing, broken):
    assert int(tracing.begin([(b"traceparent", broken)]).trace_id, 16) != 0


def test_failed_a_request_is_a_failed_span(tracing, exporter):
    tracing.begin([]).end({**FIELDS, "code": 503, "error": "overloaded"}, 0.001, {})
    (span,) = exporter.get_finished_spans()
    assert not span.status.is_ok
    assert span.attributes["error.type"] == "overloaded"


def test_a_file_holds_one_object_a_line(tmp_path):
    tracing = open_tracing(f"file://{tmp_path}/traces")
    assert tracing is not None
    tracing.begin([PARENT]).end(FIELDS, 0.002, {"state": 1.0})
    tracing.close()
    spans = [json.loads(line) for line in (tmp_path / "traces").read_text().splitlines()]
    assert [span["name"] for span in spans] == ["state", "POST /v1/recommendations"]


def test_a_collector_gets_them_over_http():
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_words) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        tracing = open_tracing(f"http://127.0.0.1:{server.server_port}")
        assert tracing is not None
        tracing.begin([]).end(FIELDS, 0.002, {"state": 1.0})
        tracing.close()
        server.shutdown()
        thread.join()
    ((path, body),) = got
    assert path == "/v1/traces"
    assert b"POST /v1/recommendations" in body or body[:2] == b"\x1f\x8b"


def test_gone_a_collector_does_not_hold_up_the_end(monkeypatch):
    monkeypatch.setattr(tracing_module, "FLUSH_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    tracing = open_tracing(f"http://127.0.0.1:{port}")
    assert tracing is not None
    tracing.begin([]).end(FIELDS, 0.002, {})
    began = time.monotonic()
    tracing.close()
    assert time.monotonic() - began < 5.0  # by itself it would go on trying for ten seconds


def test_nowhere_is_none():
    assert open_tracing("") is None


@pytest.mark.parametrize(
    "where", ["collector:4318", "ftp://x", "file://", "http://", "file:///no/such/directory/traces"]
)
def test_a_place_that_means_nothing_is_refused(where):
    with pytest.raises(ConfigurationError, match=r"trac|SEQUITUR_TRACES"):
        open_tracing(where)


CODE = """
import sys
from service.app import create_app
from service.settings import Settings
create_app(Settings(store="memory://"))
print([name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter", "google."))])
"""


def test_off_nothing_of_it_is_imported():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_the_sdk_is_named_with_the_extra_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigurationError, match="sequitur\\[trace\\]"):
        open_tracing("http://127.0.0.1:4318")
