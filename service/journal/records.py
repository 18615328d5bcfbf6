"""What the log says: one JSON object a line, its `kind` first, absent fields left out.

    event   time, user_id, item_id, event_type, timestamp, value, event_id, recommendation_id, context
    served  time, user_id, recommendation_id, k, first, items, scores, sources, propensities, ranked, model, bundle,
            variant, placement, degraded, timings_ms, since
    erased  time, user_id
    merged  time, user_id, into

`time` is when the service had it, by one clock that never runs backwards within a process; an erasure takes what came
before it by that time, whatever the caller's own `timestamp` says.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from service.answers import RecommendationAnswer
from service.schemas import PlacementRequest
from service.sessions import StoredEvent

UserEvent = tuple[str, StoredEvent]  # a user id and an event of that user


class ServedList(NamedTuple):
    """A list as it went out.

    Attributes:
        user_id: None where the request named none.
        placement: as the request said it.
        k: items wanted.
        is_ranked: whether the scores are a ranker's, and so in another scale than a retriever's.
        since: of a further page, when the list was found: whose it is goes by that.
        propensities: of each item the probability that it was shown there, where there was exploration.
    """

    answer: RecommendationAnswer
    user_id: str | None
    placement: str | PlacementRequest | None
    k: int
    is_ranked: bool
    since: float | None = None
    propensities: Sequence[float] | None = None


def event_line(time: float, user_id: str, event: StoredEvent) -> bytes:
    """An event."""
    record: dict[str, Any] = {
        "kind": "event",
        "time": time,
        "user_id": user_id,
        "item_id": event.item_id,
        "event_type": event.event_type,
        "timestamp": event.timestamp,
    }
    for name in ("value", "event_id", "recommendation_id"):
        said = getattr(event, name)
        if said is not None:
            record[name] = said
    if event.context:
        record["context"] = dict(event.context)
    return _line(record)


def served_line(time: float, served: ServedList) -> bytes:
    """A list."""
    answer, placement = served.answer, served.placement
    items, model = answer["items"], answer["model"]
    record: dict[str, Any] = {
        "kind": "served",
        "time": time,
        "user_id": served.user_id,
        "recommendation_id": answer["recommendation_id"],
        "k": served.k,
        "first": items[0]["rank"] if items else 1,
        "items": [item["item_id"] for item in items],
        "scores": [item["score"] for item in items],
        "sources": [item["source"] for item in items],
        "ranked": served.is_ranked,
        "model": model["name"],
        "bundle": model["bundle"],
        "variant": model["variant"],
        "degraded": answer["degraded_reasons"],
        "timings_ms": answer["timings_ms"],
    }
    name = placement.name if isinstance(placement, PlacementRequest) else placement
    for key, said in (("placement", name), ("since", served.since), ("propensities", served.propensities)):
        if said is not None:
            record[key] = said
    return _line(record)


def erased_line(time: float, user_id: str) -> bytes:
    """An erasure."""
    return _line({"kind": "erased", "time": time, "user_id": user_id})


def merged_line(time: float, source: str, target: str) -> bytes:
    """One user who turned out to be another."""
    return _line({"kind": "merged", "time": time, "user_id": source, "into": target})


def _line(record: Mapping[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
