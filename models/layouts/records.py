"""The records of the service's log as a table: from the segments that it writes, and from the parts made of them.

A segment is a file of JSON lines, `KINDS` says of which; a part is a Parquet file with the columns of `SCHEMA`, of the
same name but for its end. A part takes the place of its segment, so nothing is lost or counted twice where making it
was interrupted. The last line of a segment may be torn, where its writer was killed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from models.intake import Batch
from models.layouts.tables import named, read_parquet
from models.layouts.text import LINES, read_text

SEGMENT, PART = ".jsonl", ".parquet"
EVENT, SERVED, ERASED, MERGED = "event", "served", "erased", "merged"
KINDS: Mapping[str, tuple[str, ...]] = {  # and what each has to say, beside its time
    EVENT: ("user_id", "item_id", "event_type", "timestamp"),
    SERVED: ("recommendation_id", "items", "scores", "sources"),
    ERASED: ("user_id",),
    MERGED: ("user_id", "into"),
}
_TEXTS, _NUMBERS = pl.List(pl.String), pl.List(pl.Float64)
_COLUMNS: Mapping[str, Any] = {
    "kind": pl.String,
    "time": pl.Float64,
    "since": pl.Float64,
    "user_id": pl.String,
    "into": pl.String,
    "item_id": pl.String,
    "event_type": pl.String,
    "value": pl.Float64,
    "timestamp": pl.Float64,
    "event_id": pl.String,
    "recommendation_id": pl.String,
    "context": pl.String,  # an object, as it stood in the line
    "k": pl.Int64,
    "first": pl.Int64,
    "items": _TEXTS,
    "scores": _NUMBERS,
    "sources": _TEXTS,
    "propensities": _NUMBERS,
    "ranked": pl.Boolean,
    "model": pl.String,
    "bundle": pl.String,
    "variant": pl.String,
    "placement": pl.String,
    "degraded": _TEXTS,
    "timings_ms": pl.String,  # likewise
}

SCHEMA = pl.Schema(_COLUMNS)
OBJECTS = ("context", "timings_ms")
TORN = "torn last lines of writers that were killed"


def read_records(path: Path) -> Iterator[Batch]:
    """The records of a segment or a part, with the columns of `SCHEMA`."""
    return read_part(path) if path.suffix == PART else read_segment(path)


def read_part(path: Path) -> Iterator[Batch]:
    """The records of a Parquet file."""
    for batch in named(read_parquet(path), ("kind", "time", "user_id")):
        known = [pl.col(name) if name in batch.frame.columns else pl.lit(None).alias(name) for name in SCHEMA]
        yield replace(batch, frame=batch.frame.select(known).cast(SCHEMA))


def read_segment(path: Path) -> Iterator[Batch]:
    """The records of a file of JSON lines."""
    held: Batch | None = None
    for batch in read_text(path, LINES, ("line",)):
        if held is not None:
            yield _parsed(held)
        held = batch
    if held is not None:  # what stands behind the last line break, if anything does
        tail = _parsed(held)
        torn = sum(fault.count for fault in tail.faults)
        yield replace(tail, faults=(), dropped={TORN: torn}) if torn else tail


def _parsed(batch: Batch) -> Batch:
    records, wrong = [], []
    for line in batch.frame["line"].to_list():
        record = _record(line)
        records += [record] if isinstance(record, dict) else []
        wrong.append(record if isinstance(record, str) else None)
    batch = batch.having(pl.Series("wrong", wrong, dtype=pl.String))
    for reason in dict.fromkeys(filter(None, wrong)):
        rule = f"a line is a JSON object of kind {', '.join(KINDS)}, as the service writes it"
        batch = batch.reject((batch.frame["wrong"] == reason).fill_null(False), reason, rule, batch.frame["line"])
    return replace(batch, frame=_frame(records))


def _frame(records: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    columns = {}
    for name, dtype in SCHEMA.items():
        values = [record.get(name) for record in records]
        if name in OBJECTS:
            values = [None if value is None else orjson.dumps(value).decode() for value in values]
        columns[name] = pl.Series(name, values, dtype=dtype, strict=False)
    return pl.DataFrame(columns)


def _record(line: str) -> dict[str, Any] | str:
    """A line's record, or what is wrong with it."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return "not JSON"
    if not isinstance(record, dict):
        return "not a JSON object"
    required = KINDS.get(record.get("kind", ""))
    if required is None:
        return "unknown kind"
    for name in ("time", *required):
        if record.get(name) is None:
            return f"missing {name}"
    for name, value in record.items():
        if value is not None and not _fits(value, SCHEMA.get(name), name):
            return f"{name} of another type"
    if record["kind"] == SERVED and not len(record["items"]) == len(record["scores"]) == len(record["sources"]):
        return "items, scores and sources of different lengths"
    return record


def _fits(value: Any, dtype: Any, name: str) -> bool:
    """Whether a value belongs into a column; what has no column is passed over."""
    if name in OBJECTS:
        return isinstance(value, dict)
    if dtype == pl.String:
        return isinstance(value, str)
    if dtype == pl.Boolean:
        return isinstance(value, bool)
    if dtype == pl.Int64:
        return isinstance(value, int) and not isinstance(value, bool)
    if dtype == pl.Float64:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if dtype == _TEXTS:
        return isinstance(value, list) and all(isinstance(part, str) for part in value)
    if dtype == _NUMBERS:
        return isinstance(value, list) and all(part is None or isinstance(part, int | float) for part in value)
    return True
