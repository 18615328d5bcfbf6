"""What the log says: one JSON object a line, its `kind` first, absent fields left out.

    event   time, user_id, item_id, event_type, timestamp, value, event_id, recommendation_id, context
    served  time, user_id, recommendation_id, k, first, items, scores, sources, propensities, ranked, model, bundle,
            variant, placement, degraded, timings_ms
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

# What a record takes as a line, about: what waits is bounded by these, because it is encoded only when it is written.
EVENT_BYTES = 256
ENTRY_BYTES = 64  # an entry of a context, an item of a list
SERVED_BYTES = 512

UserEvent = tuple[str, StoredEvent]  # a user id and an event of that user


class ServedList(NamedTuple):
    """A list as it went out.

    Attributes:
        user_id: None where the request named none.
        items, scores, sources: of each item, in the order shown.
        first: the place of the first of them, 1 but on the pages that follow.
        is_ranked: whether the scores are a ranker's, and so in another scale than a retriever's.
        model, bundle, variant: what answered.
        placement: by name.
        degraded: why something simpler answered.
        propensities: of each item the probability that it was shown there, where there was exploration.
    """

    recommendation_id: str
    user_id: str | None
    items: Sequence[str]
    scores: Sequence[float]
    sources: Sequence[str]
    k: int
    first: int
    is_ranked: bool
    model: str
    bundle: str
    variant: str
    placement: str | None
    degraded: Sequence[str]
    timings_ms: Mapping[str, float]
    propensities: Sequence[float] | None = None

    @classmethod
    def of(
        cls,
        answer: RecommendationAnswer,
        user_id: str | None,
        placement: str | PlacementRequest | None,
        *,
        k: int,
        is_ranked: bool,
        first: int = 1,
    ) -> "ServedList":
        """The list of an answer; its attributes and explanations are left behind."""
        items, model = answer["items"], answer["model"]
        return cls(
            answer["recommendation_id"],
            user_id,
            [item["item_id"] for item in items],
            [item["score"] for item in items],
            [item["source"] for item in items],
            k,
            first,
            is_ranked,
            model["name"],
            model["bundle"],
            model["variant"],
            placement.name if isinstance(placement, PlacementRequest) else placement,
            answer["degraded_reasons"],
            answer["timings_ms"],
        )


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
    record: dict[str, Any] = {
        "kind": "served",
        "time": time,
        "user_id": served.user_id,
        "recommendation_id": served.recommendation_id,
        "k": served.k,
        "first": served.first,
        "items": served.items,
        "scores": served.scores,
        "sources": served.sources,
        "ranked": served.is_ranked,
        "model": served.model,
        "bundle": served.bundle,
        "variant": served.variant,
        "degraded": served.degraded,
        "timings_ms": served.timings_ms,
    }
    if served.placement is not None:
        record["placement"] = served.placement
    if served.propensities is not None:
        record["propensities"] = served.propensities
    return _line(record)


def erased_line(time: float, user_id: str) -> bytes:
    """An erasure."""
    return _line({"kind": "erased", "time": time, "user_id": user_id})


def merged_line(time: float, source: str, target: str) -> bytes:
    """One user who turned out to be another."""
    return _line({"kind": "merged", "time": time, "user_id": source, "into": target})


def event_bytes(event: StoredEvent) -> int:
    """What an event takes, about."""
    return EVENT_BYTES + ENTRY_BYTES * len(event.context or ())


def served_bytes(served: ServedList) -> int:
    """What a list takes, about."""
    return SERVED_BYTES + ENTRY_BYTES * len(served.items)


def _line(record: Mapping[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
