"""The calls of whoever runs the service: what is served and what instead, probes, metrics, and the pages for people."""

from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from service import metrics
from service.answers import BundlesAnswer, Liveness, ModelAnswer, Readiness, SwapAnswer
from service.endpoints import BODY, KEYED, json_of, read, state_of, takes
from service.errors import BundleRefused, Forbidden, NotFound, NotReady, SwapConflict, Unauthenticated, responses
from service.schemas import ActivationRequest, RollbackRequest

STATIC = Path(__file__).parent / "static"

operators = APIRouter(prefix="/v1")
probes = APIRouter()
pages = APIRouter(include_in_schema=False)


@operators.get(
    "/model",
    summary="What is being served",
    response_model=None,
    responses={200: {"model": ModelAnswer, "description": "The bundle's own account."}, **responses(*KEYED)},
)
async def model(request: Request) -> Response:
    """Bundle, digest, data dates, catalog size and measured quality."""
    return json_of(state_of(request).about())


@operators.get(
    "/admin/bundles",
    summary="See which bundles may be served, and which are",
    response_model=None,
    responses={200: {"model": BundlesAnswer, "description": "By name."}, **responses(*KEYED)},
)
async def bundles(request: Request) -> Response:
    """What lies in the directory of bundles, by what it says of itself. Digests are verified on activation."""
    return json_of(await state_of(request).bundles.listed())


@operators.post(
    "/admin/bundles/activate",
    summary="Serve another bundle",
    response_model=None,
    openapi_extra=takes(ActivationRequest),
    responses={
        200: {"model": SwapAnswer, "description": "It is being served."},
        **responses(*BODY, BundleRefused, SwapConflict, *KEYED),
    },
)
async def activate(request: Request) -> Response:
    """Loads it beside the one that is served, verifies, warms and tries it, then changes over at once.

    Requests under way end on the bundle that they began with. Other processes on the same store follow. A bundle that
    fails on the way is refused with the reason, and nothing changes. The answer comes when all is done, and what was
    begun is seen through without a caller, too.
    """
    asked = read(request, ActivationRequest)
    return json_of(await state_of(request).bundles.activate(asked.bundle, asked.variant))


@operators.post(
    "/admin/bundles/rollback",
    summary="Serve again what was served before",
    response_model=None,
    openapi_extra=takes(RollbackRequest),
    responses={
        200: {"model": SwapAnswer, "description": "It is being served again."},
        **responses(*BODY, SwapConflict, *KEYED),
    },
)
async def rollback(request: Request) -> Response:
    """Changes back to the one bundle that is kept, which is loaded and warm. Twice leads to where it began."""
    asked = read(request, RollbackRequest)
    return json_of(await state_of(request).bundles.rollback(asked.variant))


@probes.get(
    "/livez",
    summary="The process lives",
    response_model=None,
    responses={200: {"model": Liveness, "description": "It does."}},
)
async def livez() -> Response:
    """Whether to leave the process alone: it answers."""
    return json_of({"status": "alive"})


@probes.get(
    "/readyz",
    summary="Ready to serve",
    response_model=None,
    responses={200: {"model": Readiness, "description": "A bundle is loaded and warm."}, **responses(NotReady)},
)
async def readyz(request: Request) -> Response:
    """Whether to send requests here. A store that is away is a degraded state, not an unready one."""
    if request.app.state.leaving:
        raise NotReady("this process is being stopped; send requests to another")
    return json_of(await state_of(request).readiness())


@probes.get(
    "/metrics",
    summary="Prometheus metrics",
    response_model=None,
    responses={
        200: {"content": {"text/plain": {}}, "description": "Text format."},
        **responses(Unauthenticated, Forbidden),
    },
)
async def prometheus() -> Response:
    """Every number that this service keeps."""
    return Response(metrics.exposition(), headers={"content-type": metrics.CONTENT_TYPE})


@pages.get("/")
async def playground() -> Response:
    """The page."""
    return _page("index.html")


@pages.get("/docs")
async def docs() -> Response:
    """The API, rendered from /openapi.json by a page of our own that asks nobody else for anything."""
    return _page("docs.html")


def _page(name: str) -> Response:
    file = STATIC / name
    if not file.is_file():
        raise NotFound(f"this installation has no page {name}; the API is described at /openapi.json")
    return FileResponse(file, media_type="text/html")
