"""Click sessions without users: every session is a user of its own."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl

from models.intake import Batch
from models.layouts.layout import Layout
from models.layouts.tables import headed, table_items
from models.layouts.text import TSV

_NAMES = {"SessionId": "session_id", "ItemId": "item_id", "Time": "timestamp"}


def read_clicks(path: Path) -> Iterator[Batch]:
    """Events of a tab-separated file with the header `SessionId ItemId Time`."""
    for batch in headed(path, TSV, _NAMES, tuple(_NAMES)):
        yield replace(batch, frame=batch.frame.with_columns(pl.col("session_id").alias("user_id")))


LAYOUTS = (
    Layout(
        name="serenade",
        summary="SessionId, ItemId, Time, tab-separated; of a directory train.tsv, plain or .gz",
        columns="SessionId becomes user_id and session_id, ItemId item_id, Time timestamp",
        event_files=("train.tsv",),
        read_events=read_clicks,
        read_items=table_items,
    ),
)
