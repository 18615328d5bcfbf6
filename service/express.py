"""The express lane: the few calls that make up nearly all traffic, past the framework's own way to them.

The framework's routing, dependency solving and exit stacks cost more than encoding a history. The calls here go from
our own layers straight to their endpoint, the very function that the framework would have called, so nothing is written
twice: whatever is not listed, or comes with another method, takes the usual way, and both give the same answers.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

CALLS = ("/v1/recommendations", "/v1/events", "/v1/rankings")  # by POST; paths without parameters


class Application(FastAPI):
    """FastAPI with an express lane beside it.

    Args:
        layers: puts what every request passes through around an application.
        express: where the calls of the lane are found.
        settings: of the framework.
    """

    def __init__(self, *, layers: Callable[[ASGIApp], ASGIApp], express: Iterable[BaseRoute], **settings: Any) -> None:
        super().__init__(**settings)
        self._express = {
            route.path: route
            for route in express
            if isinstance(route, APIRoute) and route.path in CALLS and "POST" in (route.methods or ())
        }
        self._lane = layers(self._endpoint)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self._express:
            await self._lane(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def is_full(self, coming: int) -> bool:
        """Whether a call of the lane would be refused; asked by the connection, before it makes anything of a request.

        Args:
            coming: requests that are here already.
        """
        return self.state.shell is not None and bool(self.state.shell.permits.is_full(coming))

    async def _endpoint(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        route = scope["route"] = self._express[scope["path"]]
        endpoint: Callable[[Request], Awaitable[Response]] = route.endpoint
        response = await endpoint(Request(scope, receive, send))
        await response(scope, receive, send)
