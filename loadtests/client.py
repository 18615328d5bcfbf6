"""Requests over kept connections, and what came of each: the one HTTP client of the generators that use asyncio."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from loadtests import target

OK = ("200", "202", "204")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one request got: the status as text, or the kind of failure; the body where it was JSON."""

    code: str
    body: Any = None

    @property
    def is_ok(self) -> bool:
        """Whether it was answered as asked."""
        return self.code in OK


class Client:
    """Talks to one service."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def request(self, method: str, path: str, body: bytes | None = None) -> Outcome:
        """Sends one request and reads its answer to the end. Failures of the transport are outcomes, too."""
        try:
            async with self._session.request(method, path, data=body) as answer:
                raw = await answer.read()
        except TimeoutError:
            return Outcome("timeout")
        except aiohttp.ClientError as error:
            return Outcome(type(error).__name__)
        if answer.content_type != "application/json":
            return Outcome(str(answer.status))
        try:
            return Outcome(str(answer.status), json.loads(raw))
        except ValueError:
            return Outcome("torn")

    async def post(self, path: str, body: Mapping[str, Any]) -> Outcome:
        """`request` with a body that is still to be encoded."""
        return await self.request("POST", path, json.dumps(body).encode())


@asynccontextmanager
async def connected(url: str, *, connections: int, timeout_s: float) -> AsyncIterator[Client]:
    """A client for a block; no more than `connections` requests are on their way at once, the others wait here."""
    # The limit is on the wire; a request that waits for a connection is waiting for the service.
    session = aiohttp.ClientSession(
        target.checked_url(url),
        connector=aiohttp.TCPConnector(limit=connections, ttl_dns_cache=None),
        timeout=aiohttp.ClientTimeout(total=timeout_s),
        headers={"content-type": "application/json", **target.headers()},
        auto_decompress=False,
        trust_env=False,
    )
    try:
        yield Client(session)
    finally:
        await session.close()
        await asyncio.sleep(0)  # the transports close in the loop's next round
