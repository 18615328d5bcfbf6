"""What a connection may ask of us before it has sent a whole request: so many headers, and only so long.

The server's parser takes headers of any size and waits for them for ever. Here a request line with headers has a limit
in bytes and in number, a request that is not whole has a time, and what is no HTTP request is answered as every other
error is. Nothing of it costs a request that arrives in one piece, as nearly all do, more than a few comparisons.

Here overload is answered, too. A refusal that travels through the application costs a third of an answer, and at twice
the load a service would be busy refusing; at the door it costs a tenth. Only the calls of the express lane are turned
away here; probes, metrics and everything else go in.

Bodies have their own limits in `middleware`, which knows how to answer; the time here is longer and is for who dribbles
headers, or the rest of a body that was refused.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service import metrics
from service.errors import HeadTooLarge, MalformedHttp, Overloaded, code_of, problem
from service.express import CALLS
from service.request_ids import request_id

MAX_HEAD_BYTES = 32_768  # request line and headers; an id of 256 characters is 2,304 bytes as `%F0%9F...`
MAX_HEADERS = 100
MAX_REQUEST_BYTES = 8 << 20  # chunks and trailers included, and what is still taken of a body that was refused
WHOLE_WITHIN_S = 15.0  # a request, from its first byte, or a new connection, from its opening
LOOK_EVERY_S = 1.0
_HOT = {path.encode(): path for path in CALLS}
_FULL = Overloaded("as many requests are at work as can be done in time; try again", reason="in_flight")
_BLANK = b"00000000"  # in place of a request's id
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


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    _received_bytes = 0  # since the last whole request
    _refusal: HeadTooLarge | None = None
    _waiting_since: float | None = None  # on the loop's clock; None: a whole request is here, or none was begun
    _look: asyncio.TimerHandle | None = None
    _at_work: RequestResponseCycle | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether a request is expected that is not whole yet."""
        return self._waiting_since is not None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
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
        self._received_bytes += len(data)
        super().data_received(data)
        has_head = self.cycle is not None and self.cycle.scope is self.scope
        if has_head and not self.cycle.more_body:
            self._waiting_since, self._received_bytes = None, 0
            return
        if self._waiting_since is None:
            self._waiting_since = self.loop.time()
        if self.transport.is_closing():
            return
        if not has_head and self._received_bytes > MAX_HEAD_BYTES:
            self._refuse(HeadTooLarge(MAX_HEAD_BYTES, MAX_HEADERS))
        elif self._received_bytes > MAX_REQUEST_BYTES:
            self.transport.close()

    def on_headers_complete(self) -> None:
        """Raises out of the parser, which then asks for `send_400_response`."""
        if len(self.headers) > MAX_HEADERS or (
            self._received_bytes > MAX_HEAD_BYTES and self._size_bytes() > MAX_HEAD_BYTES
        ):
            self._refusal = HeadTooLarge(MAX_HEAD_BYTES, MAX_HEADERS)
            raise self._refusal
        if self.url in _HOT and self._is_full():
            self._turn_away()
        else:
            super().on_headers_complete()

    def _is_full(self) -> bool:
        """Whether the application has no permit to give; one that knows of none lets everybody in."""
        is_full = getattr(self.app, "is_full", None)
        if is_full is None or (self.cycle is not None and not self.cycle.response_complete):
            return False  # behind another request of this connection, an answer of ours would overtake that one's
        return bool(is_full(len(self.tasks))) and self.parser.get_method() == b"POST"

    def _turn_away(self) -> None:
        """Answers in place of the application, before the body is there, and goes on with the next request."""
        own_id = request_id(self.headers)
        self.cycle = _Done(self.scope)  # type: ignore[assignment]
        metrics.ERRORS.labels(code_of(_FULL)).inc()
        metrics.SHED.labels(_FULL.reason).inc()
        counter, timer = metrics.answered(_HOT[self.url], "POST", 503)
        counter.inc()
        timer.observe(0.0)
        self.transport.write(_turned_away(own_id))
        if not self.parser.should_keep_alive():
            self.transport.close()
        else:
            self.on_response_complete()

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
        metrics.REQUESTS.labels("unmatched", "other", answer.status_code).inc()
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
        since = self._waiting_since
        if since is not None and self.loop.time() - since > WHOLE_WITHIN_S:
            self.transport.close()
            return
        self._look = self.loop.call_later(LOOK_EVERY_S, self._look_again)
