"""Families of requests that are wrong around their body: paths, headers, keys, framing, and how they are sent."""

import math

from loadtests import wire
from loadtests.cases import Case, Families, Ground, Rng, dumps, path_of, target_of

FAMILIES = Families()


@FAMILIES.add(6)
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


@FAMILIES.add(6)
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


@FAMILIES.add(3)
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


@FAMILIES.add(6)
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


@FAMILIES.add(3)
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


@FAMILIES.add(4)
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


@FAMILIES.add(1)
def slow(rng: Rng, ground: Ground) -> Case:
    """A request that comes in drops."""
    method, path, body = target_of(rng, ground)
    raw = wire.encode(method, path, dumps(body), headers=ground.headers)
    step = math.ceil(len(raw) / rng.choice([2, 5, 20]))
    return Case("slow", tuple(raw[at : at + step] for at in range(0, len(raw), step)), is_alone=True)


@FAMILIES.add(2)
def halves(rng: Rng, ground: Ground) -> Case:
    """A request, or the beginning of one, and then the end of this side of the connection."""
    method, path, body = target_of(rng, ground)
    raw = wire.encode(method, path, dumps(body), headers=ground.headers)
    cut = rng.choice([len(raw), rng.randrange(1, len(raw)), raw.index(b"\r\n\r\n") + 4])
    return Case("halves", (raw[:cut],), is_alone=True, ends=True, may_be_silent=True)


@FAMILIES.add(3)
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


@FAMILIES.add(2)
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
