"""Logs that know an order and no times: a pair per line, or a user with all items on one line."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from models.intake import Batch
from models.layouts.layout import Layout
from models.layouts.tables import headed, table_items
from models.layouts.text import CSV, LINES, read_text


def read_pairs(path: Path) -> Iterator[Batch]:
    """Events of `user item` per line."""
    for batch in _worded(path):
        is_bad = batch.frame["words"].list.len() != 2
        batch = batch.reject(is_bad, "wrong column count", "every line is: user item", batch.frame["line"])
        words = batch.frame["words"].list
        yield replace(batch, frame=pl.DataFrame({"user_id": words.get(0), "item_id": words.get(1)}))


def read_lists(path: Path) -> Iterator[Batch]:
    """Events of `user item item ...` per line, separated by blanks or tabs."""
    for batch in _worded(path):
        is_bad = batch.frame["words"].list.len() < 2
        batch = batch.reject(is_bad, "missing item_id", "every line is: user item item ...", batch.frame["line"])
        words = batch.frame["words"].list
        frame = pl.DataFrame({"user_id": words.get(0), "item_id": words.slice(1)}).explode("item_id")
        yield replace(batch, frame=frame, lines=np.repeat(batch.lines, words.len().to_numpy() - 1))


def read_item_objects(path: Path) -> Iterator[Batch]:
    """Items of one JSON object per line, with `item` or `item_id`; paths of categories become a flat list."""
    if ".jsonl" not in path.suffixes:
        yield from table_items(path)
        return
    for batch in read_text(path, LINES, ("line",)):
        objects = [_object(line) for line in batch.frame["line"]]
        is_bad = pl.Series([found is None for found in objects], dtype=pl.Boolean)
        batch = batch.reject(is_bad, "not a JSON object", "every line is an object with item", batch.frame["line"])
        frame = pl.DataFrame([found for found in objects if found is not None], infer_schema_length=None)
        yield replace(batch, frame=frame if frame.width else pl.DataFrame(schema={"item_id": pl.String}))


def read_titles(path: Path) -> Iterator[Batch]:
    """Items of a CSV file with the header `item,title`."""
    return headed(path, CSV, {"item": "item_id"}, ("item", "title"))


def _worded(path: Path) -> Iterator[Batch]:
    for batch in read_text(path, LINES, ("line",)):
        yield batch.having(batch.frame["line"].str.extract_all(r"\S+").alias("words"))


def _object(line: str) -> dict[str, object] | None:
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    item = found.pop("item", found.get("item_id")) if isinstance(found, dict) else None
    if item is None:
        return None
    paths = found.get("categories") or []
    names = [name for path in paths for name in (path if isinstance(path, list) else [path])]
    return {**found, "item_id": str(item), "categories": list(dict.fromkeys(map(str, names)))}


_ORDER = "the order is the time; there are no times, so the temporal split is refused"

LAYOUTS = (
    Layout(
        name="sasrec-txt",
        summary="`user item` per line; of a directory sasrec_*.txt or the only *.txt, plain or .gz",
        columns=_ORDER,
        event_files=("sasrec_*.txt", "*.txt"),
        read_events=read_pairs,
        read_items=read_item_objects,
        is_ordered_only=True,
    ),
    Layout(
        name="s3rec",
        summary="`user item item ...` per line; items.jsonl beside it gives titles and categories",
        columns=_ORDER,
        event_files=("*.txt",),
        item_files=("items.jsonl",),
        read_events=read_lists,
        read_items=read_item_objects,
        is_ordered_only=True,
    ),
    Layout(
        name="microlens",
        summary="pairs.tsv: `user<TAB>item item ...` per line; titles.csv beside it",
        columns=_ORDER,
        event_files=("pairs.tsv",),
        item_files=("titles.csv",),
        read_events=read_lists,
        read_items=read_titles,
        is_ordered_only=True,
    ),
)
