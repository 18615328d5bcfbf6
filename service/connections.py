"""What a connection may ask of us before it has sent a whole request: so many headers, and only so long.

The server's parser takes headers of any size and waits for them for ever. Here a request line with headers has a limit
in bytes and in number, a request that is not whole has a time, and what is no HTTP request is answered as every other
error is. Nothing of it costs a request that arrives in one piece, as nearly all do, more than a few comparisons.

A whole request of the express lane is handed over here, past ASGI, and its answer is written in one piece. What is out
of the ordinary (behind another request, HTTP/1.0, `Expect`, an upgrade) goes the server's own way, to the same answer.

Here overload is answered, too. A refusal that travels through the application costs a third of an answer, and at twice
the load a service would be busy refusing; at the door it costs a tenth. Only the calls of the express lane are turned
away here; probes, metrics and everything else go in.

Bodies have limits of their own, those of `middleware`; the time here is longer and is for who dribbles headers, or the
rest of a body that was refused.
"""

import asyncio
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service import metrics
from service.errors import HeadTooLarge, MalformedHttp, Overloaded, code_of, problem
from service.express import CALLS, Lane
from service.middleware import API_HEADERS, GONE, UNMATCHED, Posted
from service.request_ids import HEADER, request_id

MAX_HEAD_BYTES = 32_768  # request line and headers; an id of 256 characters is 2,304 bytes as `%F0%9F...`
MAX_HEADERS = 100
MAX_REQUEST_BYTES = 8 << 20  # chunks and trailers included, and what is still taken of a body that was refused
WHOLE_WITHIN_S = 15.0  # a request, from its first byte, or a new connection, from its opening
LOOK_EVERY_S = 1.0
_HOT = {path.encode(): path for path in CALLS}
_FULL = Overloaded("as many requests are at work as can be done in time; try again", reason="in_flight")
_BLANK = b"00000000"  # in place of a request's id
_BUG = Response("Internal Server Error", 500, {"connection": "close"}, "text/plain")  # what the server says of one
_FULL_HEADERS = ("x-request-id: %s", "x-content-type-options: nosniff", "cache-control: no-store")


def _whole(answer: Any, *more: str) -> bytes:
    """The bytes of an answer that is not the application's."""
    body = bytes(answer.body)
    lines = [f"{name.decode()}: {value.decode()}\r\n" for name, value in answer.raw_headers]
    head = "".join(lines + [f"{line}\r\n" for line in more])
    return STATUS_LINE[answer.status_code] + head.encode() + b"\r\n" + body


def _template() -> tuple[bytes, bytes]:
    """Head and body of the refusal of a full service; the first takes the body's length and both the request's id."""
    whole = _whole(problem(_FULL, request_id=_BLANK.decode()), *_FULL_HEADERS)
    head, _, body = whole.partition(b"\r\n\r\n")
    return head.replace(b"content-length: %d" % len(body), b"content-length: %d") + b"\r\n\r\n", body


_FULL_HEAD, _FULL_BODY = _template()
_FULL_ERRORS = metrics.KeptCount(metrics.ERRORS.labels(code_of(_FULL)))
_FULL_SHED = metrics.KeptCount(metrics.SHED.labels(_FULL.reason))
_PLAIN = re.compile(rb"POST (%b) HTTP/1\.1\r\n((?:\S[^\r\n]*\r\n)+)\r\n" % b"|".join(map(re.escape, _HOT)))
# Headers that say where a request ends, how it is to be answered, and what it is called.
_TELLING = re.compile(
    rb"^(content-length|transfer-encoding|connection|upgrade|expect|x-request-id)[ \t]*:[ \t]*([^\r]*)\r", re.I | re.M
)


def _turned_away(own_id: str) -> bytes:
    said = own_id.encode()
    body = _FULL_BODY.replace(_BLANK, said)
    return _FULL_HEAD % (len(body), said) + body


class _Done:
    """Stands where the server keeps the request under way: one that has its answer, and whose rest is passed over."""

    response_complete = True
    disconnected = False
    more_body = False
    keep_alive = True

    def __init__(self, scope: Any) -> None:
        self.scope = scope
        self.message_event = self

    def set(self) -> None:
        """Nobody waits for more of it."""


