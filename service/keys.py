"""API keys: who may call, and what.

A file of lines `name:scope,scope:sha256` holds the digests of the keys, never the keys. A line may end in limits of its
own, `:rate=50,budget=0`, which stand in place of those of the settings. The file is read again when it changes, so keys
are rotated by writing a new line, moving the callers over and deleting the old one. Keys are long random strings, so a
plain digest is enough. Whether a key is right, wrong or made up takes one digest, one look-up by it and one comparison
that does not depend on where two digests differ.

Without a file everybody may call, and so only from this machine: `open_keys` refuses any other address, and `allow`
any other caller.
"""

import hashlib
import hmac
import logging
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

from service.errors import ConfigurationError, Forbidden, Unauthenticated
from service.settings import Settings

_log = logging.getLogger(__name__)

SCOPES = ("read", "write", "metrics", "admin")
LIMITED = ("read", "write")  # scopes of calls that count; whoever looks after the service is never held up
LOOK_EVERY_S = 0.25  # how often the file is looked at, at most
LONG_QUESTIONS = ("/v1/recommendations", "/v1/rankings")  # a POST because they are long; they change nothing
OPEN_PATHS = ("/", "/docs", "/openapi.json", "/livez", "/readyz", "/favicon.ico")


def needed_scope(method: str, path: str) -> str | None:
    """The scope that a call needs; None where it needs no key."""
    if path in OPEN_PATHS or path.startswith("/static/"):
        return None
    if path == "/metrics":
        return "metrics"
    if path.startswith("/v1/admin/"):
        return "admin"
    return "read" if method in ("GET", "HEAD") or path in LONG_QUESTIONS else "write"


@dataclass(frozen=True, slots=True)
class Key:
    """One caller's key.

    Attributes:
        name: the operator's own word for it; it may stand in logs and in metrics.
        scopes: what it opens.
        digest: SHA-256 of the key.
        rate: requests per second; None: as the settings say, 0: as many as you like.
        budget: distinct query sequences per day; None and 0 likewise.
    """

    name: str
    scopes: frozenset[str]
    digest: bytes
    rate: float | None = None
    budget: int | None = None


ANYBODY = Key("anonymous", frozenset(SCOPES), b"")
_NOBODY = Key("", frozenset(), bytes(32))  # what an unknown digest is compared with


class KeyRing:
    """The keys of a file.

    Args:
        path: of the file.
        clock: seconds from some fixed moment; says when to look at the file again.

    Raises:
        ConfigurationError: the file cannot be read, holds no key, or a line is not one.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._look_at = clock() + LOOK_EVERY_S
        self._seen = self._stamp()
        self._keys = {key.digest: key for key in read_keys(path)}

    def allow(self, presented: str | None, scope: str, *, client: str) -> Key:  # noqa: ARG002
        """The key that was presented.

        Raises:
            Unauthenticated: none, or not one of ours.
            Forbidden: it lacks the scope.
        """
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._refresh()
        if not presented:
            raise Unauthenticated("send an API key as `Authorization: Bearer <key>` or `X-API-Key: <key>`")
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        # The look-up is by a digest, which nobody can steer towards one of ours; what decides is the comparison.
        found = self._keys.get(digest, _NOBODY)
        if not hmac.compare_digest(found.digest, digest):
            raise Unauthenticated("this API key is not known; it may have been rotated")
        if scope not in found.scopes:
            raise Forbidden(f"API key {found.name!r} has no scope {scope!r}; it has {', '.join(sorted(found.scopes))}")
        return found

    def _stamp(self) -> tuple[int, int, int]:
        try:
            stat = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def _refresh(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._keys = {key.digest: key for key in read_keys(self._path)}
            _log.info("read %d API keys again", len(self._keys))
        except ConfigurationError as error:
            _log.error("the API keys changed and are refused, the old ones stay: %s", error)


class Anybody:
    """No keys: every caller may do everything, if it may call at all. Together they count as one key."""

    def __init__(self, *, only_loopback: bool) -> None:
        self._only_loopback = only_loopback

    def allow(self, _presented: str | None, _scope: str, *, client: str) -> Key:
        """Raises Unauthenticated for a caller from elsewhere, whatever address the server was told to listen on."""
        if self._only_loopback and not _is_loopback(client):
            raise Unauthenticated(
                f"without API keys only this machine may call, not {client}; set SEQUITUR_API_KEYS_FILE"
            )
        return ANYBODY


def open_keys(settings: Settings) -> KeyRing | Anybody:
    """What decides who may call.

    Raises:
        ConfigurationError: the file is no good, or there is none and others can reach the address.
    """
    if settings.api_keys_file is not None:
        return KeyRing(settings.api_keys_file)
    if not settings.is_loopback and not settings.allow_anonymous:
        raise ConfigurationError(
            f"{settings.host} can be reached from other machines and there are no API keys; set "
            "SEQUITUR_API_KEYS_FILE, listen on 127.0.0.1, or say SEQUITUR_ALLOW_ANONYMOUS=true where a proxy guards it"
        )
    return Anybody(only_loopback=not settings.allow_anonymous)


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file; empty lines and those that begin with # are passed over.

    Raises:
        ConfigurationError: the file cannot be read, holds no key, or a line is not one.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"API keys at {path} cannot be read: {error}") from error
    keys = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, scopes, digest, limits = ([part.strip() for part in line.split(":")] + [""] * 3)[:4]
        granted = frozenset(scope.strip() for scope in scopes.split(","))
        if line.count(":") not in (2, 3) or not name or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
            # The line itself is not shown: somebody may have written the key instead of its digest.
            raise ConfigurationError(f"{path}, line {number} is not `name:scope,scope:sha256` (64 hex digits)")
        if not granted <= set(SCOPES):
            unknown = ", ".join(sorted(granted - set(SCOPES)))
            raise ConfigurationError(f"{path}, line {number}: scope {unknown!r} is unknown; there are {SCOPES}")
        try:
            rate, budget = _limits(limits)
        except ValueError:
            raise ConfigurationError(
                f"{path}, line {number}: limits are written `rate=50,budget=10000`, numbers that are not negative"
            ) from None
        keys.append(Key(name, granted, bytes.fromhex(digest), rate, budget))
    if not keys:
        raise ConfigurationError(f"{path} holds no API key; write `name:read,write:sha256` lines")
    return tuple(keys)


def _limits(text: str) -> tuple[float | None, int | None]:
    """Rate and budget of `rate=50,budget=0`; None for what is not said. Raises ValueError."""
    said = dict(part.strip().split("=") for part in text.split(",")) if text else {}
    rate = float(said.pop("rate")) if "rate" in said else None
    budget = int(said.pop("budget")) if "budget" in said else None
    if said or not 0 <= (rate or 0) < math.inf or (budget or 0) < 0:
        raise ValueError(text)
    return rate, budget


@lru_cache(maxsize=64)
def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
