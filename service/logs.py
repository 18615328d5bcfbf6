"""Logging: one line per request and one per thing that went wrong, for people or for machines. Never a history.

Whatever stands under `extra={"fields": {...}}` becomes `key=value` in text and members of the object in JSON.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import Any

import orjson


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


def configure(*, level: str, form: str) -> None:
    """Sends everything of `level` and above to standard error, once however often it is called."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # The server's own start and stop lines say nothing that ours do not.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, root.level))