class Exchange:
    """A request of the express lane and its answer; stands where the server keeps the request under way.

    The server, and what is below, says that the client has gone by `disconnected`, and then sets `message_event`.

    Args:
        lane: answers it.
        posted: the request.
        keep_alive: whether the client wants to go on behind it.
        on_gone: called with this when the client has gone.
    """

    __slots__ = (
        "_on_gone",
        "body",
        "disconnected",
        "keep_alive",
        "lane",
        "more_body",
        "posted",
        "response_complete",
        "response_started",
        "scope",
        "too_late",
    )

    def __init__(self, lane: Lane, posted: Posted, keep_alive: bool, on_gone: Callable[["Exchange"], None]) -> None:
        self.lane = lane
        self.posted = posted
        self.scope = posted.scope
        self.keep_alive = keep_alive
        self.body = bytearray()
        self.more_body = True
        self.disconnected = self.response_started = self.response_complete = False
        self.too_late: asyncio.TimerHandle | None = None  # for the rest of the body; None: nobody waits for it
        self._on_gone = on_gone

    @property
    def message_event(self) -> "Exchange":
        """Itself."""
        return self

    def set(self) -> None:
        """Looks whether the client has gone; may be called more than once."""
        if self.disconnected and not self.posted.is_gone:
            self._on_gone(self)

    def body_is_over(self) -> None:
        """Whole or not, no more of it is waited for."""
        if self.too_late is not None:
            self.too_late.cancel()
            self.too_late = None


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    _received_bytes = 0  # since the last whole request
    _refusal: HeadTooLarge | None = None
    _waiting_since: float | None = None  # on the loop's clock; None: a whole request is here, or none was begun
    _idle_since: float | None = None  # on the loop's clock: when the last answer was written
    _look: asyncio.TimerHandle | None = None
    _at_work: RequestResponseCycle | Exchange | None = None
    _lane: Lane | None = None
    _is_between = True  # two requests, or before the first: what comes next is the beginning of one
    _has_room = False  # there was some when this piece began, and a request in one piece need not look again

    @property
    def is_waiting(self) -> bool:
        """Whether a request is expected that is not whole yet."""
        return self._waiting_since is not None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self.limit_concurrency is None and not self.access_log and not self.root_path:  # these are the server's own
            self._lane = getattr(self.app, "lane", None)
        self._waiting_since = self.loop.time()
        self._look = self.loop.call_later(LOOK_EVERY_S, self._look_again)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)
        # The server tells the request that came last. Where several came at once, another one is at work.
        if self._at_work is not None and not self._at_work.response_complete:
            self._at_work.disconnected = True
            self._at_work.message_event.set()
        self.pipeline.clear()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._at_work = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        if self._is_between and self._is_turned_away(data):
            return
        self._received_bytes += len(data)
        super().data_received(data)
        self._has_room = False
        has_head = self.cycle is not None and self.cycle.scope is self.scope
        if has_head and not self.cycle.more_body:
            self._waiting_since, self._received_bytes = None, 0
            return
        if has_head:
            self._wait_for_body()
        if self._waiting_since is None:
            self._waiting_since = self.loop.time()
        if self.transport.is_closing():
            return
        if not has_head and self._received_bytes > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(MAX_HEAD_BYTES, MAX_HEADERS))
        elif self._received_bytes > MAX_REQUEST_BYTES:
            self.transport.close()

    def _is_turned_away(self, data: bytes) -> bool:
        """Whether this is a whole request that was refused as it stands: an overloaded process does not even parse it.

        What is not plain in every respect is left to the parser, and refused behind that.
        """
        if self._is_under_way() or self.transport.is_closing():
            return False
        self._has_room = not self._is_full()
        if self._has_room:
            return False
        head = _PLAIN.match(data)
        if head is None or len(data) > MAX_HEAD_BYTES:
            return False
        telling = _TELLING.findall(head[2])
        said = {name.lower(): value.strip() for name, value in telling}
        length, own_id = said.pop(b"content-length", b""), said.pop(HEADER, b"")
        if said.get(b"connection", b"").lower() == b"keep-alive":
            del said[b"connection"]
        is_plain = (
            not said
            and len(telling) == len({name.lower() for name, _ in telling})
            and length.isdigit()
            and len(data) - head.end() == int(length)
        )
        if not is_plain or head[2].count(b"\n") > MAX_HEADERS:
            return False
        self._waiting_since = None
        self._say_full(_HOT[head[1]], request_id(((HEADER, own_id),)))
        self.on_response_complete()
        return True

    def on_message_begin(self) -> None:
        self._is_between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Raises out of the parser, which then asks for `send_400_response`."""
        if len(self.headers) > MAX_HEADERS or (
            self._received_bytes > MAX_HEAD_BYTES and self._size_bytes() > MAX_HEAD_BYTES
        ):
            self._refusal = HeadTooLarge(MAX_HEAD_BYTES, MAX_HEADERS)
            raise self._refusal
        path = _HOT.get(self.url)
        if path is None or self._is_under_way() or self.parser.get_method() != b"POST":
            super().on_headers_complete()
        elif self.transport.is_closing():
            self.cycle = _Done(self.scope)  # type: ignore[assignment]
        elif not self._has_room and self._is_full():
            self._turn_away()
        elif self._lane is None or self._is_unusual():
            super().on_headers_complete()
        else:
            self._take(self._lane, path)

    def on_body(self, body: bytes) -> None:
        exchange: Any = self.cycle
        if not isinstance(exchange, Exchange):
            super().on_body(body)
        elif not exchange.response_complete and not exchange.disconnected:
            exchange.body += body
            if len(exchange.body) > exchange.lane.limit_bytes:
                self._answer(exchange, exchange.lane.too_large(exchange.posted))

    def on_message_complete(self) -> None:
        self._is_between, self._has_room = True, False
        exchange: Any = self.cycle
        if not isinstance(exchange, Exchange):
            super().on_message_complete()
            return
        exchange.more_body = False
        if not exchange.response_complete and not exchange.disconnected:
            exchange.body_is_over()
            exchange.lane.turns.begin(partial(self._begin, exchange))

    def _begin(self, exchange: Exchange) -> None:
        """It is a whole request's turn."""
        if exchange.disconnected:
            self._answer(exchange, None)
            return
        task = exchange.posted.task = self.loop.create_task(self._work(exchange))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def on_response_complete(self) -> None:
        """Goes on with the next request. The server would set a timer for each answer in case that none comes, and stop
        it again; we look now and then anyway."""
        if self.pipeline:
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self._idle_since = self.loop.time()

    def _is_under_way(self) -> bool:
        """Whether a request is not answered yet, which an answer to the next one must not overtake."""
        return self.cycle is not None and not self.cycle.response_complete

    def _is_unusual(self) -> bool:
        """Whether the server has to do more with a request than read it and write the answer."""
        parser = self.parser
        return (
            self.expect_100_continue
            or self.flow.write_paused
            or parser.should_upgrade()
            or parser.get_http_version() != "1.1"
        )

    def _is_full(self) -> bool:
        """Whether the application has no permit to give; one that knows of none lets everybody in."""
        is_full = getattr(self.app, "is_full", None)
        coming = len(self.tasks) + (0 if self._lane is None else len(self._lane.turns))
        return is_full is not None and bool(is_full(coming))

    def _take(self, lane: Lane, path: str) -> None:
        """Begins a request of the express lane, which may be refused before its body is there."""
        posted = lane.begin(self.scope, path)  # type: ignore[arg-type]  # one library's word for the other's
        exchange = Exchange(lane, posted, self.parser.should_keep_alive(), self._gone)
        self.cycle = self._at_work = exchange  # type: ignore[assignment]
        refusal = lane.refuse(posted)
        if refusal is not None:
            self._answer(exchange, refusal)

    async def _work(self, exchange: Exchange) -> None:
        """The task of a request that is whole."""
        try:
            answer = await exchange.lane.answer(exchange.posted, bytes(exchange.body))
            if self.flow.write_paused and not exchange.disconnected:
                await self.flow.drain()
        except BaseException as error:  # as the server does it, which gives up waiting for a request in this way
            self.logger.error("Exception in the express lane", exc_info=error)
            self._answer(exchange, _BUG, GONE)
        else:
            self._answer(exchange, answer)

    def _answer(self, exchange: Exchange, answer: Response | None, status: int | None = None) -> None:
        """Writes an answer, if there is anybody to read it, and goes on with the next request.

        Args:
            exchange: the request.
            answer: None: its client has gone.
            status: to be counted, where it is another one than the answer's.
        """
        exchange.body_is_over()
        if answer is not None and not exchange.disconnected:
            exchange.response_complete = True
            if not self.transport.is_closing():
                self._write(exchange, answer)
        exchange.lane.end(exchange.posted, status or (answer.status_code if answer else GONE))

    def _write(self, exchange: Exchange, answer: Response) -> None:
        own_id = exchange.scope["state"]["request_id"].encode()
        headers = [*self.server_state.default_headers, *answer.raw_headers, (b"x-request-id", own_id), *API_HEADERS]
        parts = [STATUS_LINE[answer.status_code]]
        is_last = False
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
            is_last = is_last or name == b"connection"  # nobody here says it but to close
        if not is_last and not exchange.keep_alive:
            is_last = True
            parts.append(b"connection: close\r\n")
        parts += (b"\r\n", bytes(answer.body))
        self.transport.write(b"".join(parts))
        if is_last:
            self.transport.close()
        self.on_response_complete()

    def _gone(self, exchange: Exchange) -> None:
        """The client will not read the answer."""
        exchange.posted.leave()
        if exchange.more_body:
            self._answer(exchange, None)

    def _wait_for_body(self) -> None:
        """Gives the rest of a body its time; most come with their head, and cost no timer."""
        exchange: Any = self.cycle
        is_read = isinstance(exchange, Exchange) and not exchange.response_complete and not exchange.disconnected
        if is_read and exchange.too_late is None:
            exchange.too_late = self.loop.call_later(exchange.lane.limit_s, self._too_late, exchange)

    def _too_late(self, exchange: Exchange) -> None:
        self._answer(exchange, exchange.lane.too_slow(exchange.posted))

    def _turn_away(self) -> None:
        """Answers in place of the application, before the body is there, and goes on with the next request."""
        self.cycle = _Done(self.scope)  # type: ignore[assignment]
        self._say_full(_HOT[self.url], request_id(self.headers))
        if not self.parser.should_keep_alive():
            self.transport.close()
        else:
            self.on_response_complete()

    def _say_full(self, path: str, own_id: str) -> None:
        """Writes and counts the refusal of a full service."""
        _FULL_ERRORS.inc()
        _FULL_SHED.inc()
        counter, timer = metrics.turned_away(path, "POST", 503)
        counter.inc()
        timer.observe(0.0)
        self.transport.write(_turned_away(own_id))

    def send_400_response(self, msg: str) -> None:
        """What the parser could not read, or was not let read on."""
        self._refuse(self._refusal or MalformedHttp(f"{msg} The calls are described at /docs."))

    def _size_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _refuse(self, error: HeadTooLarge | MalformedHttp) -> None:
        """Answers in place of the application, and hangs up; what was asked before is answered first."""
        if self._is_busy():
            return
        answer = problem(error, request_id=request_id(self.headers or ()))
        metrics.ERRORS.labels(error.code).inc()
        metrics.REQUESTS.labels(UNMATCHED, "other", answer.status_code).inc()
        self.transport.write(_whole(answer, "connection: close"))
        self.transport.close()

    def _is_busy(self) -> bool:
        """Whether a request is at work whose answer has to come first; it is the last one then."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        if not cycle.more_body:  # it is whole, and garbage came behind it: its answer is the last
            cycle.keep_alive = False
            return True
        cycle.disconnected = True  # the garbage is in its body
        cycle.message_event.set()
        if cycle.response_started or self.pipeline:
            self.transport.close()
            return True
        return False

    def _look_again(self) -> None:
        if self.transport.is_closing():
            return
        now, since, limit_s = self.loop.time(), self._waiting_since, WHOLE_WITHIN_S
        if since is None and not self._is_under_way():
            since, limit_s = self._idle_since, self.timeout_keep_alive
        if since is not None and now - since > limit_s:
            self.transport.close()
            return
        self._look = self.loop.call_later(LOOK_EVERY_S, self._look_again)
