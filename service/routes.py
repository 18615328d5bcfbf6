"""The endpoints, a few lines each: parse, ask, answer. What they promise to the docs stands beside what they do.

Bodies are parsed here and not by the framework, which would parse them twice and validate answers that we wrote.
"""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel, ValidationError
from starlette.responses import FileResponse, Response

from retrieval.errors import InvalidFilter, InvalidRule, UnknownItem
from service import metrics
from service.answers import (
    BundlesAnswer,
    EventsAnswer,
    HistoryAnswer,
    ItemAnswer,
    Liveness,
    MergeAnswer,
    ModelAnswer,
    RankingAnswer,
    Readiness,
    RecommendationAnswer,
    SimilarAnswer,
    SwapAnswer,
)
from service.errors import (
    BodyTooLarge,
    BudgetExhausted,
    BundleRefused,
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    ListGone,
    MalformedJson,
    NotFound,
    NotReady,
    Overloaded,
    RateLimited,
    SlowBody,
    StoreUnavailable,
    SwapConflict,
    Unauthenticated,
    UnsupportedMediaType,
    of_validation,
    responses,
)
from service.items import Items
from service.middleware import Posted, header, while_connected
from service.pipeline import Pipeline
from service.schemas import (
    DEFAULT_K,
    MAX_ID,
    MAX_K,
    MAX_WORD,
    ActivationRequest,
    EventsRequest,
    ItemRequest,
    MergeRequest,
    RankingRequest,
    RecommendationRequest,
    RollbackRequest,
)
from service.state import State
from service.users import Users

STATIC = Path(__file__).parent / "static"
Body = TypeVar("Body", bound=BaseModel)
PathId = Annotated[str, PathParameter(min_length=1, max_length=MAX_ID)]
K = Annotated[int, Query(ge=1, le=MAX_K, description="How many items.")]

PlacedK = Annotated[
    int | None, Query(ge=1, le=MAX_K, description=f"How many items. Left out: as the placement says, or {DEFAULT_K}.")
]
NextK = Annotated[
    int | None, Query(ge=1, le=MAX_K, description="How many items. Left out: as many as stood on the first page.")
]
After = Annotated[
    int | None, Query(ge=1, le=MAX_K, description="How many places of the list come before. Left out: go on.")
]
PlacementName = Annotated[str | None, Query(min_length=1, max_length=MAX_WORD, description="Where it will be shown.")]

_KEYED: tuple[type[Exception], ...] = (Unauthenticated, Forbidden, RateLimited, NotReady, Exception)
_BODY: tuple[type[Exception], ...] = (
    MalformedJson,
    InvalidRequest,
    BodyTooLarge,
    SlowBody,
    UnsupportedMediaType,
)

api = APIRouter(prefix="/v1")
probes = APIRouter()
pages = APIRouter(include_in_schema=False)


