"""Traces: a span for each request with one child per stage, for whoever collects them. Off unless it is said where to.

A caller's W3C `traceparent` is taken up, its decision on sampling included. The spans are made of the numbers that the
header and the metrics have, once the request is answered: their lengths are what was measured, and they are laid end to
end from its arrival, since stages follow one another. The SDK hands them over in batches, from a thread of its own; its
`OTEL_` variables (sampling, headers, batches, resource) hold as everywhere.

The SDK is an extra and is imported when it is asked for: a service without traces has a None in its place.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from service import __version__
from service.errors import ConfigurationError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

FLUSH_S = 2.0  # how long a collector may hold up the end of the process
_CARRIED = (b"traceparent", b"tracestate")
# Of the log line; the names are OpenTelemetry's where it has one.
_ATTRIBUTES = {
    "method": "http.request.method",
    "route": "http.route",
    "code": "http.response.status_code",
    "error": "error.type",
    "variant": "sequitur.variant",
    "degraded": "sequitur.degraded",
    "request_id": "sequitur.request_id",
}


class Trace:
    """The trace of one request under way."""

    __slots__ = ("_began_ns", "_span", "_tracing", "trace_id")

    def __init__(self, tracing: "Tracing", span: "Span", began_ns: int) -> None:
        self._tracing = tracing
        self._span = span
        self._began_ns = began_ns
        self.trace_id = f"{span.get_span_context().trace_id:032x}"

    def end(self, fields: Mapping[str, Any], seconds: float, stages_ms: Mapping[str, float]) -> None:
        """The request is answered.

        Args:
            fields: what its log line says.
            seconds: what it took.
            stages_ms: milliseconds by stage, in the order in which they came.
        """
        span = self._span
        if not span.is_recording():
            return
        tracing = self._tracing
        span.update_name(f"{fields['method']} {fields['route']}")
        span.set_attributes({name: fields[field] for field, name in _ATTRIBUTES.items() if field in fields})
        if fields["code"] >= 500:
            span.set_status(tracing.failed)
        inside = tracing.context(span)
        began_ns = self._began_ns
        for stage, ms in stages_ms.items():
            child = tracing.tracer.start_span(stage, context=inside, start_time=began_ns)
            began_ns += int(ms * 1e6)
            child.end(end_time=began_ns)
        span.end(end_time=self._began_ns + int(seconds * 1e9))


class Tracing:
    """Makes traces and hands them to an exporter.

    Args:
        exporter: takes spans.
        is_batched: many at a time, in a thread; otherwise each at once.
        after: called when all is handed over.
    """

    def __init__(
        self, exporter: "SpanExporter", *, is_batched: bool = True, after: Callable[[], None] = lambda: None
    ) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": "sequitur", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor((BatchSpanProcessor if is_batched else SimpleSpanProcessor)(exporter))
        self.tracer = self._provider.get_tracer("sequitur", __version__)
        self.context = set_span_in_context
        self.failed = Status(StatusCode.ERROR)
        self._server = SpanKind.SERVER
        self._exporter = exporter
        self._after = after
        self._carried = TraceContextTextMapPropagator()

    def begin(self, headers: Sequence[tuple[bytes, bytes]]) -> Trace:
        """A request has come with these headers."""
        carrier = {name.decode(): value.decode("latin-1") for name, value in headers if name in _CARRIED}
        parent = self._carried.extract(carrier) if carrier else None
        began_ns = time.time_ns()
        return Trace(self, self.tracer.start_span("request", parent, self._server, start_time=began_ns), began_ns)

    def close(self) -> None:
        """Hands over what is left, as far as that is quickly done."""
        impatience = threading.Timer(FLUSH_S, self._exporter.shutdown)  # ends its trying again
        impatience.start()
        self._provider.shutdown()
        impatience.cancel()
        impatience.join()
        self._after()


def open_tracing(where: str) -> Tracing | None:
    """What traces requests; None where nobody collects traces.

    Raises:
        ConfigurationError: the place means nothing, or the SDK is not installed.
    """
    parts = check_place(where)
    if not where:
        return None
    try:
        if parts.scheme == "file":
            return _to_file(Path(parts.path))
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise ConfigurationError(
            f"SEQUITUR_TRACES wants the OpenTelemetry SDK ({error}); install it: pip install 'sequitur[trace]'"
        ) from error
    path = parts.path if parts.path.strip("/") else "/v1/traces"
    return Tracing(OTLPSpanExporter(endpoint=parts._replace(path=path).geturl()))


def check_place(where: str) -> SplitResult:
    """Where traces go: `http://collector:4318` (OTLP), `file:///path` (one JSON object a line), or nothing.

    Raises:
        ConfigurationError: it is none of these.
    """
    parts = urlsplit(where)
    is_wire, is_file = parts.scheme in ("http", "https") and parts.hostname, parts.scheme == "file"
    if where and not is_wire and not (is_file and parts.path.strip("/")):
        raise ConfigurationError(
            f"SEQUITUR_TRACES={where!r} is no place for traces; say http://host:4318, https://host/path or file:///path"
        )
    return parts


def _to_file(path: Path) -> Tracing:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    def line(span: "ReadableSpan") -> str:
        return f"{span.to_json(indent=None)}\n"

    try:
        file = path.open("a")
    except OSError as error:
        raise ConfigurationError(f"traces cannot be written to {path}: {error.strerror}") from error
    return Tracing(ConsoleSpanExporter(out=file, formatter=line), after=file.close)
