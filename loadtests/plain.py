"""The plain service that ours is compared with: what a good engineer writes in a day around the same ONNX model.

It is written as FastAPI's and Redis's own guides have it: bodies and answers are pydantic models, which FastAPI
serializes itself; endpoints are `async`; a history is a Redis list, appended to, trimmed and expired in one pipeline;
uvicorn runs on uvloop and httptools without an access log. One request is one run of the model and one matrix product.
It has no batching, filters, deadlines, degradation, keys, journal, pages or metrics, which is what makes it fast.

The model runs on the event loop. A `def` endpoint, or the thread pool, keeps the loop free and pays for it with a
thread switch: 0.77 instead of 0.66 ms of processor per request with 16 callers (the least of three runs, on a busy
machine). `loadtests compare --pooled` measures the other way.

It knows nothing of this project's code: a graph, a matrix and a list of items are all it is given.
"""

import argparse
import json
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from redis.asyncio import Redis
from starlette.concurrency import run_in_threadpool

MOST_EVENTS = 1_000  # of a user that are kept
KEPT_S = 90 * 86_400


class Asked(BaseModel):
    """The body of a question: a user whose history is stored, or a history."""

    user_id: str | None = Field(default=None, max_length=256)
    history: list[str] = Field(default=[], max_length=1_000)
    k: int = Field(default=20, ge=1, le=500)


class Item(BaseModel):
    """One of the items of an answer."""

    item_id: str
    score: float


class Recommended(BaseModel):
    """An answer."""

    items: list[Item]


class Event(BaseModel):
    """Who did what."""

    user_id: str = Field(max_length=256)
    item_id: str = Field(max_length=256)
    event_type: str = "view"


class Events(BaseModel):
    """The body that reports events."""

    events: list[Event] = Field(min_length=1, max_length=500)


class Accepted(BaseModel):
    """How many were stored."""

    accepted: int


class Model:
    """The graph and the matrix.

    Args:
        graph: takes `item_rows`, int64 (1, L), and gives float32 (1, D).
        vectors: float32, shape (N + 1, D); row 0 is padding.
        items: JSON with `ids`, `available` and `popularity`, N + 1 of each.
        window: newest items to read.
        threads: cores for the model, set as the service sets them, so that only the serving differs.
    """

    def __init__(self, graph: Path, vectors: Path, items: Path, *, window: int, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self._vectors = np.load(vectors, allow_pickle=False)
        known = json.loads(items.read_text())
        self._ids: list[str] = known["ids"]
        self._rows = {item_id: row for row, item_id in enumerate(self._ids) if row}
        self._gone = ~np.array(known["available"], dtype=bool)
        self._popularity = np.array(known["popularity"], dtype=np.float32)
        self._window = window

    def recommend(self, history: Sequence[str], k: int) -> Recommended:
        """The best items that are available and not in the history; the popular ones where it says nothing."""
        rows = [self._rows[item_id] for item_id in history if item_id in self._rows]
        if rows:
            window = np.array([rows[-self._window :]], dtype=np.int64)
            (query,) = self._session.run(None, {"item_rows": window})[0]
            scores = self._vectors @ query
        else:
            scores = self._popularity.copy()
        scores[self._gone] = -np.inf
        scores[rows] = -np.inf
        k = min(k, int(np.isfinite(scores).sum()))
        top = np.argpartition(-scores, k - 1)[:k] if k else np.zeros(0, dtype=np.int64)
        top = top[np.argsort(-scores[top], kind="stable")]
        found = zip(top.tolist(), scores[top].tolist(), strict=True)
        return Recommended(items=[Item(item_id=self._ids[row], score=score) for row, score in found])


def create_app(model: Model, *, redis_url: str | None = None, pooled: bool = False) -> FastAPI:
    """The service.

    Args:
        model: what recommends.
        redis_url: where histories are stored; without one, questions bring them along.
        pooled: run the model in the thread pool, as `def` endpoints are.
    """
    redis: Any = Redis.from_url(redis_url, decode_responses=True) if redis_url else None

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        if redis is not None:
            await redis.aclose()

    app = FastAPI(lifespan=lifespan)

    @app.get("/empty")
    async def empty() -> Accepted:
        return Accepted(accepted=0)

    @app.post("/events", status_code=202)
    async def record(told: Events) -> Accepted:
        if redis is None:
            raise HTTPException(503, "there is no store")
        async with redis.pipeline(transaction=True) as pipeline:
            for event in told.events:
                pipeline.rpush(f"plain:{event.user_id}", event.item_id)
            for user_id in {event.user_id for event in told.events}:
                pipeline.ltrim(f"plain:{user_id}", -MOST_EVENTS, -1)
                pipeline.expire(f"plain:{user_id}", KEPT_S)
            await pipeline.execute()
        return Accepted(accepted=len(told.events))

    @app.post("/recommendations")
    async def recommend(asked: Asked) -> Recommended:
        history = asked.history
        if not history and asked.user_id is not None and redis is not None:
            history = await redis.lrange(f"plain:{asked.user_id}", 0, -1)
        if pooled:
            return await run_in_threadpool(model.recommend, history, asked.k)
        return model.recommend(history, asked.k)

    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves on a free port of the loopback interface, and prints it."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.plain")
    for name in ("graph", "vectors", "items"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--window", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--redis")
    parser.add_argument("--pooled", action="store_true")
    given = parser.parse_args(arguments)
    model = Model(given.graph, given.vectors, given.items, window=given.window, threads=given.threads)
    app = create_app(model, redis_url=given.redis, pooled=given.pooled)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        print(f"ready on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, loop="uvloop", http="httptools", log_config=None, access_log=False)
        uvicorn.Server(config).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    sys.exit(main())
