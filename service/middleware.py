"""What every request passes through, as plain ASGI: an object with the wrapped application inside.

`Edge` is the outermost: it gives the request its id and its clock, turns whatever is raised inside into an answer, and
counts and logs what came of it. `Gate` asks for API keys, `BodyLimit` reads bodies up to a size. Both only raise.

What they do is in `Recorder` and in `admit`, for the express lane, which does the same without being ASGI.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics
from service.errors import TABLE, BodyTooLarge, SlowBody, code_of, lookup, problem
from service.keys import LIMITED, Key, needed_scope
from service.logs import RequestLines
from service.rates import Rates
from service.request_ids import request_id
from service.tracing import Trace, Tracing

_log = logging.getLogger(__name__)

T = TypeVar("T")
GONE = 499  # in metrics and logs only: the client closed the connection before there was an answer
WATCH_AFTER_S = 0.005  # most answers are there by then, and watching costs a task
BODY_WITHIN_S = 10.0  # a mebibyte in that time is 1 Mbit/s, and callers are servers
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
UNMATCHED = "unmatched"  # the route of what took none
_QUIET = ("/livez", "/readyz", "/metrics", "/static")  # asked every few seconds, and of no interest when all is well
_HEADERS = ((b"x-content-type-options", b"nosniff"),)
API_HEADERS = (*_HEADERS, (b"cache-control", b"no-store"))  # what is said of a user is for who asked, and now
_PAGE_HEADERS = (
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
for _kind in TABLE:  # from nought, as in metrics: a series that begins at one has no rate
    metrics.ERRORS.labels(getattr(_kind, "code", "internal"))


class ClientGone(Exception):
    """The client closed the connection; nobody is there to be answered."""


class Posted(Request):
    """A request of the express lane. Its connection has read the whole of it, and says so when the client goes away.

    Args:
        scope: of ASGI.
        trace: its trace, where it is traced.

    Attributes:
        task: what works on it.
        route: of what came to its endpoint; what is refused before has none, as in `route_of`.
    """

    def __init__(self, scope: Scope, trace: Trace | None = None) -> None:
        super().__init__(scope)
        self.trace = trace
        self.route = UNMATCHED
        self.is_gone = False
        self.task: asyncio.Task[None] | None = None
        self._may_be_cancelled = False

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """See the function of that name."""
        if self.is_gone:
            work.close()
            raise ClientGone
        self._may_be_cancelled = True
        try:
            return await work
        except asyncio.CancelledError:
            if self.is_gone and self.task is not None:
                self.task.uncancel()
                raise ClientGone from None
            raise
        finally:
            self._may_be_cancelled = False

    def leave(self) -> None:
        """The client has gone."""
        self.is_gone = True
        if self._may_be_cancelled and self.task is not None:
            self.task.cancel()


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away: nobody computes for a closed connection.

    Raises:
        ClientGone: it went.
    """
    if isinstance(request, Posted):
        return await request.while_connected(work)
    task = asyncio.current_task()
    assert task is not None  # a coroutine runs in one
    watcher: asyncio.Task[None] | None = None
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        task.cancel()

    def begin() -> None:
        nonlocal watcher
        watcher = asyncio.create_task(watch())

    timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, begin)
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone:
            task.uncancel()
            raise ClientGone from None
        raise
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()


def header(scope: Scope, name: bytes) -> str:
    """A header of a request by its name in small letters; empty where it was not sent."""
    for key, value in scope["headers"]:
        if key == name:
            said: str = value.decode("latin-1")
            return said
    return ""


class Recorder:
    """What is done of every request beside answering it, whichever way it takes.

    Args:
        clock: seconds from some fixed moment, the same as the pipeline's.
        lines: writes the line of a request.
        tracing: traces it, where that is wanted.
    """

    def __init__(
        self, *, clock: Callable[[], float], lines: RequestLines | None = None, tracing: Tracing | None = None
    ) -> None:
        self._clock = clock
        self._lines = lines or RequestLines()
        self._tracing = tracing

    def begin(self, scope: Scope) -> Trace | None:
        """A request has come: it gets its id and its moment, and its trace where it is traced."""
        state = scope.setdefault("state", {})
        state["arrived"] = self._clock()
        state["request_id"] = request_id(scope["headers"])
        return None if self._tracing is None else self._tracing.begin(scope["headers"])

    def fail(self, scope: Scope, error: Exception) -> Response:
        """The answer to what was raised, which is counted, and told in the log where it is our fault."""
        state = scope["state"]
        state["error"] = code = code_of(error)
        metrics.ERRORS.labels(code).inc()
        if lookup(type(error))[0] == 500:
            _log.error("request failed", exc_info=error, extra={"fields": {"request_id": state["request_id"]}})
        return problem(error, request_id=state["request_id"])

    def end(self, scope: Scope, route: str, status: int, trace: Trace | None) -> None:
        """It is answered, or its client has gone."""
        state = scope["state"]
        seconds = self._clock() - state["arrived"]
        method = scope["method"] if scope["method"] in METHODS else "other"
        counter, timer = metrics.answered(route, method, status)
        counter.inc()
        timer.observe(seconds)
        answer = state.get("answer")
        level = self._lines.level(status, seconds, answer, is_quiet=route in _QUIET)
        if level is None and trace is None:
            return
        fields: dict[str, Any] = {"route": route, "method": method, "code": status, "ms": round(seconds * 1000, 3)}
        stages: Mapping[str, float] = {}
        if "error" in state:
            fields["error"] = state["error"]
        if answer is not None:
            stages = answer["timings_ms"]
            fields["variant"] = answer["model"]["variant"]
            if answer.get("degraded"):
                fields["degraded"] = answer["degraded_reasons"]
        fields["request_id"] = state["request_id"]
        if trace is not None:
            fields["trace_id"] = trace.trace_id
            trace.end(fields, seconds, stages)
        if level is not None:
            self._lines.write(level, {**fields, **stages})


