"""Lines as the service writes them."""

import json
from pathlib import Path
from typing import Any


def event(time: float, user: str, item: str, **more: Any) -> dict[str, Any]:
    """An event that arrived at `time`, which is its own time too unless that is said."""
    said = {"kind": "event", "time": time, "user_id": user, "item_id": item, "event_type": "view", "timestamp": time}
    return {**said, **more}


def served(time: float, user: str | None, name: str, *items: str, **more: Any) -> dict[str, Any]:
    """A list of a retriever's."""
    return {
        "kind": "served",
        "time": time,
        "user_id": user,
        "recommendation_id": name,
        "k": len(items),
        "first": 1,
        "items": list(items),
        "scores": [1.0 / place for place in range(1, len(items) + 1)],
        "sources": ["retrieval"] * len(items),
        "ranked": False,
        "model": "toy",
        "bundle": "toy-1",
        "variant": "default",
        "degraded": [],
        "timings_ms": {"state": 0.1},
        **more,
    }


def erased(time: float, user: str) -> dict[str, Any]:
    return {"kind": "erased", "time": time, "user_id": user}


def merged(time: float, user: str, into: str) -> dict[str, Any]:
    return {"kind": "merged", "time": time, "user_id": user, "into": into}


def write(path: Path, *records: dict[str, Any], end: str = "") -> Path:
    """A segment; `end` is what stands behind its last line break."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records) + end)
    return path
