"""The application: wiring and lifespan, no logic."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from retrieval.recommenders import Served
from service import __version__, documentation, logs, settings
from service.errors import of_http, of_validation
from service.express import Application, Lane
from service.journal import open_journal
from service.keys import open_keys
from service.middleware import BodyLimit, Edge, Gate, Recorder
from service.operations import STATIC, operators, pages, probes
from service.placements import Placements
from service.rates import Rates
from service.routes import api
from service.schemas import MAX_BODY_BYTES
from service.sessions import STORE_TIMEOUT_S, SessionStore, open_store
from service.settings import Settings
from service.state import serving
from service.tracing import open_tracing
from service.variants import Plan


def create_app(
    given: Settings | None = None,
    *,
    served: Served | None = None,
    store: SessionStore | None = None,
    clock: Callable[[], float] = time.perf_counter,
    now: Callable[[], float] = time.time,
) -> FastAPI:
    """The service.

    Args:
        given: the settings; read from the environment when left out, as a server's worker does.
        served: a bundle that is loaded already; otherwise the lifespan loads the one of the settings.
        store: a session store; otherwise the one of the settings.
        clock: seconds from some fixed moment, for deadlines and timings.
        now: seconds since 1970.

    Raises:
        ConfigurationError: the settings, the URL of the store or the log, the keys, the placements or the variants are
            no good.
    """
    if given is None:
        given = settings.read()
        logs.configure(level=given.log_level, form=given.log_format)
    chosen, loaded = given, [served]
    keys = open_keys(chosen)
    rates = Rates(chosen.rate_limit, workers=chosen.workers, clock=clock)
    placements, plan = Placements.read(chosen.placements), Plan.read(chosen.variants)
    sessions = store or _open_store(chosen, now)
    journal = open_journal(chosen.log, now=now)
    tracing = open_tracing(chosen.traces)
    lines = logs.RequestLines(share=chosen.log_sample, slow_s=chosen.deadline_s)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with serving(
            chosen,
            store=sessions,
            served=loaded.pop() if loaded else None,  # not kept: it may be exchanged
            placements=placements,
            plan=plan,
            journal=journal,
            clock=clock,
            now=now,
        ) as state:
            app.state.shell = state
            yield
            app.state.shell = None
        if tracing is not None:
            await asyncio.to_thread(tracing.close)

    def layers(inner: ASGIApp) -> ASGIApp:
        limited = BodyLimit(inner, limit_bytes=MAX_BODY_BYTES)
        return Edge(Gate(limited, keys=keys, rates=rates), clock=clock, lines=lines, tracing=tracing)

    recorder = Recorder(clock=clock, lines=lines, tracing=tracing)
    app = Application(
        layers=layers,
        lane=partial(Lane, recorder=recorder, keys=keys, rates=rates, limit_bytes=MAX_BODY_BYTES),
        express=api.routes,
        title="Sequitur",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,  # a redirect would repeat a caller's Host header, and no call ends in a slash
        middleware=[Middleware(layers)],
        exception_handlers={HTTPException: _http, RequestValidationError: _validation},
    )
    app.state.shell = None
    app.state.leaving = False
    for router in (api, operators, probes, pages):
        app.router.routes += router.routes  # as they are: including them would build each of them again
    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False))
    app.openapi = lambda: documentation.openapi(app)  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return Response(orjson.dumps(app.openapi()), media_type="application/json")

    return app


def _open_store(chosen: Settings, now: Callable[[], float]) -> SessionStore:
    return open_store(
        chosen.store,
        cap=chosen.history_cap,
        ttl_s=chosen.history_ttl_s,
        dedup_ttl_s=min(chosen.dedup_ttl_s, chosen.history_ttl_s),
        # An event may take longer than a recommendation, which gives up by itself.
        timeout_s=max(STORE_TIMEOUT_S, chosen.store_timeout_s),
        clock=now,
    )


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # it was registered for nothing else
    raise of_http(error, method=request.method, path=request.url.path) from error


async def _validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # it was registered for nothing else
    raise of_validation(error.errors()) from error
