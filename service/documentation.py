"""The OpenAPI document: what the framework knows of the routes, completed by what it cannot know.

Endpoints parse their bodies themselves and errors come from one table, so both are added here, from their sources.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from service import __version__
from service.answers import Problem
from service.schemas import (
    ActivationRequest,
    EventsRequest,
    ItemRequest,
    MergeRequest,
    RankingRequest,
    RecommendationRequest,
    RollbackRequest,
)

DESCRIPTION = """Next-item recommendations from the event that happened a moment ago.

Errors are `application/problem+json` (RFC 9457) with a stable `code`."""

DESCRIBED = (
    ActivationRequest,
    EventsRequest,
    ItemRequest,
    MergeRequest,
    RankingRequest,
    RecommendationRequest,
    RollbackRequest,
    Problem,
)


def openapi(app: FastAPI) -> dict[str, Any]:
    """The document, made once."""
    if app.openapi_schema is None:
        document = get_openapi(title="Sequitur", version=__version__, description=DESCRIPTION, routes=app.routes)
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for described in DESCRIBED:
            adapter: TypeAdapter[Any] = TypeAdapter(described)
            schema = adapter.json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(schema.pop("$defs", {}))
            schemas[described.__name__] = schema
        # Every 422 is a problem; the framework would announce a body shape of its own.
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["security"] = [{"bearer": []}, {"key": []}]
        for path in ("/livez", "/readyz"):
            document["paths"][path]["get"]["security"] = []
        app.openapi_schema = document
    return app.openapi_schema
