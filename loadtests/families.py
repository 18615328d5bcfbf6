"""Requests that nobody should send, by family: each is made from a seed and a number, so that any of them can be sent
again.

A family is a function of a random generator and of what the service has, `Ground`. It spoils one thing in a request
that is otherwise right, because a request that is wrong everywhere is refused by the first check it meets.
"""

import json
import math
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
FAMILIES: dict[str, tuple[Family, int]] = {}  # with how often, relative to the others


def family(weight: int) -> Callable[[Family], Family]:
    """Adds a function under its own name."""

    def add(made: Family) -> Family:
        FAMILIES[made.__name__] = (made, weight)
        return made

    return add


def cases(ground: Ground, *, seed: int, count: int) -> list[Callable[[], Case]]:
    """`count` cases, each made when it is called."""
    names = list(FAMILIES)
    drawn = random.Random(seed).choices(names, [FAMILIES[name][1] for name in names], k=count)

    def made(name: str, number: int) -> Callable[[], Case]:
        return lambda: FAMILIES[name][0](random.Random(f"{seed}/{number}/{name}"), ground)

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


# The families.


@family(8)
def valid(rng: Rng, ground: Ground) -> Case:
    """Nothing is wrong with it, or only what a filter says."""
    method, path, body = target_of(rng, ground)
    return asked("valid", method, path, body, ground)


@family(4)
def reading(rng: Rng, ground: Ground) -> Case:
    """A call without a body, in a right or a wrong way."""
    method = rng.choice(["GET", "GET", "GET", "HEAD", "DELETE"])
    return asked("reading", method, path_of(rng, ground), None, ground)


@family(10)
def wrong_types(rng: Rng, ground: Ground) -> Case:
    """A value of another type."""
    values: list[Any] = [
        None,
        True,
        False,
        0,
        -1,
        1.5,
        "",
        "x",
        [],
        {},
        [[]],
        [None],
        {"": None},
        {"a": {"b": []}},
        "1",
        "true",
    ]
    return spoilt("wrong_types", rng, ground, values)