class Edge:
    """The outermost layer.

    Args:
        app: what is inside.
        clock, lines, tracing: see `Recorder`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        clock: Callable[[], float],
        lines: RequestLines | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._app = app
        self._recorder = Recorder(clock=clock, lines=lines, tracing=tracing)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = self._recorder.begin(scope)
        own_id = scope["state"]["request_id"].encode()
        own = API_HEADERS if scope["path"].startswith("/v1/") else _HEADERS
        status = 500
        has_started = False

        async def send_marked(message: Message) -> None:
            nonlocal status, has_started
            if message["type"] == "http.response.start":
                status, has_started = message["status"], True
                headers = message["headers"] = list(message["headers"])
                headers += ((b"x-request-id", own_id), *own)
                if any(name == b"content-type" and value.startswith(b"text/html") for name, value in headers):
                    headers += _PAGE_HEADERS
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except ClientGone:
            status = GONE
        except Exception as error:
            answer = self._recorder.fail(scope, error)
            if has_started:
                raise  # too late for another answer: the server cuts the connection, which the client notices
            await answer(scope, receive, send_marked)
        except asyncio.CancelledError:
            status = GONE
            raise
        finally:
            self._recorder.end(scope, route_of(scope), status, trace)


class Keys(Protocol):
    """Decides who may call, see `service.keys`."""

    def allow(self, presented: str | None, scope: str, /, *, client: str) -> Key: ...


def admit(scope: Scope, keys: Keys, rates: Rates) -> None:
    """Notes who calls.

    Raises:
        Unauthenticated, Forbidden: nobody whom this call is for.
        RateLimited: too fast.
    """
    needed = needed_scope(scope["method"], scope["path"])
    if needed is None:
        return
    client = scope["client"][0] if scope.get("client") else "an unknown address"
    caller = keys.allow(_presented(scope), needed, client=client)
    if needed in LIMITED:
        rates.take(caller)
    scope["state"]["caller"] = caller


class Gate:
    """Lets a request pass when its key, or the lack of one, allows it, and not faster than the key may."""

    def __init__(self, app: ASGIApp, *, keys: Keys, rates: Rates) -> None:
        self._app = app
        self._keys = keys
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            admit(scope, self._keys, self._rates)
        await self._app(scope, receive, send)


class BodyLimit:
    """Reads the whole body before anybody else does, up to a size and within a time; chunked ones have no length to
    look at. No permit is held meanwhile."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int, limit_s: float = BODY_WITHIN_S) -> None:
        self._app = app
        self._limit_bytes = limit_bytes
        self._limit_s = limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        declared = header(scope, b"content-length")
        if declared.isdecimal() and int(declared) > self._limit_bytes:
            raise BodyTooLarge(self._limit_bytes)
        try:
            async with asyncio.timeout(self._limit_s):
                parts = await self._parts(receive)
        except TimeoutError:
            raise SlowBody(self._limit_s) from None
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        scope.setdefault("state", {})["body"] = body  # for endpoints that need no stream
        whole: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            if whole is None:
                return await receive()
            message, whole = whole, None
            return message

        await self._app(scope, replay, send)

    async def _parts(self, receive: Receive) -> list[bytes]:
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limit_bytes:
                raise BodyTooLarge(self._limit_bytes)
            more = message.get("more_body", False)
        return parts


def route_of(scope: Scope) -> str:
    """The template of the route that a request took: a label with few values."""
    path = getattr(scope.get("route"), "path_format", None)
    if isinstance(path, str):
        return path
    return "/static" if scope["path"].startswith("/static/") else UNMATCHED


def _presented(scope: Scope) -> str | None:
    kind, _, key = header(scope, b"authorization").partition(" ")
    return key.strip() if kind.lower() == "bearer" else header(scope, b"x-api-key") or None
