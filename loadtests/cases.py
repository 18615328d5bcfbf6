"""Requests that nobody should send, by family: each is made from a seed and a number, so that any of them can be sent
again.

A family (see `bodies` and `envelopes`) is a function of a random generator and of what the service has, `Ground`. It
spoils one thing in a request that is otherwise right, because a request that is wrong everywhere is refused by the
first check it meets.
"""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from loadtests import wire

MOST_BODY_BYTES = 1 << 20
PAUSE_S = 0.002  # between the pieces of a slow request
FILTER_OPS = ("==", "!=", "<", "<=", ">", ">=", "in", "contains", "~", "", "=")


@dataclass(frozen=True, slots=True)
class Case:
    """One request, in the pieces in which it is sent.

    Attributes:
        family: where it is from.
        parts: bytes, with a pause between two of them.
        is_alone: has a connection of its own, for it may leave one in a state that another request would suffer from.
        ends: this side says after the last piece that nothing more will come.
        may_be_silent: no whole request, or none that HTTP has an answer for; a closed connection is an answer then.
    """

    family: str
    parts: tuple[bytes, ...]
    is_alone: bool = False
    ends: bool = False
    may_be_silent: bool = False


@dataclass(frozen=True, slots=True)
class Ground:
    """What there is to ask about.

    Attributes:
        item_ids: of the catalog.
        columns: names of attributes.
        headers: of every request, the API key among them.
    """

    item_ids: Sequence[str]
    columns: Sequence[str] = ("title", "categories", "price", "year", "author")
    headers: Mapping[str, str] = field(default_factory=dict)


Rng = random.Random
Family = Callable[[Rng, Ground], Case]


class Families(dict[str, tuple[Family, int]]):
    """Families by name, with how often they come, relative to the others."""

    def add(self, weight: int) -> Callable[[Family], Family]:
        """Adds a function under its own name."""

        def add(made: Family) -> Family:
            self[made.__name__] = (made, weight)
            return made

        return add


def cases(families: Families, ground: Ground, *, seed: int, count: int) -> list[Callable[[], Case]]:
    """`count` cases, each made when it is called."""
    names = list(families)
    drawn = random.Random(seed).choices(names, [families[name][1] for name in names], k=count)

    def made(name: str, number: int) -> Callable[[], Case]:
        return lambda: families[name][0](random.Random(f"{seed}/{number}/{name}"), ground)

    return [made(name, number) for number, name in enumerate(drawn)]


# Requests that are right: where the others begin.


def user(rng: Rng) -> str:
    """One of a few users, so that they meet each other."""
    return f"fuzz-{rng.randrange(200)}"


def items(rng: Rng, ground: Ground, most: int) -> list[str]:
    """Known items, and an unknown one now and then."""
    return [rng.choice(ground.item_ids) if rng.random() < 0.9 else f"unknown-{rng.randrange(99)}"
            for _ in range(rng.randrange(most + 1))]  # fmt: skip


def condition(rng: Rng, ground: Ground) -> dict[str, Any]:
    """A condition of a filter, which need not make sense."""
    value = rng.choice([rng.randrange(3_000), rng.random() * 50, "fantasy", ["fantasy", "science"], ""])
    return {"name": rng.choice([*ground.columns, "nothing"]), "op": rng.choice(FILTER_OPS), "value": value}


def filter_of(rng: Rng, ground: Ground) -> dict[str, Any]:
    """A filter."""
    parts: dict[str, Any] = {
        "exclude_ids": items(rng, ground, 20),
        "include_ids": items(rng, ground, 20),
        "categories": {"any": rng.choices(["fantasy", "science", "x"], k=2), "none": ["horror"]},
        "attributes": [condition(rng, ground) for _ in range(rng.randrange(3))],
        "new_only": rng.random() < 0.1,
    }
    return {name: parts[name] for name in rng.sample(list(parts), rng.randrange(1, 3))}


def placement(rng: Rng, ground: Ground) -> Any:
    """A placement."""
    parts: dict[str, Any] = {
        "caps": [{"attribute": rng.choice(ground.columns), "most": rng.randrange(1, 5)}],
        "pins": [{"item_id": rng.choice(ground.item_ids), "position": rng.randrange(1, 600)}],
        "promotion": {"share": rng.random() + 1e-6, "item_ids": items(rng, ground, 5)},
        "freshness": {"attribute": rng.choice(ground.columns), "half_life_s": 10 ** rng.uniform(-3, 9)},
        "diversity": rng.random(),
        "goals": {"click": rng.uniform(-5, 5)},
    }
    return {name: parts[name] for name in rng.sample(list(parts), rng.randrange(3))}