@family(8)
def numbers(rng: Rng, ground: Ground) -> Case:
    """A number that is none, or one that no field holds."""
    method, path, body = target_of(rng, ground)
    marked = dumps(replaced(body, rng.choice(places(body)), "@@"))
    number = rng.choice(
        [
            *("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "1e-400", "-0", "-0.0", "1e308", "5e-324", "01", "1."),
            *("+1", ".5", "0x10", "1_0", "1e", "9223372036854775807", "9223372036854775808", "-9223372036854775809"),
            *("1" * 400, "1" * 5_000, "1" * 100_000, "0." + "1" * 5_000, "1e" + "9" * 50, "253402300800", "1e15"),
        ]
    )
    return asked("numbers", method, path, marked.replace(b'"@@"', number.encode()), ground)


@family(8)
def texts(rng: Rng, ground: Ground) -> Case:
    """A text that is hard to hold: lone surrogates, NUL, marks of direction, keys of another store."""
    odd = [
        "\ud800",
        "\udfff\ud800",
        "a\udc80b",
        "\0",
        "a\0b",
        "\ufeff",
        "\u202e",
        "\U0010ffff",
        "é" * 256,
        "\u0301" * 99,
    ]
    odd += [
        "../../etc",
        "a/b",
        "{a}",
        "*",
        "%s%n",
        "'; DROP TABLE events;--",
        "\r\nset a b\r\n",
        "${x}",
        "a" * 256,
        " ",
    ]
    return spoilt("texts", rng, ground, [*odd, *([text] for text in odd), *({text: text} for text in odd)])


@family(5)
def encodings(rng: Rng, ground: Ground) -> Case:
    """A body that is no UTF-8."""
    method, path, body = target_of(rng, ground)
    raw = bytearray(dumps(body))
    bad = [
        b"\xff",
        b"\xc0\xaf",
        b"\xed\xa0\x80",
        b"\xf8\x88\x80\x80\x80",
        b"\xe2\x82",
        b"\x80",
        b"\xf4\x90\x80\x80",
        b"\0",
    ]
    at = rng.randrange(len(raw) + 1)
    raw[at:at] = rng.choice(bad)
    whole = [
        bytes(raw),
        json.dumps(body).encode("utf-16"),
        json.dumps(body).encode("utf-32"),
        b"\xef\xbb\xbf" + dumps(body),
    ]
    return asked("encodings", method, path, rng.choice(whole), ground)


@family(8)
def mutations(rng: Rng, ground: Ground) -> Case:
    """A body that is cut short, or has other bytes here and there."""
    method, path, body = target_of(rng, ground)
    raw = bytearray(dumps(body))
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(raw))
        match rng.randrange(4):
            case 0:
                raw[at] = rng.randrange(256)
            case 1:
                raw[at:at] = rng.choice([b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\u12", b"null", b"//"])
            case 2:
                del raw[at : at + rng.randrange(1, 9)]
            case 3:
                del raw[at:]
        if not raw:
            break
    return asked("mutations", method, path, bytes(raw), ground)


@family(4)
def duplicates(rng: Rng, ground: Ground) -> Case:
    """A key that stands twice."""
    method, path, body = target_of(rng, ground)
    raw = dumps(body)
    key, value = rng.choice(list(body.items()))
    other = dumps(rng.choice([value, None, 1, "x", []]))
    return asked("duplicates", method, path, raw[:-1] + b", " + dumps(key) + b": " + other + b"}", ground)


@family(4)
def unknown_fields(rng: Rng, ground: Ground) -> Case:
    """A field that does not exist."""
    method, path, body = target_of(rng, ground)
    name = rng.choice(["fliter", "", "__proto__", "constructor", "K", "user_id ", "events[0]", "x" * 1_000])
    return asked("unknown_fields", method, path, {**body, name: rng.choice([None, 1, {}])}, ground)


@family(3)
def deep(rng: Rng, ground: Ground) -> Case:
    """Brackets in brackets."""
    method, path, body = target_of(rng, ground)
    depth = rng.choice([50, 127, 128, 129, 200, 255, 256, 1_000, 10_000, 100_000])
    opened, closed = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
    nested = opened * depth + rng.choice([b"1", b""]) + closed * rng.choice([depth, depth, 0, depth - 1])
    if rng.random() < 0.3:
        return asked("deep", method, path, nested, ground)
    return asked(
        "deep", method, path, dumps({**body, rng.choice([*body, "context"]): "@@"}).replace(b'"@@"', nested), ground
    )


@family(2)
def huge(rng: Rng, ground: Ground) -> Case:
    """Many, or long; about the limit of a body, or far beyond it."""
    n = rng.choice([33, 257, 501, 1_001, 10_001, 50_000])
    long = "x" * rng.choice([257, 4_097, 100_000, MOST_BODY_BYTES - 200, MOST_BODY_BYTES + 1, 2 * MOST_BODY_BYTES])
    bodies: list[tuple[str, Any]] = [
        ("/v1/recommendations", {"history": [rng.choice(ground.item_ids) for _ in range(n)]}),
        ("/v1/recommendations", {"user_id": long}),
        ("/v1/recommendations", {"filter": {"exclude_ids": [f"i{at}" for at in range(n)]}}),
        ("/v1/recommendations", {"filter": {"include_ids": [long]}}),
        ("/v1/recommendations", {"context": {f"c{at}": at for at in range(n)}}),
        ("/v1/recommendations", {"filter": {"attributes": [{"name": "price", "op": "<=", "value": 1}] * n}}),
        ("/v1/recommendations", {"k": n}),
        ("/v1/recommendations", {"placement": {"pins": [{"item_id": f"i{at}"} for at in range(min(n, 10_001))]}}),
        ("/v1/rankings", {"candidates": [f"c{at}" for at in range(n)]}),
        ("/v1/events", {"events": [{"user_id": "fuzz", "item_id": "a"}] * min(n, 10_001)}),
        ("/v1/events", {"events": [{"user_id": "fuzz", "item_id": "a", "context": {"a": long}}]}),
    ]
    path, body = rng.choice(bodies)
    return asked("huge", "POST", path, body, ground)


@family(8)
def filters(rng: Rng, ground: Ground) -> Case:
    """Conditions that exclude each other, or that no item has."""
    some = items(rng, ground, 30) or ["i"]
    wanted: list[dict[str, Any]] = [
        {"include_ids": some, "exclude_ids": some},
        {"include_ids": list(ground.item_ids)[:10_000], "exclude_ids": list(ground.item_ids)[:10_000]},
        {"exclude_ids": list(ground.item_ids)[:10_000]},
        {"include_ids": ["unknown"]},
        {"categories": {"any": ["fantasy"], "none": ["fantasy"]}},
        {"categories": {"any": ["nothing has this"]}, "new_only": True},
        {"attributes": [condition(rng, ground) for _ in range(rng.randrange(1, 33))]},
        {"attributes": [{"name": "price", "op": "<", "value": 1}, {"name": "price", "op": ">", "value": 2}]},
        {"attributes": [{"name": rng.choice(ground.columns), "op": "in", "value": []}]},
        {"attributes": [{"name": "price", "op": "<=", "value": rng.choice([1e308, -1e308, 5e-324])}]},
    ]
    body = {**question(rng, ground), "filter": rng.choice(wanted)}
    return asked("filters", "POST", "/v1/recommendations", body, ground)


@family(6)
def rules(rng: Rng, ground: Ground) -> Case:
    """Rules of a placement that cannot all be kept."""
    one = rng.choice(ground.item_ids)
    wanted: list[Any] = [
        {"pins": [{"item_id": one, "position": at} for at in (1, 2, 3)]},
        {"pins": [{"item_id": item, "position": 1} for item in items(rng, ground, 20)]},
        {"pins": [{"item_id": "unknown", "position": 500}], "k": 1},
        {"caps": [{"attribute": name, "most": 1} for name in ground.columns]},
        {"caps": [{"attribute": "nothing", "most": 1, "values": ["a"]}]},
        {"promotion": {"share": 1.0, "item_ids": ["unknown"]}},
        {"promotion": {"share": 1e-300, "where": condition(rng, ground)}},
        {"freshness": {"attribute": rng.choice(ground.columns), "half_life_s": rng.choice([5e-324, 1e308])}},
        {"goals": {f"g{at}": 1e6 for at in range(rng.randrange(33))}},
        {"diversity": 1.0, "k": 500},
        {"name": "nothing"},
        "nothing",
        "",
    ]
    body = {**question(rng, ground), "placement": rng.choice(wanted)}
    return asked("rules", "POST", "/v1/recommendations", body, ground)


@family(6)
def paths(rng: Rng, ground: Ground) -> Case:
    """Paths that are not there, or not written as paths are."""
    odd = [
        "",
        "%",
        "%zz",
        "%00",
        "%2e%2e",
        "..",
        ".",
        "%2F",
        "//",
        ";a=b",
        "%ED%A0%80",
        "%FF",
        "\xff",
        "é",
        " ",
        "\t",
        "#a",
    ]
    odd += ["x" * 257, "%C3%A9" * 256, "x" * 9_000, "x" * 70_000, "a/b/c", "*", "\\", "%0d%0aX: y", "merge", "next"]
    piece = rng.choice(odd)
    path = rng.choice(
        [
            f"/v1/items/{piece}",
            f"/v1/items/{piece}/similar",
            f"/v1/users/{piece}/history",
            f"/v1/users/{piece}/recommendations",
            f"/v1/users/{piece}",
            f"/v1/recommendations/{piece}/next",
            f"/v1/{piece}",
            f"/{piece}",
            f"/static/{piece}",
            f"/static/../{piece}",
            f"/static/{piece}/../../settings.py",
            f"{piece}",
            f"http://example.com/{piece}",
        ]
    )
    method = rng.choice(["GET", "GET", "GET", "PUT", "DELETE", "POST"])
    body = b"{}" if method in ("PUT", "POST") else None
    raw = wire.encode(method, path, body, headers=ground.headers)
    return Case("paths", (raw,), is_alone=True)


@family(6)
def queries(rng: Rng, ground: Ground) -> Case:
    """Parameters that mean nothing."""
    values = [
        "",
        "0",
        "-1",
        "501",
        "1e3",
        "abc",
        "%",
        "%00",
        "%FF",
        "1&k=2",
        "9" * 30,
        "9" * 5_000,
        "1.0",
        "+1",
        " 1",
        "true",
    ]
    values += ["%EF%BC%91", "NaN", "[]", "null", "x" * 65]
    name = rng.choice(["k", "after", "placement", "k[]", "", "unknown", "%00"])
    path = path_of(rng, ground).partition("?")[0]
    return Case(
        "queries",
        (wire.encode("GET", f"{path}?{name}={rng.choice(values)}", headers=ground.headers),),
        is_alone=True,
    )


@family(3)
def methods(rng: Rng, ground: Ground) -> Case:
    """Methods that a call does not have, or that are none."""
    method = rng.choice(
        [
            "PATCH",
            "TRACE",
            "OPTIONS",
            "CONNECT",
            "PROPFIND",
            "PURGE",
            "get",
            "PO ST",
            "G\0T",
            "X" * 500,
            "",
            "QUERY",
            "PRI",
        ]
    )
    path = path_of(rng, ground)
    body = rng.choice([None, b"{}"])
    # CONNECT asks for a tunnel, and whatever follows a refusal is not HTTP any more.
    return Case("methods", (wire.encode(method, path, body, headers=ground.headers),), is_alone=True)


@family(6)
def headers(rng: Rng, ground: Ground) -> Case:
    """Headers that are many, long, strange or at odds with each other."""
    method, path, body = target_of(rng, ground)
    raw = dumps(body)
    odd: list[dict[str, str]] = [
        {f"x-h{at}": "v" for at in range(rng.choice([50, 100, 101, 500, 2_000]))},
        {"x-long": "v" * rng.choice([1_000, 8_200, 16_400, 65_000, 70_000, 300_000])},
        {"cookie": "; ".join(f"c{at}=v" for at in range(rng.choice([10, 1_000])))},
        {"content-type": rng.choice(["text/plain", "", "application/json; charset=utf-16", "x" * 999, "application/xml",
                                     "multipart/form-data; boundary=x", "application/json;;;", "\xff"])},
        {"content-encoding": rng.choice(["gzip", "br", "identity", "nothing"])},
        {"expect": rng.choice(["100-continue", "200-ok"])},
        {"x-request-id": rng.choice(["", "x" * 10_000, "a b", "\xff", "{}", "id-1"])},
        {"traceparent": rng.choice(["", "00-0-0-00", "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "zz", "x" * 9_999])},
        {"accept": rng.choice(["", "text/html", "*/*;q=9", "x" * 9_999])},
        {"host": rng.choice(["", "example.com", "a b", "x" * 9_999, "[::1"])},
        {"x-forwarded-for": "8.8.8.8", "forwarded": "for=8.8.8.8", "x-real-ip": "8.8.8.8"},
        {"connection": rng.choice(["close", "upgrade", "keep-alive, x", ""]), "upgrade": "websocket"},
        {"te": "trailers", "range": "bytes=0-1", "if-none-match": "*", "if-modified-since": "yesterday"},
        {rng.choice(["x y", "x\0", "\xff", "", "x:"]): "v"},
        {"x": rng.choice(["a\0b", "a\x7fb", "\xff\xfe", "a\nb", "a\rb"])},
    ]  # fmt: skip
    made = wire.encode(method, path, raw, headers={**ground.headers, **rng.choice(odd)})
    # A server may close on a flood of headers before it has read them all.
    return Case("headers", (made,), is_alone=True, may_be_silent=len(made) > len(raw) + 30_000)


@family(3)
def keys(rng: Rng, ground: Ground) -> Case:
    """Credentials that are none."""
    method, path, body = target_of(rng, ground)
    odd = [
        "",
        "Bearer",
        "Bearer ",
        "Bearer  x",
        "bearer wrong",
        "Basic dTpw",
        "Bearer \xff",
        "Bearer " + "x" * 9_000,
        "x",
    ]
    made = {**ground.headers, "authorization": rng.choice(odd)}
    if rng.random() < 0.3:
        made["x-api-key"] = rng.choice(["", "wrong", "\xff"])
    return Case("keys", (wire.encode(method, path, dumps(body), headers=made),))


@family(4)
def framing(rng: Rng, ground: Ground) -> Case:
    """Bodies whose length is said wrongly, twice or not at all."""
    method, path, body = target_of(rng, ground)
    raw = dumps(body)

    def made(lines: str, rest: bytes = raw) -> bytes:
        said = "".join(f"{name}: {value}\r\n" for name, value in ground.headers.items())
        return f"{method} {path} HTTP/1.1\r\nhost: x\r\n{said}{lines}\r\n".encode("latin-1") + rest

    chunk = f"{len(raw):x}\r\n".encode() + raw + b"\r\n0\r\n\r\n"
    n = len(raw)
    chosen = rng.choice(
        [
            made(f"content-length: {n}\r\ncontent-length: {n}\r\n"),
            made(f"content-length: {n}\r\ncontent-length: {n + 1}\r\n"),
            made(f"content-length: {n // 2}\r\n"),
            made("content-length: -1\r\n"),
            made(f"content-length: +{n}\r\n"),
            made(f"content-length: 0x{n:x}\r\n"),
            made("content-length: 99999999999999999999999\r\n"),
            made("content-length: \r\n"),
            made("content-length: 2097152\r\n"),
            made("transfer-encoding: chunked\r\n", chunk),
            made("transfer-encoding: chunked\r\n", b"zz\r\n"),
            made("transfer-encoding: chunked\r\n", b"-1\r\n"),
            made("transfer-encoding: chunked\r\n", b"ffffffffffffffffff\r\n"),
            made("transfer-encoding: chunked\r\n", b"1" + b"0" * 999 + b"\r\n"),
            made("transfer-encoding: chunked\r\n", b"5;" + b"x" * 9_000 + b'\r\n{"k":\r\n0\r\n\r\n'),
            made(f"transfer-encoding: chunked\r\ncontent-length: {n}\r\n", chunk),
            made("transfer-encoding: gzip, chunked\r\n", chunk),
            made("transfer-encoding: nothing\r\n"),
            made("", b""),
            made(" folded\r\n"),
            made("content-length: 0\r\n", b""),
            raw,
            f"{method} {path}\r\n\r\n".encode("latin-1"),
            f"{method} {path} HTTP/9.9\r\n\r\n".encode("latin-1"),
            f"{method} {path} HTTP/1.0\r\ncontent-length: {n}\r\n\r\n".encode("latin-1") + raw,
        ]
    )
    # Some announce more than ever comes. This side then says that it is done, and nobody owes it an answer.
    return Case("framing", (chosen,), is_alone=True, ends=True, may_be_silent=True)


@family(1)
def slow(rng: Rng, ground: Ground) -> Case:
    """A request that comes in drops."""
    method, path, body = target_of(rng, ground)
    raw = wire.encode(method, path, dumps(body), headers=ground.headers)
    step = math.ceil(len(raw) / rng.choice([2, 5, 20]))
    return Case("slow", tuple(raw[at : at + step] for at in range(0, len(raw), step)), is_alone=True)


@family(2)
def halves(rng: Rng, ground: Ground) -> Case:
    """A request, or the beginning of one, and then the end of this side of the connection."""
    method, path, body = target_of(rng, ground)
    raw = wire.encode(method, path, dumps(body), headers=ground.headers)
    cut = rng.choice([len(raw), rng.randrange(1, len(raw)), raw.index(b"\r\n\r\n") + 4])
    return Case("halves", (raw[:cut],), is_alone=True, ends=True, may_be_silent=True)


@family(3)
def pipelines(rng: Rng, ground: Ground) -> Case:
    """A request, and something behind it before its answer is there."""
    method, path, body = target_of(rng, ground)
    raw = wire.encode(method, path, dumps(body), headers=ground.headers)
    rest = [
        raw,
        raw * 20,
        b"garbage\r\n\r\n",
        bytes(rng.randrange(256) for _ in range(200)),
        b"\0" * 100,
        b"\r\n" * 50,
        b"GET ",
    ]
    return Case("pipelines", (raw + rng.choice(rest),), is_alone=True)


@family(2)
def noise(rng: Rng, _ground: Ground) -> Case:
    """No HTTP at all."""
    raw = rng.choice(
        [
            bytes(rng.randrange(256) for _ in range(rng.choice([1, 30, 3_000]))),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS client
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"\r\n\r\n\r\n",
            b"GET",
        ]
    )
    return Case("noise", (raw,), is_alone=True, ends=True, may_be_silent=True)
