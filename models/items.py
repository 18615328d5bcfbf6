"""The items of a log, and its users: one row per id, in types that do not depend on the layout."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import polars as pl

from models import columns
from models.intake import Batch, LoadReport, OnBadRow

ITEM_COLUMNS = ("item_id", "title", "categories", "price", "available", "image")


def read_items(batches: Iterator[Batch], report: LoadReport, on_bad_row: OnBadRow) -> pl.DataFrame:
    """The items in the order of the file, with every column of `ITEM_COLUMNS` first and any other behind.

    Raises:
        BadRow: an item without id, an id twice, a price that is no number, and bad rows are not to be skipped.
    """
    frame = _one_per_id((_typed_item(batch) for batch in batches), "item_id", report, on_bad_row)
    return frame.select(*ITEM_COLUMNS, pl.exclude(*ITEM_COLUMNS))


def read_users(batches: Iterator[Batch], report: LoadReport, on_bad_row: OnBadRow) -> pl.DataFrame:
    """The users in the order of the file, `user_id` first.

    Raises:
        BadRow: a user without id or an id twice, and bad rows are not to be skipped.
    """
    frame = _one_per_id((columns.ids(batch, "user_id") for batch in batches), "user_id", report, on_bad_row)
    return frame.select("user_id", pl.exclude("user_id"))


def _typed_item(batch: Batch) -> Batch:
    batch = columns.ids(batch, "item_id")
    frame, n = batch.frame, batch.frame.height
    absent = [pl.repeat(None, n, dtype=pl.String).alias(name) for name in ITEM_COLUMNS if name not in frame.columns]
    batch = replace(batch, frame=frame.with_columns(absent))
    batch = columns.flags(columns.numbers(batch, "price"), "available")
    frame = batch.frame
    typed = [columns.texts(frame["title"]), columns.tags(frame["categories"]), columns.texts(frame["image"])]
    return replace(batch, frame=frame.with_columns(typed))


def _one_per_id(batches: Iterator[Batch], name: str, report: LoadReport, on_bad_row: OnBadRow) -> pl.DataFrame:
    """All rows of the first line of each id. Tables of items fit in memory; the log is what may not."""
    frames: list[pl.DataFrame] = []
    lines: dict[str, int] = {}
    rows_read = 0
    for batch in batches:
        is_new = np.ones(batch.frame.height, np.bool_)
        for at, (line, key) in enumerate(zip(batch.lines.tolist(), batch.frame[name], strict=True)):
            is_new[at] = lines.setdefault(key, line) == line
        again = [f"{key} (first in {batch.unit} {lines[key]})" for key in batch.frame[name].filter(pl.Series(~is_new))]
        values = pl.Series(np.full(is_new.size, None, object), dtype=pl.String).scatter(np.flatnonzero(~is_new), again)
        rows_before, rows_read = rows_read, rows_read + batch.rows_read
        batch = batch.reject(pl.Series(~is_new), f"{name} given twice", f"every {name} has one row", values)
        report.settle(batch, on_bad_row, rows_before)
        frames.append(batch.frame)
    frame = pl.concat(frames, how="diagonal_relaxed")
    known = {name, *ITEM_COLUMNS}
    return frame.with_columns(columns.natural(column) for column in frame if column.name not in known)
