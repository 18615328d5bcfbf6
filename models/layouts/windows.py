"""Windows cut from a log by its publisher: a history and the item that followed, line by line."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from models.intake import Batch
from models.layouts.layout import Layout
from models.layouts.sequences import read_item_objects
from models.layouts.tables import named
from models.layouts.text import TSV, read_text

OWNER = "owner"  # context column: the user that several windows may belong to


def read_windows(path: Path) -> Iterator[Batch]:
    """Events of a tab-separated file with the header `user history target`; every line is a user of its own.

    Windows of one user overlap, so putting them together again would repeat events; who they belong to is kept as
    context.
    """
    for batch in named(read_text(path, TSV), ("user", "history", "target")):
        items = (batch.frame["history"].fill_null("") + " " + batch.frame["target"].fill_null("")).str.extract_all(
            r"\S+"
        )
        is_bad = batch.frame["target"].is_null() | batch.frame["user"].is_null()
        kept = ~is_bad.to_numpy()
        batch = batch.reject(
            is_bad, "no user or no target", "every line is: user, history, target", batch.frame["user"]
        )
        items = items.filter(pl.Series(kept))
        lines = pl.Series(batch.lines).cast(pl.String)
        frame = pl.DataFrame(
            {"user_id": batch.frame["user"] + "/" + lines, "item_id": items, OWNER: batch.frame["user"]}
        )
        yield replace(batch, frame=frame.explode("item_id"), lines=np.repeat(batch.lines, items.list.len().to_numpy()))


LAYOUTS = (
    Layout(
        name="windows",
        summary="`user<TAB>item item ...<TAB>item` with a header user, history, target; items.jsonl beside it",
        columns="every line is a user of its own (user/line), and the user of the line is the context column owner; "
        "the order is the time; there are no times, so the temporal split is refused",
        event_files=("test.tsv",),
        item_files=("items.jsonl",),
        read_events=read_windows,
        read_items=read_item_objects,
        is_ordered_only=True,
    ),
)
