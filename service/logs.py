"""Logging: one line per request and one per thing that went wrong, for people or for machines. Never a history.

Whatever stands under `extra={"fields": {...}}` becomes `key=value` in text and members of the object in JSON.
"""

import logging
import math
import random
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import orjson

_requests = logging.getLogger("service.requests")


class TextFormatter(logging.Formatter):
    """`12:00:00.123 INFO service.middleware request route=/v1/events code=202`."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = int(record.created)
        line = f"{_of_day(seconds)}.{int((record.created - seconds) * 1000):03d} {record.levelname} {record.name} "
        line += record.getMessage() + "".join(
            [f" {key}={value}" for key, value in getattr(record, "fields", {}).items()]
        )
        return line + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else "")


@lru_cache(maxsize=1)
def _of_day(seconds: int) -> str:
    """The time of day of whole seconds since 1970, which many lines share."""
    return time.strftime("%H:%M:%S", time.gmtime(seconds))


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


class _Line(logging.LogRecord):
    """The record of a request's line. What is the same in all of them is not looked up for each, as it costs more than
    writing the line."""

    _SAME: Mapping[str, Any] = logging.LogRecord(_requests.name, 0, __file__, 0, "request", None, None).__dict__

    def __init__(self, level: int, fields: Mapping[str, Any]) -> None:
        created = time.time()
        self.__dict__ = {
            **self._SAME,
            "levelno": level,
            "levelname": logging.getLevelName(level),
            "created": created,
            "msecs": int(created % 1 * 1000),
            "fields": fields,
        }


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
        _requests.handle(_Line(level, fields))


def configure(*, level: str, form: str) -> None:
    """Sends everything of `level` and above to standard error, once however often it is called."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The server's own start and stop lines say nothing that ours do not.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, root.level))
