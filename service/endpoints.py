"""What all endpoints share: the state that answers, bodies that are parsed, answers that are written.

Bodies are parsed here and not by the framework, which would parse them twice and validate answers that we wrote.
"""

from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from service.answers import RankingAnswer, RecommendationAnswer, SimilarAnswer
from service.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidRequest,
    MalformedJson,
    NotReady,
    RateLimited,
    SlowBody,
    Unauthenticated,
    UnsupportedMediaType,
    of_validation,
)
from service.middleware import Posted, header
from service.state import State

Body = TypeVar("Body", bound=BaseModel)

# What may go wrong with any call that needs a key, and with any that has a body.
KEYED: tuple[type[Exception], ...] = (Unauthenticated, Forbidden, RateLimited, NotReady, Exception)
BODY: tuple[type[Exception], ...] = (
    MalformedJson,
    InvalidRequest,
    BodyTooLarge,
    SlowBody,
    UnsupportedMediaType,
)


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a body that an endpoint parses itself; `documentation.py` adds the schema."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def state_of(request: Request) -> State:
    """What the lifespan put together.

    Raises:
        NotReady: it has not, or is taking it apart.
    """
    state: State | None = request.scope["app"].state.shell
    if state is None:
        raise NotReady("the bundle is not loaded and warm; try again in a moment")
    return state


def parsed(request: Request, model: type[Body]) -> tuple[State, Body]:
    """What answers, and the body as `model`; an overloaded process refuses before it reads one.

    Raises:
        NotReady: nothing answers.
        Overloaded: no permit is left.
        UnsupportedMediaType, MalformedJson, InvalidRequest: it is none.
    """
    state = state_of(request)
    if not isinstance(request, Posted):  # its connection has asked already
        state.permits.check()
    return state, read(request, model)


def read(request: Request, model: type[Body]) -> Body:
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


class Json(Response):
    """An answer in JSON, with no more work on its headers than it needs."""

    def __init__(self, content: Any, status: int, *headers: tuple[bytes, bytes]) -> None:
        self.status_code = status
        self.background = None
        self.body = orjson.dumps(content)
        self.raw_headers = [(b"content-length", b"%d" % len(self.body)), (b"content-type", b"application/json")]
        self.raw_headers += headers


def json_of(content: Any, *, status: int = 200) -> Response:
    return Json(content, status)


def timed(request: Request, answer: RecommendationAnswer | RankingAnswer | SimilarAnswer) -> Response:
    """An answer with its stages in the header and in the log line, from the same numbers."""
    request.scope["state"]["answer"] = answer
    # `{"filter":0.012,"state":0.05}` is written as `filter;dur=0.012, state;dur=0.05`, for a third of what formatting
    # the numbers takes.
    timing = orjson.dumps(answer["timings_ms"])[2:-1].replace(b'":', b";dur=").replace(b',"', b", ")
    return Json(answer, 200, (b"server-timing", timing))
