"""The express lane: the few calls that make up nearly all traffic, past the framework's own way to them.

The framework's routing, dependency solving and exit stacks cost more than encoding a history. The calls here go from
our own layers straight to their endpoint, the very function that the framework would have called, so nothing is written
twice: whatever is not listed, or comes with another method, takes the usual way, and both give the same answers.

ASGI itself costs more than the layers: events to wait on, tasks to wake, an answer in two pieces. So a connection that
can hold a whole request in its hands goes past that, too, by `Lane`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import BodyTooLarge, SlowBody
from service.middleware import BODY_WITHIN_S, ClientGone, Keys, Posted, Recorder, admit, header
from service.rates import Rates

Endpoint = Callable[[Request], Awaitable[Response]]
A_TURN = 4  # requests begun: half a millisecond of work
CALLS = ("/v1/recommendations", "/v1/events", "/v1/rankings")  # by POST; paths without parameters


class Turns:
    """Begins a few pieces of work in each turn of the event loop, in the order in which they came.

    All that is ready runs before the loop looks at its sockets again. If every request that comes in a crowd were begun
    at once, whoever comes then would wait for all of them, and be it only to hear that there is no room.

    Args:
        felt: hears how long each piece waited.
        clock: seconds from some fixed moment.
    """

    def __init__(self, *, felt: Callable[[float], None], clock: Callable[[], float] = time.perf_counter) -> None:
        self._felt = felt
        self._clock = clock
        self._waiting: deque[tuple[Callable[[], None], float]] = deque()
        self._begun = 0  # in this turn
        self._has_turn = False  # another one is to come

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def begin(self, work: Callable[[], None]) -> None:
        """Calls `work`, now or in a later turn."""
        if self._begun < A_TURN and not self._waiting:
            self._begun += 1
            self._felt(0.0)
            work()
        else:
            self._waiting.append((work, self._clock()))
        if not self._has_turn:
            self._has_turn = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._begun, self._has_turn = 0, bool(self._waiting)
        if self._has_turn:
            asyncio.get_running_loop().call_soon(self._turn)
            self._felt(self._clock() - self._waiting[0][1])
        while self._waiting and self._begun < A_TURN:
            self._begun += 1
            self._waiting.popleft()[0]()


class Lane:
    """What the layers do, in one piece, for a connection that reads the request and writes the answer by itself.

    A request is begun, admitted, answered where it was, and ended, in this order. When it is answered, `turns` says.

    Args:
        app: where endpoints find what the process holds.
        endpoints: by path.
        recorder, keys, rates: see `middleware`.
        limit_bytes: of a body.
        limit_s: within which a body has to be there.
    """

    def __init__(
        self,
        app: FastAPI,
        endpoints: Mapping[str, Endpoint],
        *,
        recorder: Recorder,
        keys: Keys,
        rates: Rates,
        limit_bytes: int,
        limit_s: float = BODY_WITHIN_S,
    ) -> None:
        self._app = app
        self._endpoints = endpoints
        self._recorder = recorder
        self._keys = keys
        self._rates = rates
        self.limit_bytes = limit_bytes
        self.limit_s = limit_s
        self.turns = Turns(felt=self._felt)

    def _felt(self, wait_s: float) -> None:
        shell = self._app.state.shell
        if shell is not None:
            shell.permits.felt(wait_s, "turn")

    def _here(self, more: int) -> None:
        shell = self._app.state.shell
        if shell is not None:
            shell.permits.here += more

    def begin(self, scope: Scope, path: str) -> Posted:
        """The head of a request has come, which may be anybody's."""
        scope["method"] = "POST"
        scope["path"] = path
        scope["app"] = self._app
        self._here(1)
        return Posted(scope, self._recorder.begin(scope))

    def refuse(self, posted: Posted) -> Response | None:
        """The answer to a request that is not admitted, or whose body will be too large; None where it may go on."""
        try:
            admit(posted.scope, self._keys, self._rates)
        except Exception as error:
            return self._recorder.fail(posted.scope, error)
        declared = header(posted.scope, b"content-length")
        return self.too_large(posted) if declared.isdecimal() and int(declared) > self.limit_bytes else None

    def too_large(self, posted: Posted) -> Response:
        """The answer to more than may come."""
        return self._recorder.fail(posted.scope, BodyTooLarge(self.limit_bytes))

    def too_slow(self, posted: Posted) -> Response:
        """The answer to what has not come in time."""
        return self._recorder.fail(posted.scope, SlowBody(self.limit_s))

    async def answer(self, posted: Posted, body: bytes) -> Response | None:
        """The answer to a whole request; None where its client has gone meanwhile."""
        posted.scope["state"]["body"] = body
        posted.route = posted.scope["path"]
        try:
            return await self._endpoints[posted.route](posted)
        except ClientGone:
            return None
        except Exception as error:
            return self._recorder.fail(posted.scope, error)

    def end(self, posted: Posted, status: int) -> None:
        """It is answered, or its client has gone."""
        self._here(-1)
        self._recorder.end(posted.scope, posted.route, status, posted.trace)


class Application(FastAPI):
    """FastAPI with an express lane beside it.

    Args:
        layers: puts what every request passes through around an application.
        lane: makes what does the same for connections, of this application and of endpoints by path.
        express: where the calls of the lane are found.
        settings: of the framework.
    """

    def __init__(
        self,
        *,
        layers: Callable[[ASGIApp], ASGIApp],
        lane: Callable[[FastAPI, Mapping[str, Endpoint]], Lane],
        express: Iterable[BaseRoute],
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self._express = {
            route.path: route
            for route in express
            if isinstance(route, APIRoute) and route.path in CALLS and "POST" in (route.methods or ())
        }
        self._layered = layers(self._endpoint)
        self.lane = lane(self, {path: route.endpoint for path, route in self._express.items()})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._express:
            await self._layered(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def is_full(self, coming: int) -> bool:
        """Whether a call of the lane would be refused; asked by the connection, before it makes anything of a request.

        Args:
            coming: requests that are here already.
        """
        shell = self.state.shell
        return shell is not None and bool(shell.permits.is_full(coming))

    async def _endpoint(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        route = scope["route"] = self._express[scope["path"]]
        endpoint: Endpoint = route.endpoint
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)
