"""The endpoints of the product, a few lines each: parse, ask, answer. What they promise stands beside what they do."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter
from starlette.responses import Response

from retrieval.errors import InvalidFilter, InvalidRule, UnknownItem
from service.answers import (
    EventsAnswer,
    HistoryAnswer,
    ItemAnswer,
    MergeAnswer,
    RankingAnswer,
    RecommendationAnswer,
    SimilarAnswer,
)
from service.endpoints import BODY, KEYED, json_of, parsed, state_of, takes, timed
from service.errors import (
    BudgetExhausted,
    DeadlineExceeded,
    InvalidRequest,
    ListGone,
    Overloaded,
    StoreUnavailable,
    responses,
)
from service.items import Items
from service.middleware import while_connected
from service.pipeline import Pipeline
from service.schemas import (
    DEFAULT_K,
    MAX_ID,
    MAX_K,
    MAX_WORD,
    EventsRequest,
    ItemRequest,
    MergeRequest,
    RankingRequest,
    RecommendationRequest,
)
from service.users import Users

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

api = APIRouter(prefix="/v1")


def _pipeline(request: Request) -> Pipeline:
    return state_of(request).pipeline


def _users(request: Request) -> Users:
    return state_of(request).users


def _items(request: Request) -> Items:
    return state_of(request).items


@api.post(
    "/recommendations",
    summary="Recommend items",
    response_model=None,
    openapi_extra=takes(RecommendationRequest),
    responses={
        200: {"model": RecommendationAnswer, "description": "Exactly `k` items whenever `k` are eligible."},
        **responses(*BODY, InvalidFilter, InvalidRule, *KEYED, BudgetExhausted, Overloaded, DeadlineExceeded),
    },
)
async def recommend(request: Request) -> Response:
    """Items for a user, a history or nobody in particular, best first.

    Never an id outside the catalog or the filter, and never one twice. Where something is missing (no history, the
    store away, time nearly over) a simpler answer comes, with `degraded` and why. Unknown users and items are no error.
    """
    state, asked = parsed(request, RecommendationRequest)
    about = request.scope["state"]
    answer = await while_connected(
        request, state.pipeline.recommend(asked, arrived=about["arrived"], caller=about["caller"])
    )
    return timed(request, answer)


@api.get(
    "/users/{user_id:path}/recommendations",
    summary="Recommend items, the simple form",
    response_model=None,
    responses={
        200: {"model": RecommendationAnswer, "description": "Exactly `k` items whenever `k` are eligible."},
        **responses(InvalidRequest, *KEYED, BudgetExhausted, Overloaded, DeadlineExceeded),
    },
)
async def recommend_for_user(
    request: Request, user_id: PathId, k: PlacedK = None, placement: PlacementName = None
) -> Response:
    """Items for a user from the stored history. It changes nothing, so nothing is kept for a next page either."""
    said = {"user_id": user_id, "placement": placement, "k": k}
    asked = RecommendationRequest.model_validate({name: value for name, value in said.items() if value is not None})
    about, state = request.scope["state"], state_of(request)
    state.permits.check()
    answer = await while_connected(
        request,
        state.pipeline.recommend(asked, arrived=about["arrived"], caller=about["caller"], has_pages=False),
    )
    return timed(request, answer)


@api.get(
    "/recommendations/{recommendation_id}/next",
    summary="The next page of a list",
    response_model=None,
    responses={
        200: {"model": RecommendationAnswer, "description": "What follows in the list as it was found."},
        **responses(InvalidRequest, ListGone, *KEYED, Overloaded, StoreUnavailable),
    },
)
async def next_page(request: Request, recommendation_id: PathId, k: NextK = None, after: After = None) -> Response:
    """No item twice and none left out, whatever the user has done since; only what was removed is not shown any more.

    `next` of an answer is this call with `after`, which gives the same page each time. Without `after` every call goes
    on where the one before ended, and calls at the same time get different pages. Lists are kept for 30 minutes, of
    requests with consent.
    """
    page = state_of(request).pages.next(recommendation_id, k=k, after=after)
    return timed(request, await while_connected(request, page))


@api.post(
    "/users/merge",
    summary="Merge two users",
    response_model=None,
    openapi_extra=takes(MergeRequest),
    responses={
        200: {"model": MergeAnswer, "description": "They are one user now."},
        **responses(*BODY, *KEYED, Overloaded, StoreUnavailable),
    },
)
async def merge(request: Request) -> Response:
    """Moves all events of one user to another, for visitors who sign in, and forgets the first.

    Order and event ids are kept; what both have counts once. Sent again it finds nothing to move.
    """
    state, body = parsed(request, MergeRequest)
    return json_of(await state.users.merge(body.source, body.into))


@api.post(
    "/rankings",
    summary="Put candidates in order",
    response_model=None,
    openapi_extra=takes(RankingRequest),
    responses={
        200: {"model": RankingAnswer, "description": "Every candidate once."},
        **responses(*BODY, InvalidRule, *KEYED, BudgetExhausted, Overloaded, DeadlineExceeded),
    },
)
async def rank(request: Request) -> Response:
    """The caller's own candidates, best first, by the numbers that recommendations are scored with.

    Where the bundle ranks, the goals of the placement count, and its rules do not: every candidate comes back. Ids that
    are unknown come last, flagged, and so does what the model has nothing to score by. Without a history the order is
    by popularity, and the answer says so as `degraded`.
    """
    state, asked = parsed(request, RankingRequest)
    about = request.scope["state"]
    answer = await while_connected(
        request, state.pipeline.rank(asked, arrived=about["arrived"], caller=about["caller"])
    )
    return timed(request, answer)


@api.get(
    "/items/{item_id:path}/similar",
    summary="Items like one item",
    response_model=None,
    responses={
        200: {"model": SimilarAnswer, "description": "The nearest items, never the item itself."},
        **responses(InvalidRequest, UnknownItem, *KEYED, Overloaded),
    },
)
async def similar(request: Request, item_id: PathId, k: K = DEFAULT_K) -> Response:
    """The items whose vectors lie nearest."""
    return timed(request, await while_connected(request, _pipeline(request).similar(item_id, k)))


@api.get(
    "/items/{item_id:path}",
    summary="See an item",
    response_model=None,
    responses={
        200: {"model": ItemAnswer, "description": "What holds of it now."},
        **responses(InvalidRequest, UnknownItem, *KEYED),
    },
)
async def item(request: Request, item_id: PathId) -> Response:
    """What is known of an item, and whether it may be shown."""
    return json_of(_items(request).get(item_id))


@api.put(
    "/items/{item_id:path}",
    summary="Add or change an item",
    response_model=None,
    openapi_extra=takes(ItemRequest),
    responses={
        200: {"model": ItemAnswer, "description": "It is changed, or back."},
        201: {"model": ItemAnswer, "description": "It is new."},
        **responses(*BODY, *KEYED, Overloaded, StoreUnavailable),
    },
)
async def put_item(request: Request, item_id: PathId) -> Response:
    """In effect on the next request here, and on other workers of the same store within about a second.

    Attributes replace all that were known; left out, they stay. A new item is found by filters and among popular
    items at once, by generators as far as they can read its text, and by encoders where the items lie that share its
    words (source `described`). `filter.new_only` asks for new items alone.
    """
    state, body = parsed(request, ItemRequest)
    answer, is_added = await state.items.put(item_id, body)
    return json_of(answer, status=201 if is_added else 200)


@api.delete(
    "/items/{item_id:path}",
    summary="Remove an item",
    response_model=None,
    status_code=204,
    responses={
        204: {"description": "It is in no answer any more."},
        **responses(InvalidRequest, UnknownItem, *KEYED, Overloaded, StoreUnavailable),
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
    openapi_extra=takes(EventsRequest),
    responses={
        202: {"model": EventsAnswer, "description": "All are stored; visible to the very next recommendation."},
        **responses(*BODY, *KEYED, Overloaded, StoreUnavailable),
    },
)
async def record(request: Request) -> Response:
    """Stores up to 500 events, or none of them and an error that names the bad one."""
    state, body = parsed(request, EventsRequest)
    return json_of(await state.users.record(body.events), status=202)


@api.get(
    "/users/{user_id:path}/history",
    summary="See a history",
    response_model=None,
    responses={
        200: {"model": HistoryAnswer, "description": "Oldest first; empty for an unknown user."},
        **responses(InvalidRequest, *KEYED, Overloaded, StoreUnavailable),
    },
)
async def history(request: Request, user_id: PathId) -> Response:
    """All that is remembered of a user."""
    return json_of(await _users(request).history(user_id))


@api.delete(
    "/users/{user_id:path}",
    summary="Forget a user",
    response_model=None,
    status_code=204,
    responses={
        204: {"description": "Nothing is remembered any more."},
        **responses(InvalidRequest, *KEYED, Overloaded, StoreUnavailable),
    },
)
async def erase(request: Request, user_id: PathId) -> Response:
    """Erases the history of a user, the event ids that were remembered and the lists kept for further pages.

    One who is unknown is forgotten already.
    """
    await _users(request).erase(user_id)
    return Response(status_code=204)
