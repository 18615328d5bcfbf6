"""A shop that keeps histories and answers from them, and can be made to mix its users up."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

ITEMS = tuple(f"i{n:02}" for n in range(30))


class FakeShop:
    """Serves for an `async with`; replace `whose` to make it answer from somebody else's history."""

    def __init__(self) -> None:
        self.histories: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.whose: Callable[[str], str] = lambda user_id: user_id
        self.keeps: Callable[[dict[str, Any]], bool] = lambda _event: True
        self.away = False
        self.breaks = 0  # connections, before it answers
        self.url = ""

    async def __aenter__(self) -> "FakeShop":
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_error: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.breaks:
            self.breaks -= 1
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()
            return
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                status, answer = self.answer(lines[0].split()[1], json.loads(raw or b"{}"))
                body = json.dumps(answer).encode()
                said = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body)}\r\n"
                said += f"x-request-id: {headers.get('x-request-id', '')}\r\n"
                said += "retry-after: 1\r\n" if status == 503 else ""
                writer.write(said.encode() + b"\r\n" + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path.endswith("/history"):
            user_id = path.split("/")[3]
            return 200, {"user_id": user_id, "events": self.histories[user_id]}
        if self.away:
            return 503, {"code": "store_unavailable"}
        if path == "/v1/events":
            for event in body["events"]:
                if self.keeps(event):
                    self.histories[event["user_id"]].append(event)
            return 202, {"results": [{"outcome": "accepted"} for _ in body["events"]]}
        seen = {event["item_id"] for event in self.histories[self.whose(body["user_id"])]}
        left = [item_id for item_id in body["filter"]["include_ids"] if item_id not in seen]
        return 200, {"items": [{"item_id": item_id} for item_id in left[: body["k"]]], "degraded_reasons": []}


@pytest.fixture
def shop() -> FakeShop:
    """Not open yet: that takes a running loop."""
    return FakeShop()