def question(rng: Rng, ground: Ground) -> dict[str, Any]:
    """A body for recommendations."""
    parts: dict[str, Any] = {
        "user_id": user(rng),
        "history": items(rng, ground, 60),
        "k": rng.choice([1, 2, 20, 500]),
        "filter": filter_of(rng, ground),
        "placement": placement(rng, ground),
        "context": {"device": "phone", "hour": rng.randrange(24)},
        "exclude_seen": rng.random() < 0.5,
        "diversity": round(rng.random(), 3),
        "consent": rng.random() < 0.5,
        "deadline_ms": 10 ** rng.uniform(-2, 4),
        "explain": rng.random() < 0.5,
    }
    return {name: parts[name] for name in rng.sample(list(parts), rng.randrange(1, 6))}


def event(rng: Rng, ground: Ground) -> dict[str, Any]:
    """An event."""
    made: dict[str, Any] = {"user_id": user(rng), "item_id": rng.choice(ground.item_ids)}
    if rng.random() < 0.5:
        made |= {"event_id": f"e{rng.randrange(500)}", "value": rng.uniform(-10, 10)}
    if rng.random() < 0.3:
        made |= {"timestamp": rng.choice([0, 1e9, 1.7e9, "2026-01-01T00:00:00Z", "2026-01-01"])}
    if rng.random() < 0.2:
        made |= {"recommendation_id": "x" * rng.choice([1, 16, 256]), "context": {"a": None, "b": True}}
    return made


def target_of(rng: Rng, ground: Ground) -> tuple[str, str, Any]:
    """A call that takes a body: method, path and a right body."""
    item = quote(rng.choice(ground.item_ids), safe="")
    text: dict[str, Any] = {"title": "T", "price": rng.random() * 30, "categories": ["a", "b"]}
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/v1/recommendations", question(rng, ground)),
        ("POST", "/v1/recommendations", question(rng, ground)),
        ("POST", "/v1/events", {"events": [event(rng, ground) for _ in range(rng.choice([1, 1, 1, 5, 50]))]}),
        ("POST", "/v1/rankings", {"candidates": list({*items(rng, ground, 30), "one"}), "user_id": user(rng)}),
        ("PUT", f"/v1/items/{rng.choice([item, f'new-{rng.randrange(20)}'])}", {"attributes": text}),
        ("POST", "/v1/users/merge", {"from": user(rng), "into": user(rng)}),
        ("POST", "/v1/admin/bundles/activate", {"bundle": "nothing"}),
    ]
    return rng.choice(calls)


def path_of(rng: Rng, ground: Ground) -> str:
    """A path that is there."""
    item, who = quote(rng.choice(ground.item_ids), safe=""), user(rng)
    return rng.choice(
        [
            f"/v1/items/{item}",
            f"/v1/items/{item}/similar?k={rng.randrange(1, 30)}",
            f"/v1/users/{who}/recommendations",
            f"/v1/users/{who}/history",
            "/v1/model",
            "/v1/recommendations/abcdefghijklmnop/next",
            "/v1/admin/bundles",
            "/livez",
            "/readyz",
            "/metrics",
            "/openapi.json",
            "/docs",
            "/",
        ]
    )


def asked(name: str, method: str, path: str, body: Any, ground: Ground, **headers: str) -> Case:
    """A case of one piece."""
    raw = body if body is None or isinstance(body, bytes) else dumps(body)
    return Case(name, (wire.encode(method, path, raw, headers={**ground.headers, **headers}),))


def dumps(body: Any) -> bytes:
    """JSON, and a little more: NaN and lone surrogates are written, too."""
    return json.dumps(body, ensure_ascii=True).encode()


def places(body: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a body, its own the first."""
    found = [at]
    entries = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for key, value in entries:
        found += places(value, (*at, key))
    return found


def replaced(body: Any, at: tuple[Any, ...], value: Any) -> Any:
    """The body with another value at a path."""
    if not at:
        return value
    copy = dict(body) if isinstance(body, dict) else list(body)
    copy[at[0]] = replaced(copy[at[0]], at[1:], value)
    return copy


def spoilt(name: str, rng: Rng, ground: Ground, values: Sequence[Any]) -> Case:
    """A right request with one of `values` somewhere in its body."""
    method, path, body = target_of(rng, ground)
    return asked(name, method, path, replaced(body, rng.choice(places(body)), rng.choice(values)), ground)
