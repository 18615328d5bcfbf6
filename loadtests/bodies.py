"""Families of requests whose body is wrong, and of those that are right."""

import json
from typing import Any

from loadtests.cases import (
    MOST_BODY_BYTES,
    Case,
    Families,
    Ground,
    Rng,
    asked,
    condition,
    dumps,
    items,
    path_of,
    places,
    question,
    replaced,
    spoilt,
    target_of,
)

FAMILIES = Families()


@FAMILIES.add(8)
def valid(rng: Rng, ground: Ground) -> Case:
    """Nothing is wrong with it, or only what a filter says."""
    method, path, body = target_of(rng, ground)
    return asked("valid", method, path, body, ground)


@FAMILIES.add(4)
def reading(rng: Rng, ground: Ground) -> Case:
    """A call without a body, in a right or a wrong way."""
    method = rng.choice(["GET", "GET", "GET", "HEAD", "DELETE"])
    return asked("reading", method, path_of(rng, ground), None, ground)


@FAMILIES.add(10)
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


@FAMILIES.add(8)
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


@FAMILIES.add(8)
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


@FAMILIES.add(5)
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


@FAMILIES.add(8)
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


@FAMILIES.add(4)
def duplicates(rng: Rng, ground: Ground) -> Case:
    """A key that stands twice."""
    method, path, body = target_of(rng, ground)
    raw = dumps(body)
    key, value = rng.choice(list(body.items()))
    other = dumps(rng.choice([value, None, 1, "x", []]))
    return asked("duplicates", method, path, raw[:-1] + b", " + dumps(key) + b": " + other + b"}", ground)


@FAMILIES.add(4)
def unknown_fields(rng: Rng, ground: Ground) -> Case:
    """A field that does not exist."""
    method, path, body = target_of(rng, ground)
    name = rng.choice(["fliter", "", "__proto__", "constructor", "K", "user_id ", "events[0]", "x" * 1_000])
    return asked("unknown_fields", method, path, {**body, name: rng.choice([None, 1, {}])}, ground)


@FAMILIES.add(3)
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


@FAMILIES.add(2)
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


@FAMILIES.add(8)
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


@FAMILIES.add(6)
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
