"""What every request passes through, as plain ASGI: an object with the wrapped application inside.

`Edge` is the outermost: it gives the request its id and its clock, turns whatever is raised inside into an answer, and
counts and logs what came of it. `Gate` asks for API keys, `BodyLimit` reads bodies up to a size. Both only raise.
"""

import asyncio
import logging
import re
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import metrics
from service.errors import BodyTooLarge, code_of, lookup, problem
from service.keys import needed_scope

_log = logging.getLogger(__name__)

T = TypeVar("T")
GONE = 499  # in metrics and logs only: the client closed the connection before there was an answer
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_QUIET = ("/livez", "/readyz", "/metrics", "/static")  # asked every few seconds, and of no interest when all is well
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}


class ClientGone(Exception):
    """The client closed the connection; nobody is there to be answered."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes away: nobody computes for a closed connection.

    Raises:
        ClientGone: it went.
    """
    task = asyncio.current_task()
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await request.receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        if task is not None:
            task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and task is not None:
            task.uncancel()
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


class Edge:
    """The outermost layer. `clock` is seconds from some fixed moment, the same as the pipeline's."""

    def __init__(self, app: ASGIApp, *, clock: Callable[[], float]) -> None:
        self._app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived = self._clock()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(arrived=arrived, request_id=request_id)
        status = 500
        has_started = False

        async def send_marked(message: Message) -> None:
            nonlocal status, has_started
            if message["type"] == "http.response.start":
                status, has_started = message["status"], True
                headers = MutableHeaders(raw=message["headers"])
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
                if headers.get("content-type", "").startswith("text/html"):
                    headers.update(_PAGE_HEADERS)
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except ClientGone:
            status = GONE
        except Exception as error:
            metrics.ERRORS.labels(code_of(error)).inc()
            if lookup(type(error))[0] == 500:
                _log.exception("request failed", extra={"fields": {"request_id": request_id}})
            if has_started:
                raise  # too late for another answer: the server cuts the connection, which the client notices
            await problem(error, request_id=request_id)(scope, receive, send_marked)
        except asyncio.CancelledError:
            status = GONE
            raise
        finally:
            self._record(scope, status, self._clock() - arrived, request_id)

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        route = route_of(scope)
        method = scope["method"] if scope["method"] in METHODS else "other"
        metrics.REQUESTS.labels(route, method, status).inc()
        metrics.REQUEST_SECONDS.labels(route).observe(seconds)
        level = logging.DEBUG if route in _QUIET and status < 400 else logging.INFO
        if _log.isEnabledFor(level):
            fields: dict[str, Any] = {
                "route": route,
                "method": method,
                "code": status,
                "ms": round(seconds * 1000, 3),
                "request_id": request_id,
                **scope["state"].get("log", {}),
            }
            _log.log(level, "request", extra={"fields": fields})


class Keys(Protocol):
    """Decides who may call, see `service.keys`."""

    def allow(self, presented: str | None, scope: str, /, *, client: str) -> str: ...


class Gate:
    """Lets a request pass when its key, or the lack of one, allows it."""

    def __init__(self, app: ASGIApp, *, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            needed = needed_scope(scope["method"], scope["path"])
            if needed is not None:
                client = scope["client"][0] if scope.get("client") else "an unknown address"
                self._keys.allow(_presented(Headers(scope=scope)), needed, client=client)
        await self._app(scope, receive, send)


class BodyLimit:
    """Reads the whole body before anybody else does, up to a limit; chunked ones have no length to look at."""

    def __init__(self, app: ASGIApp, *, limit_bytes: int) -> None:
        self._app = app
        self._limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._limit_bytes:
            raise BodyTooLarge(self._limit_bytes)
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            body += message.get("body", b"")
            if len(body) > self._limit_bytes:
                raise BodyTooLarge(self._limit_bytes)
            more = message.get("more_body", False)
        whole: Message | None = {"type": "http.request", "body": bytes(body), "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            if whole is None:
                return await receive()
            message, whole = whole, None
            return message

        await self._app(scope, replay, send)


def route_of(scope: Scope) -> str:
    """The template of the route that a request took: a label with few values."""
    path = getattr(scope.get("route"), "path_format", None)
    if isinstance(path, str):
        return path
    return "/static" if scope["path"].startswith("/static/") else "unmatched"


def _presented(headers: Headers) -> str | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else headers.get("x-api-key")
