"""What a connection may ask of us before it has sent a whole request: so many headers, and only so long.

The server's parser takes headers of any size and waits for them for ever. Here a request line with headers has a limit
in bytes and in number, a request that is not whole has a time, and what is no HTTP request is answered as every other
error is. Nothing of it costs a request that arrives in one piece, as nearly all do, more than a few comparisons.

Bodies have their own limits in `middleware`, which knows how to answer; the time here is longer and is for who dribbles
headers, or the rest of a body that was refused.
"""

import asyncio
import itertools
import secrets
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service import metrics
from service.errors import PROBLEM, HeadTooLarge, MalformedHttp, problem

MAX_HEAD_BYTES = 32_768  # request line and headers; an id of 256 characters is 2,304 bytes as `%F0%9F...`
MAX_HEADERS = 100
MAX_REQUEST_BYTES = 8 << 20  # chunks and trailers included, and what is still taken of a body that was refused
WHOLE_WITHIN_S = 15.0  # a request, from its first byte, or a new connection, from its opening
LOOK_EVERY_S = 1.0
_PROCESS = secrets.token_hex(8)
_number = itertools.count()


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    _received_bytes = 0  # since the last whole request
    _refusal: HeadTooLarge | None = None
    _waiting_since: float | None = None  # on the loop's clock; None: a whole request is here, or none was begun
    _look: asyncio.TimerHandle | None = None
    _at_work: RequestResponseCycle | None = None

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
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser could not read, or was not let read on."""
        self._refuse(self._refusal or MalformedHttp(f"{msg} The calls are described at /docs."))

    def _size_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def _refuse(self, error: HeadTooLarge | MalformedHttp) -> None:
        """Answers in place of the application, and hangs up; what was asked before is answered first."""
        if self._is_busy():
            return
        answer = problem(error, request_id=f"{_PROCESS}{next(_number):016x}")
        status = answer.status_code
        metrics.ERRORS.labels(error.code).inc()
        metrics.REQUESTS.labels("unmatched", "other", status).inc()
        body = bytes(answer.body)
        head = f"content-type: {PROBLEM}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
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
