"""The id of a request: the caller's own where it is decent, else one that no other process and no other request has."""

import itertools
import re
import secrets
from collections.abc import Iterable

HEADER = b"x-request-id"
_DECENT = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_PROCESS = secrets.token_hex(8)
_number = itertools.count(secrets.randbits(32))


def request_id(headers: Iterable[tuple[bytes, bytes]] = ()) -> str:
    """The id of the request that has these headers, names in small letters."""
    for name, value in headers:
        if name == HEADER and _DECENT.fullmatch(value):
            return value.decode()
    return f"{_PROCESS}{next(_number):016x}"
