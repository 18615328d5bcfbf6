"""The service over the toy bundle: an application and a client for each test, a clock that only tests move."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import toy_ranker
from fastapi import FastAPI
from toy_generative import toy_generative

from retrieval.bundle import Bundle
from retrieval.recommenders import Answer, Query, Served, Stage, TwoStage, load
from service.app import create_app
from service.errors import StoreUnavailable
from service.sessions import NO_EVENTS, ItemChanges
from service.settings import Settings

NOW = 1_700_000_000.0


class AwayStore:
    """A session store that is never there."""

    name = "away"
    durable = False

    async def open(self) -> None:
        raise StoreUnavailable("open", "it is away")

    async def close(self) -> None: ...

    async def append(self, *_: object) -> Any:
        raise StoreUnavailable("append", "it is away")

    async def append_many(self, *_: object, **__: object) -> Any:
        raise StoreUnavailable("append", "it is away")

    async def history(self, _user_id: str) -> Any:
        raise StoreUnavailable("history", "it is away")

    async def columns(self, _user_id: str) -> Any:
        raise StoreUnavailable("history", "it is away")

    async def erase(self, _user_id: str) -> bool:
        raise StoreUnavailable("erase", "it is away")

    async def merge(self, _source: str, _target: str) -> int:
        raise StoreUnavailable("merge", "it is away")

    async def keep_list(self, _kept: object, **_: object) -> None:
        raise StoreUnavailable("keep_list", "it is away")

    async def advance_list(self, _recommendation_id: str, _by: int) -> Any:
        raise StoreUnavailable("advance_list", "it is away")

    async def count_distinct(self, _name: str, _members: object, **_: object) -> int:
        raise StoreUnavailable("count_distinct", "it is away")

    async def announce(self, _name: str, _value: bytes) -> None:
        raise StoreUnavailable("announce", "it is away")

    async def announced(self, _name: str) -> Any:
        raise StoreUnavailable("announced", "it is away")

    async def change_item(self, _change: object) -> int:
        raise StoreUnavailable("change_item", "it is away")

    async def item_changes(self, _since: int = 0) -> Any:
        raise StoreUnavailable("item_changes", "it is away")

    async def ping(self) -> None:
        raise StoreUnavailable("ping", "it is away")


class EmptyStore(AwayStore):
    """A session store that nobody has told anything."""

    async def open(self) -> None: ...

    async def history(self, _user_id: str) -> Any:
        return []

    async def columns(self, _user_id: str) -> Any:
        return NO_EVENTS

    async def item_changes(self, _since: int = 0) -> ItemChanges:
        return ItemChanges(0, [])


class Recommending:
    """A first stage whose behaviour a test may change while it serves; it begins as the real one."""

    name = "recommending"

    def __init__(self, served: Served) -> None:
        self.act: Callable[[list[Query], Stage], list[Answer]] = served.recommender.first.recommend
        self.batches: list[int] = []

    def recommend(self, queries: list[Query], stage: Stage) -> list[Answer]:
        self.batches.append(len(queries))
        return self.act(queries, stage)


def with_stages(served: Served, *, first: Any = None, ranker: Any = None) -> Served:
    """A bundle with another first stage, or another ranker."""

    def other(stages: TwoStage) -> TwoStage:
        return TwoStage(first or stages.first, ranker or stages.ranker, stages.arranger)

    ranker = ranker or served.ranker
    return replace(served, recommender=other(served.recommender), dense=other(served.dense), ranker=ranker)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def away_store() -> AwayStore:
    return AwayStore()


@pytest.fixture
def empty_store() -> EmptyStore:
    return EmptyStore()


@pytest.fixture(scope="session")
def served(toy_bundle: Path) -> Served:
    """The toy bundle, loaded."""
    return load(Bundle.open(toy_bundle))


@pytest.fixture(scope="session")
def generative(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The toy bundle that generates, loaded, with the toy's encoder to fall back on."""
    return load(Bundle.open(toy_generative(tmp_path_factory.mktemp("generative") / "toy")))


@pytest.fixture(scope="session")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The toy bundle with a ranker, loaded."""
    return load(Bundle.open(toy_ranker.write(tmp_path_factory.mktemp("ranked") / "toy")))


@pytest.fixture
def recommending(served: Served) -> Recommending:
    return Recommending(served)


@pytest.fixture
def with_recommender(served: Served, recommending: Recommending) -> Served:
    """The toy bundle with a recommender that the test may change."""
    return with_stages(served, first=recommending)


Opens = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def open_client(served: Served) -> Opens:
    """Opens a client on a fresh application; keyword arguments are settings, or `app_` arguments of `create_app`."""

    @asynccontextmanager
    async def opened(
        *, app: Mapping[str, Any] | None = None, client: str = "127.0.0.1", **changes: Any
    ) -> AsyncIterator[httpx.AsyncClient]:
        # Five seconds: what is not about time must not depend on how busy the machine is.
        settings = Settings(**{"store": "memory://", "deadline_ms": 5_000, **changes})
        made: FastAPI = create_app(settings, **{"served": served, "now": lambda: NOW, **(app or {})})
        transport = httpx.ASGITransport(made, client=(client, 1))
        async with (
            made.router.lifespan_context(made),
            httpx.AsyncClient(transport=transport, base_url="http://service") as http,
        ):
            http.app = made  # type: ignore[attr-defined]
            yield http

    return opened


@pytest.fixture
async def client(open_client: Opens) -> AsyncIterator[httpx.AsyncClient]:
    """A client on the toy bundle with an empty memory store."""
    async with open_client() as opened:
        yield opened