def _takes(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a body that an endpoint parses itself; `documentation.py` adds the schema."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _state(request: Request) -> State:
    """What the lifespan put together.

    Raises:
        NotReady: it has not, or is taking it apart.
    """
    state: State | None = request.scope["app"].state.shell
    if state is None:
        raise NotReady("the bundle is not loaded and warm; try again in a moment")
    return state


def _pipeline(request: Request) -> Pipeline:
    return _state(request).pipeline


def _users(request: Request) -> Users:
    return _state(request).users


def _items(request: Request) -> Items:
    return _state(request).items


def _parsed(request: Request, model: type[Body]) -> tuple[State, Body]:
    """What answers, and the body as `model`; an overloaded process refuses before it reads one.

    Raises:
        NotReady: nothing answers.
        Overloaded: no permit is left.
        UnsupportedMediaType, MalformedJson, InvalidRequest: it is none.
    """
    state = _state(request)
    if not isinstance(request, Posted):  # its connection has asked already
        state.permits.check()
    return state, _read(request, model)


def _read(request: Request, model: type[Body]) -> Body:
    """The body as `model`, however busy the process is.

    Raises:
        UnsupportedMediaType, MalformedJson, InvalidRequest: it is none.
    """
    media = header(request.scope, b"content-type")
    if media not in ("", "application/json") and not _is_json(media):
        # Browsers may send forms and plain text to other origins without asking; JSON they may not.
        raise UnsupportedMediaType(media)
    try:
        return model.model_validate_json(request.scope["state"]["body"])
    except ValidationError as error:
        raise of_validation(error.errors(include_url=False)) from None


def _is_json(media: str) -> bool:
    kind = media.partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


class _Json(Response):
    """An answer in JSON, with no more work on its headers than it needs."""

    def __init__(self, content: Any, status: int, *headers: tuple[bytes, bytes]) -> None:
        self.status_code = status
        self.background = None
        self.body = orjson.dumps(content)
        self.raw_headers = [(b"content-length", b"%d" % len(self.body)), (b"content-type", b"application/json")]
        self.raw_headers += headers


def _json(content: Any, *, status: int = 200) -> Response:
    return _Json(content, status)


def _timed(request: Request, answer: RecommendationAnswer | RankingAnswer | SimilarAnswer) -> Response:
    """An answer with its stages in the header and in the log line, from the same numbers."""
    request.scope["state"]["answer"] = answer
    # `{"filter":0.012,"state":0.05}` is written as `filter;dur=0.012, state;dur=0.05`, for a third of what formatting
    # the numbers takes.
    timing = orjson.dumps(answer["timings_ms"])[2:-1].replace(b'":', b";dur=").replace(b',"', b", ")
    return _Json(answer, 200, (b"server-timing", timing))


@api.post(
    "/recommendations",
    summary="Recommend items",
    response_model=None,
    openapi_extra=_takes(RecommendationRequest),
    responses={
        200: {"model": RecommendationAnswer, "description": "Exactly `k` items whenever `k` are eligible."},
        **responses(*_BODY, InvalidFilter, InvalidRule, *_KEYED, BudgetExhausted, Overloaded, DeadlineExceeded),
    },
)
async def recommend(request: Request) -> Response:
    """Items for a user, a history or nobody in particular, best first.

    Never an id outside the catalog or the filter, and never one twice. Where something is missing (no history, the
    store away, time nearly over) a simpler answer comes, with `degraded` and why. Unknown users and items are no error.
    """
    state, asked = _parsed(request, RecommendationRequest)
    about = request.scope["state"]
    answer = await while_connected(
        request, state.pipeline.recommend(asked, arrived=about["arrived"], caller=about["caller"])
    )
    return _timed(request, answer)


@api.get(
    "/users/{user_id:path}/recommendations",
    summary="Recommend items, the simple form",
    response_model=None,
    responses={
        200: {"model": RecommendationAnswer, "description": "Exactly `k` items whenever `k` are eligible."},
        **responses(InvalidRequest, *_KEYED, BudgetExhausted, Overloaded, DeadlineExceeded),
    },
)
async def recommend_for_user(
    request: Request, user_id: PathId, k: PlacedK = None, placement: PlacementName = None
) -> Response:
    """Items for a user from the stored history. It changes nothing, so nothing is kept for a next page either."""
    said = {"user_id": user_id, "placement": placement, "k": k}
    asked = RecommendationRequest.model_validate({name: value for name, value in said.items() if value is not None})
    about, state = request.scope["state"], _state(request)
    state.permits.check()
    answer = await while_connected(
        request,
        state.pipeline.recommend(asked, arrived=about["arrived"], caller=about["caller"], has_pages=False),
    )
    return _timed(request, answer)


@api.get(
    "/recommendations/{recommendation_id}/next",
    summary="The next page of a list",
    response_model=None,
    responses={
        200: {"model": RecommendationAnswer, "description": "What follows in the list as it was found."},
        **responses(InvalidRequest, ListGone, *_KEYED, Overloaded, StoreUnavailable),
    },
)
async def next_page(request: Request, recommendation_id: PathId, k: NextK = None, after: After = None) -> Response:
    """No item twice and none left out, whatever the user has done since; only what was removed is not shown any more.

    `next` of an answer is this call with `after`, which gives the same page each time. Without `after` every call goes
    on where the one before ended, and calls at the same time get different pages. Lists are kept for 30 minutes, of
    requests with consent.
    """
    page = _state(request).pages.next(recommendation_id, k=k, after=after)
    return _timed(request, await while_connected(request, page))


@api.post(
    "/users/merge",
    summary="Merge two users",
    response_model=None,
    openapi_extra=_takes(MergeRequest),
    responses={
        200: {"model": MergeAnswer, "description": "They are one user now."},
        **responses(*_BODY, *_KEYED, Overloaded, StoreUnavailable),
    },
)
async def merge(request: Request) -> Response:
    """Moves all events of one user to another, for visitors who sign in, and forgets the first.

    Order and event ids are kept; what both have counts once. Sent again it finds nothing to move.
    """
    state, body = _parsed(request, MergeRequest)
    return _json(await state.users.merge(body.source, body.into))


@api.post(
    "/rankings",
    summary="Put candidates in order",
    response_model=None,
    openapi_extra=_takes(RankingRequest),
    responses={
        200: {"model": RankingAnswer, "description": "Every candidate once."},
        **responses(*_BODY, InvalidRule, *_KEYED, BudgetExhausted, Overloaded, DeadlineExceeded),
    },
)
async def rank(request: Request) -> Response:
    """The caller's own candidates, best first, by the numbers that recommendations are scored with.

    Where the bundle ranks, the goals of the placement count, and its rules do not: every candidate comes back. Ids that
    are unknown come last, flagged, and so does what the model has nothing to score by. Without a history the order is
    by popularity, and the answer says so as `degraded`.
    """
    state, asked = _parsed(request, RankingRequest)
    about = request.scope["state"]
    answer = await while_connected(
        request, state.pipeline.rank(asked, arrived=about["arrived"], caller=about["caller"])
    )
    return _timed(request, answer)


@api.get(
    "/items/{item_id:path}/similar",
    summary="Items like one item",
    response_model=None,
    responses={
        200: {"model": SimilarAnswer, "description": "The nearest items, never the item itself."},
        **responses(InvalidRequest, UnknownItem, *_KEYED, Overloaded),
    },
)
async def similar(request: Request, item_id: PathId, k: K = DEFAULT_K) -> Response:
    """The items whose vectors lie nearest."""
    return _timed(request, await while_connected(request, _pipeline(request).similar(item_id, k)))


@api.get(
    "/items/{item_id:path}",
    summary="See an item",
    response_model=None,
    responses={
        200: {"model": ItemAnswer, "description": "What holds of it now."},
        **responses(InvalidRequest, UnknownItem, *_KEYED),
    },
)
async def item(request: Request, item_id: PathId) -> Response:
    """What is known of an item, and whether it may be shown."""
    return _json(_items(request).get(item_id))


@api.put(
    "/items/{item_id:path}",
    summary="Add or change an item",
    response_model=None,
    openapi_extra=_takes(ItemRequest),
    responses={
        200: {"model": ItemAnswer, "description": "It is changed, or back."},
        201: {"model": ItemAnswer, "description": "It is new."},
        **responses(*_BODY, *_KEYED, Overloaded, StoreUnavailable),
    },
)
async def put_item(request: Request, item_id: PathId) -> Response:
    """In effect on the next request here, and on other workers of the same store within about a second.

    Attributes replace all that were known; left out, they stay. A new item is found by filters and among popular
    items at once, by generators as far as they can read its text, and by encoders where the items lie that share its
    words (source `described`). `filter.new_only` asks for new items alone.
    """
    state, body = _parsed(request, ItemRequest)
    answer, is_added = await state.items.put(item_id, body)
    return _json(answer, status=201 if is_added else 200)


@api.delete(
    "/items/{item_id:path}",
    summary="Remove an item",
    response_model=None,
    status_code=204,
    responses={
        204: {"description": "It is in no answer any more."},
        **responses(InvalidRequest, UnknownItem, *_KEYED, Overloaded, StoreUnavailable),
    },
)
async def remove_item(request: Request, item_id: PathId) -> Response:
    """In effect on the next request here, and on other workers of the same store within about a second.

    What is known of the item stays, and so does what it tells of those who chose it; a put brings it back.
    """
    await _items(request).remove(item_id)
    return Response(status_code=204)


@api.post(
    "/events",
    summary="Remember events",
    response_model=None,
    status_code=202,
    openapi_extra=_takes(EventsRequest),
    responses={
        202: {"model": EventsAnswer, "description": "All are stored; visible to the very next recommendation."},
        **responses(*_BODY, *_KEYED, Overloaded, StoreUnavailable),
    },
)
async def record(request: Request) -> Response:
    """Stores up to 500 events, or none of them and an error that names the bad one."""
    state, body = _parsed(request, EventsRequest)
    return _json(await state.users.record(body.events), status=202)


@api.get(
    "/users/{user_id:path}/history",
    summary="See a history",
    response_model=None,
    responses={
        200: {"model": HistoryAnswer, "description": "Oldest first; empty for an unknown user."},
        **responses(InvalidRequest, *_KEYED, Overloaded, StoreUnavailable),
    },
)
async def history(request: Request, user_id: PathId) -> Response:
    """All that is remembered of a user."""
    return _json(await _users(request).history(user_id))


@api.delete(
    "/users/{user_id:path}",
    summary="Forget a user",
    response_model=None,
    status_code=204,
    responses={
        204: {"description": "Nothing is remembered any more."},
        **responses(InvalidRequest, *_KEYED, Overloaded, StoreUnavailable),
    },
)
async def erase(request: Request, user_id: PathId) -> Response:
    """Erases the history of a user, the event ids that were remembered and the lists kept for further pages.

    One who is unknown is forgotten already.
    """
    await _users(request).erase(user_id)
    return Response(status_code=204)


@api.get(
    "/model",
    summary="What is being served",
    response_model=None,
    responses={200: {"model": ModelAnswer, "description": "The bundle's own account."}, **responses(*_KEYED)},
)
async def model(request: Request) -> Response:
    """Bundle, digest, data dates, catalog size and measured quality."""
    return _json(_state(request).about())


@api.get(
    "/admin/bundles",
    summary="See which bundles may be served, and which are",
    response_model=None,
    responses={200: {"model": BundlesAnswer, "description": "By name."}, **responses(*_KEYED)},
)
async def bundles(request: Request) -> Response:
    """What lies in the directory of bundles, by what it says of itself. Digests are verified on activation."""
    return _json(await _state(request).bundles.listed())


@api.post(
    "/admin/bundles/activate",
    summary="Serve another bundle",
    response_model=None,
    openapi_extra=_takes(ActivationRequest),
    responses={
        200: {"model": SwapAnswer, "description": "It is being served."},
        **responses(*_BODY, BundleRefused, SwapConflict, *_KEYED),
    },
)
async def activate(request: Request) -> Response:
    """Loads it beside the one that is served, verifies, warms and tries it, then changes over at once.

    Requests under way end on the bundle that they began with. Other processes on the same store follow. A bundle that
    fails on the way is refused with the reason, and nothing changes. The answer comes when all is done, and what was
    begun is seen through without a caller, too.
    """
    asked = _read(request, ActivationRequest)
    return _json(await _state(request).bundles.activate(asked.bundle, asked.variant))


@api.post(
    "/admin/bundles/rollback",
    summary="Serve again what was served before",
    response_model=None,
    openapi_extra=_takes(RollbackRequest),
    responses={
        200: {"model": SwapAnswer, "description": "It is being served again."},
        **responses(*_BODY, SwapConflict, *_KEYED),
    },
)
async def rollback(request: Request) -> Response:
    """Changes back to the one bundle that is kept, which is loaded and warm. Twice leads to where it began."""
    asked = _read(request, RollbackRequest)
    return _json(await _state(request).bundles.rollback(asked.variant))


@probes.get(
    "/livez",
    summary="The process lives",
    response_model=None,
    responses={200: {"model": Liveness, "description": "It does."}},
)
async def livez() -> Response:
    """Whether to leave the process alone: it answers."""
    return _json({"status": "alive"})


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
    return _json(await _state(request).readiness())


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
