"""Logging: one line per request and one per thing that went wrong, for people or for machines. Never a history.

Whatever stands under `extra={"fields": {...}}` becomes `key=value` in text and members of the object in JSON.
"""

import logging
import math
import random
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

_requests = logging.getLogger("service.requests")


class TextFormatter(logging.Formatter):
    """`12:00:00.123 INFO service.middleware request route=/v1/events code=202`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, tz=UTC)
        line = f"{moment:%H:%M:%S.%f}"[:-3] + f" {record.levelname} {record.name} {record.getMessage()}"
        for key, value in getattr(record, "fields", {}).items():
            line += f" {key}={value}"
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, tz=UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str).decode()


class RequestLines:
    """Which requests get a line: those that failed, were degraded or were slow, and a share of all others.

    Args:
        share: of those with nothing to say.
        slow_s: from which time on a request is slow.
        chance: a number from 0 to 1, another one each time.
    """

    def __init__(
        self, *, share: float = 1.0, slow_s: float = math.inf, chance: Callable[[], float] = random.random
    ) -> None:
        self._share = share
        self._slow_s = slow_s
        self._chance = chance

    def level(
        self, status: int, seconds: float, answer: Mapping[str, Any] | None, *, is_quiet: bool = False
    ) -> int | None:
        """The level of a request's line; None where it gets none. Quiet ones have something to say when they fail."""
        if status < 400:
            if is_quiet:
                return logging.DEBUG if _requests.isEnabledFor(logging.DEBUG) else None
            is_plain = seconds < self._slow_s and not (answer and answer.get("degraded"))
            if is_plain and self._share < 1.0 and self._chance() >= self._share:
                return None
        return logging.INFO if _requests.isEnabledFor(logging.INFO) else None

    def write(self, level: int, fields: Mapping[str, Any]) -> None:
        """The line."""
        _requests.log(level, "request", extra={"fields": fields})


def configure(*, level: str, form: str) -> None:
    """Sends everything of `level` and above to standard error, once however often it is called."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The server's own start and stop lines say nothing that ours do not.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, root.level))
