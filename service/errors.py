"""What the shell can refuse, and how every error becomes an answer.

SequiturError                the root, in `retrieval.errors` with BundleError, EmptyHistory, UnknownItem, InvalidFilter,
│                            InvalidRule
├── ConfigurationError       the service cannot start like this; never an answer
├── InvalidRequest           a body or parameter that cannot mean anything
│   └── MalformedJson        a body that is not JSON
├── BodyTooLarge             more bytes than a body may have
├── UnsupportedMediaType     a body that says it is not JSON
├── Unauthenticated          no API key, or one that is not known
├── Forbidden                a key without the scope that the call needs
├── ListGone                 a list that is not kept for further pages, or not any more
├── NotFound                 no such page or call
├── MethodNotAllowed         a known path, asked in another way
├── RateLimited              a key that calls faster than it may
├── BudgetExhausted          a key that has asked about as many histories as it may in a day
├── SlowBody                 a body that does not come to its end
├── HeadTooLarge             headers beyond the limits
├── MalformedHttp            bytes that are no HTTP request
├── Overloaded               no permit, or no room in the queue: refused before any work
├── BundleRefused            a bundle that must not be served; the one that is stays
├── SwapConflict             another bundle is coming into service, or there is none to go back to
├── NotReady                 no bundle is loaded and warm
├── StoreUnavailable         the session store is away, full, locked or too slow
└── DeadlineExceeded         out of time with nothing to show

The table below is the only place where a class meets a status; the look-up walks the class hierarchy, so a subclass
is handled for free. The OpenAPI document is written from the same table.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from retrieval.errors import InvalidFilter, InvalidRule, SequiturError, UnknownItem

PROBLEM = "application/problem+json"


class ConfigurationError(SequiturError):
    """Settings or files with which the service must not start; the message says why and what to do."""

    code = "configuration"


class InvalidRequest(SequiturError):
    """A request that cannot mean anything.

    Args:
        errors: one `{"loc": "events[3].timestamp", "msg": ...}` for each thing wrong.
    """

    code = "invalid_request"

    def __init__(self, errors: Sequence[Mapping[str, str]]) -> None:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__(f"{errors[0]['loc']}: {errors[0]['msg']}{more}")
        self.errors = list(errors)


class MalformedJson(InvalidRequest):
    """A body that is not JSON."""

    code = "malformed_json"


class BodyTooLarge(SequiturError):
    """A body beyond the limit."""

    code = "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body is larger than the limit of {limit_bytes} bytes; send less at once")


class UnsupportedMediaType(SequiturError):
    """A body that says it is something else than JSON."""

    code = "unsupported_media_type"

    def __init__(self, media: str) -> None:
        super().__init__(f"a body of type {media[:80]!r} is not read; send `Content-Type: application/json`")


class Unauthenticated(SequiturError):
    """No API key, or one that is not known."""

    code = "unauthenticated"


class Forbidden(SequiturError):
    """A key that lacks the scope of this call."""

    code = "forbidden"


class ListGone(SequiturError):
    """No list is kept under this id."""

    code = "list_gone"

    def __init__(self, recommendation_id: str, kept_s: float) -> None:
        super().__init__(
            f"no list {recommendation_id[:80]!r} is kept (any more): further pages are there for {kept_s / 60:g} "
            "minutes after the first; ask for recommendations again"
        )


class NotFound(SequiturError):
    """Nothing is at this path."""

    code = "not_found"


class MethodNotAllowed(SequiturError):
    """The path exists and does not take this method."""

    code = "method_not_allowed"

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(f"{method} is not allowed here; allowed: {allowed}")
        self.allowed = allowed


class RateLimited(SequiturError):
    """Calls come faster than a key may send them; one after `after_s` can pass."""

    code = "rate_limited"

    def __init__(self, name: str, rate: float, *, after_s: float) -> None:
        super().__init__(
            f"API key {name!r} may send {rate:g} requests per second to this process; wait, or ask for a higher rate"
        )
        self.after_s = after_s


class BudgetExhausted(SequiturError):
    """A key has asked about as many distinct histories as it may in a day, which ends in `after_s`."""

    code = "budget_exhausted"

    def __init__(self, name: str, budget: int, *, after_s: float) -> None:
        super().__init__(
            f"API key {name!r} has asked about its {budget} distinct histories of the day (UTC); those that it asked "
            "before are still answered, and so are lists without a history"
        )
        self.after_s = after_s


class SlowBody(SequiturError):
    """A body that did not arrive whole in its time."""

    code = "slow_body"

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"the body did not arrive within {limit_s:g} s; send it at once")


class HeadTooLarge(SequiturError):
    """Headers, or a request line, beyond the limits."""

    code = "head_too_large"

    def __init__(self, limit_bytes: int, limit_count: int) -> None:
        super().__init__(f"request line and headers may have {limit_bytes} bytes and {limit_count} headers; send fewer")


class MalformedHttp(SequiturError):
    """Bytes that are no HTTP request."""

    code = "malformed_http"


class Overloaded(SequiturError):
    """Refused before any work was done."""

    code = "overloaded"

    def __init__(self, detail: str, *, reason: str) -> None:
        super().__init__(detail)
        self.reason = reason


class BundleRefused(SequiturError):
    """A bundle that was to be activated and must not be; the message says why, and what is served."""

    code = "bundle_refused"


class SwapConflict(SequiturError):
    """Bundles cannot be exchanged now."""

    code = "swap_conflict"


class NotReady(SequiturError):
    """No bundle is loaded and warm, or the worker behind it is gone."""

    code = "not_ready"


class StoreUnavailable(SequiturError):
    """The session store could not do `operation`; the detail says why and what helps."""

    code = "store_unavailable"

    def __init__(self, operation: str, detail: str) -> None:
        super().__init__(f"session store, {operation}: {detail}")
        self.operation = operation
        self.detail = detail


class DeadlineExceeded(SequiturError):
    """The time of a request was over while it was in `stage`."""

    code = "deadline_exceeded"

    def __init__(self, stage: str) -> None:
        super().__init__(f"the deadline passed in stage {stage!r} with nothing to show; allow more with deadline_ms")
        self.stage = stage


TABLE: dict[type[Exception], tuple[int, str]] = {
    MalformedJson: (400, "The body is not JSON"),
    InvalidRequest: (422, "The request cannot mean anything"),
    InvalidFilter: (422, "The filter cannot be applied to this catalog"),
    InvalidRule: (422, "The placement's rules cannot be carried out"),
    BodyTooLarge: (413, "The body is too large"),
    UnsupportedMediaType: (415, "The body is not declared as JSON"),
    Unauthenticated: (401, "An API key is needed"),
    Forbidden: (403, "This API key may not do that"),
    SwapConflict: (409, "Bundles cannot be exchanged now"),
    BundleRefused: (422, "The bundle cannot be served"),
    UnknownItem: (404, "No such item"),
    ListGone: (404, "The list is not kept any more"),
    NotFound: (404, "Nothing is here"),
    MethodNotAllowed: (405, "Not with this method"),
    RateLimited: (429, "This API key calls too often"),
    BudgetExhausted: (429, "This API key has used its query budget"),
    SlowBody: (408, "The body came too slowly"),
    HeadTooLarge: (431, "The headers are too large"),
    MalformedHttp: (400, "This is no HTTP request"),
    Overloaded: (503, "Too many requests at once"),
    NotReady: (503, "Not ready to serve"),
    StoreUnavailable: (503, "The session store is away"),
    DeadlineExceeded: (504, "The deadline passed"),
    Exception: (500, "Something went wrong here"),
}
RETRY_AFTER_S = 1


def lookup(kind: type[BaseException]) -> tuple[int, str]:
    """Status and title of an error class or of the nearest class above it."""
    return next(TABLE[base] for base in kind.__mro__ if base in TABLE)


def code_of(error: BaseException) -> str:
    """The stable code of an error; `internal` for those that nobody raises on purpose."""
    return error.code if isinstance(error, SequiturError) and lookup(type(error))[0] != 500 else "internal"


def problem(error: Exception, *, request_id: str) -> Response:
    """The answer to a request that ended in `error`: RFC 9457, and nothing of our insides in a 500."""
    status, title = lookup(type(error))
    code = code_of(error)
    body: dict[str, Any] = {
        "type": f"urn:sequitur:error:{code}",
        "title": title,
        "status": status,
        "detail": str(error) if status != 500 else "this is a fault of the service; report it with the request_id",
        "code": code,
        "request_id": request_id,
    }
    if isinstance(error, InvalidRequest):
        body["errors"] = error.errors
    headers = {}
    if status in (429, 503):
        headers["retry-after"] = str(max(1, math.ceil(getattr(error, "after_s", RETRY_AFTER_S))))
    if isinstance(error, BodyTooLarge | SlowBody):
        headers["connection"] = "close"  # what is left of the body is not waited for
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = 'Bearer realm="sequitur"'
    if isinstance(error, MethodNotAllowed):
        headers["allow"] = error.allowed
    return Response(orjson.dumps(body), status_code=status, headers=headers, media_type=PROBLEM)


def of_http(error: HTTPException, *, method: str, path: str) -> Exception:
    """Our error for one that the framework raised."""
    match error.status_code:
        case 404:
            return NotFound(f"nothing is at {path[:200]}; the calls are listed at /docs")
        case 405:
            return MethodNotAllowed(method, (error.headers or {}).get("Allow", "see /docs"))
        case 400 | 415 | 422:
            return MalformedJson([{"loc": "body", "msg": "the body could not be read as UTF-8 JSON"}])
        case _:
            return error


def of_validation(errors: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """Our error for what pydantic found, each thing named as a caller would write it: `events[3].timestamp`."""
    if any(found["type"] == "json_invalid" for found in errors):
        reason = errors[0].get("ctx", {}).get("error", "it cannot be parsed")
        return MalformedJson([{"loc": "body", "msg": f"the body is not JSON: {reason}"}])
    return InvalidRequest([{"loc": _written(found["loc"]), "msg": _message(found)} for found in errors])


def _written(loc: Sequence[str | int]) -> str:
    text = ""
    for step in loc[1:] if loc[:1] in (("query",), ("path",)) else loc:
        if isinstance(step, int):
            text += f"[{step}]"
        elif not step.startswith("<"):  # the name of a union's branch, see schemas.py
            text += f".{step}" if text else step
    return text or "body"


def _message(found: Mapping[str, Any]) -> str:
    given = found.get("input")
    shown = f"; got {given!r:.80}" if isinstance(given, str | int | float) else ""
    return str(found["msg"]) + shown


def responses(*kinds: type[Exception]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI responses of a call that may end in these errors."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for kind in kinds:
        status, title = lookup(kind)
        code = getattr(kind, "code", "internal") if status != 500 else "internal"
        described = f"{title} (`{code}`)"
        if status in by_status:
            by_status[status]["description"] += f"; {described}"
            continue
        by_status[status] = {
            "description": described,
            "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        if status in (429, 503):
            by_status[status]["headers"] = {
                "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait before trying again."}
            }
    return by_status
