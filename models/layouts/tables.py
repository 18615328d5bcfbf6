"""CSV and Parquet with the column names of the contract."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from models.errors import MissingColumn, MissingData, UnreadableData
from models.intake import Batch
from models.layouts.layout import Layout
from models.layouts.text import CSV, Dialect, read_text

_PARQUET_MAGIC = b"PAR1"
_BATCH_ROWS = 500_000
EVENT_COLUMNS = ("user_id", "item_id", "timestamp")


def csv_events(path: Path) -> Iterator[Batch]:
    """Events of a CSV file."""
    _refuse_parquet(path)
    return named(read_text(path, CSV), EVENT_COLUMNS)


def parquet_events(path: Path) -> Iterator[Batch]:
    """Events of a Parquet file."""
    return named(read_parquet(path), EVENT_COLUMNS)


def table_items(path: Path) -> Iterator[Batch]:
    """Items of a CSV or Parquet file; the name decides."""
    return named(_table(path), ("item_id",))


def table_users(path: Path) -> Iterator[Batch]:
    """Users of a CSV or Parquet file; the name decides."""
    return named(_table(path), ("user_id",))


def _table(path: Path) -> Iterator[Batch]:
    return read_parquet(path) if path.suffix == ".parquet" else read_text(path, CSV)


def headed(path: Path, dialect: Dialect, names: Mapping[str, str], required: Sequence[str]) -> Iterator[Batch]:
    """A text file with a header that has `required`, its columns renamed to those of the contract."""
    for batch in named(read_text(path, dialect), required):
        yield replace(batch, frame=batch.frame.rename(names, strict=False))


def named(batches: Iterator[Batch], required: Sequence[str]) -> Iterator[Batch]:
    """The same batches, once the required columns are seen to be there."""
    for batch in batches:
        missing = [name for name in required if name not in batch.frame.columns]
        if missing:
            raise MissingColumn(batch.file, missing, batch.frame.columns)
        yield batch


def read_parquet(path: Path) -> Iterator[Batch]:
    """The rows of a Parquet file in the types it has."""
    if not path.is_file():
        raise MissingData(f"{path} does not exist or is not a file")
    try:
        rows = pl.scan_parquet(path, glob=False)
        total = rows.select(pl.len()).collect().item()
        if not total:
            yield Batch(path, np.zeros(0, np.int64), rows.collect(), unit="row")
        done = 0
        for frame in rows.collect_batches(chunk_size=_BATCH_ROWS, maintain_order=True):
            lines = np.arange(done + 1, done + frame.height + 1)
            done += frame.height
            yield Batch(path, lines, frame, share=done / max(total, 1), unit="row")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UnreadableData(f"{path} is not a Parquet file, or a damaged one: {error}") from error


def _refuse_parquet(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_PARQUET_MAGIC)) == _PARQUET_MAGIC:
                raise UnreadableData(f"{path} is Parquet; choose the layout parquet")


_COLUMNS = (
    "user_id, item_id, timestamp; optional event_type, value, session_id; all others become context. "
    "Items: item_id; optional title, categories, price, available, image, any other"
)

LAYOUTS = (
    Layout(
        name="csv",
        summary="CSV with a header, plain or .gz; of a directory every *.csv but items.* and users.*",
        columns=_COLUMNS,
        event_files=("*.csv",),
        item_files=("items.csv", "items.parquet"),
        user_files=("users.csv", "users.parquet"),
        read_events=csv_events,
        read_items=table_items,
        read_users=table_users,
        takes_all=True,
    ),
    Layout(
        name="parquet",
        summary="Parquet; of a directory every *.parquet but items.* and users.*",
        columns=_COLUMNS,
        event_files=("*.parquet",),
        item_files=("items.parquet", "items.csv"),
        user_files=("users.parquet", "users.csv"),
        read_events=parquet_events,
        read_items=table_items,
        read_users=table_users,
        takes_all=True,
    ),
)
