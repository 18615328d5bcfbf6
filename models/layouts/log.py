"""The service's own log: what users did, and what they were shown, as it was served.

A directory of segments and parts (see `records`) is read as a whole: users who were erased are gone with everything
that came of them before, those who were merged are one, and an event or a list that was written twice counts once. A
served list becomes an event of type `IMPRESSION` for each of its items, with `recommendation_id`, `position`, and
`score` where it is a retriever's: popular items and a ranker's lists have scores in scales of their own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from models.intake import Batch
from models.layouts.layout import Layout, Reader
from models.layouts.owners import Owners
from models.layouts.records import EVENT, PART, SCHEMA, SEGMENT, SERVED, read_records
from models.layouts.tables import table_items

IMPRESSION = "impression"  # the type of an event that says what was shown, and not what was done
_POPULAR = "popular"  # the source of items that no model has scored
Keys = npt.NDArray[np.uint64]


class Met:
    """Keys that were met, in sorted runs of growing length: eight bytes a key, and each is moved a few times only."""

    def __init__(self) -> None:
        self._runs: list[Keys] = []

    def fresh(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Whether each key is met for the first time."""
        is_fresh = np.zeros(len(keys), dtype=np.bool_)
        is_fresh[np.unique(keys, return_index=True)[1]] = True
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, keys), len(run) - 1)
            is_fresh &= run[at] != keys
        new = np.sort(keys[is_fresh])
        while self._runs and len(self._runs[-1]) <= 2 * len(new):
            new = np.sort(np.concatenate([self._runs.pop(), new]))
        if len(new):
            self._runs.append(new)
        return is_fresh


def read_together(files: Sequence[Path]) -> Reader:
    """The reader of a log in these files."""
    owners, met = Owners.of(files), Met()
    parts = {file.stem for file in files if file.suffix == PART}

    def read(path: Path) -> Iterator[Batch]:
        if path.suffix == SEGMENT and path.stem in parts:
            yield _rows(Batch(path, np.zeros(0, np.int64), pl.DataFrame(schema=SCHEMA)), owners, met)
            return
        for batch in read_records(path):
            yield _rows(batch, owners, met)

    return read


def read_alone(path: Path) -> Iterator[Batch]:
    """The events of one file."""
    return read_together([path])(path)


def _rows(batch: Batch, owners: Owners, met: Met) -> Batch:
    """Events and impressions, in the columns of the contract."""
    batch = batch.drop(
        ~batch.frame["kind"].is_in([EVENT, SERVED]), "words of erasures and merges, which are carried out"
    )
    users, gone = owners.settled(batch.frame)
    batch = batch.having(users).drop(gone, "of users who were erased since")
    batch = batch.drop(batch.frame["user_id"].is_null(), "lists for nobody in particular")
    is_told = (batch.frame["kind"] == EVENT) & (batch.frame["event_type"] == IMPRESSION)
    batch = batch.drop(is_told, "impressions told by callers; what was served says more")
    batch = batch.drop(_repeats(batch.frame, met), "repeats of an event_id or a list")
    is_empty = (batch.frame["kind"] == SERVED) & (batch.frame["items"].list.len() == 0).fill_null(False)
    batch = batch.drop(is_empty, "lists without an item")
    is_event = (batch.frame["kind"] == EVENT).to_numpy()
    events, served = batch.frame.filter(pl.Series(is_event)), batch.frame.filter(pl.Series(~is_event))
    lengths = served["items"].list.len().to_numpy().astype(np.int64)
    return replace(
        batch,
        frame=pl.concat([_events(events), _impressions(served, lengths)]),
        lines=np.concatenate([batch.lines[is_event], np.repeat(batch.lines[~is_event], lengths)]),
    )


def _repeats(frame: pl.DataFrame, met: Met) -> pl.Series:
    """Whether each record was met before; an event without an id is always new."""
    is_event = frame["kind"] == EVENT
    name = pl.when(is_event).then(pl.col("event_id")).otherwise(pl.col("recommendation_id"))
    page = pl.when(is_event).then(None).otherwise(pl.col("first").fill_null(1))
    has_name = frame.select((~(is_event & pl.col("event_id").is_null())).alias("has")).to_series().to_numpy()
    keys = frame.select(pl.struct(pl.col("kind"), pl.col("user_id"), name.alias("name"), page.alias("page")).hash())
    is_repeat = np.zeros(frame.height, dtype=np.bool_)
    is_repeat[has_name] = ~met.fresh(keys.to_series().to_numpy()[has_name])
    return pl.Series(is_repeat)


def _events(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(
        "user_id",
        "item_id",
        "timestamp",
        "event_type",
        "value",
        "recommendation_id",
        "context",
        pl.lit(None, dtype=pl.Int64).alias("position"),
        pl.lit(None, dtype=pl.Float64).alias("score"),
        pl.lit(None, dtype=pl.String).alias("source"),
        pl.lit(None, dtype=pl.String).alias("variant"),
        pl.lit(None, dtype=pl.Float64).alias("propensity"),
    )


def _impressions(frame: pl.DataFrame, lengths: npt.NDArray[np.int64]) -> pl.DataFrame:
    """One row per item of each list."""
    lists = np.repeat(np.arange(frame.height), lengths)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    flat = {name: _flat(frame[name], lengths) for name in ("items", "scores", "sources", "propensities")}
    rows = frame[lists] if len(lists) else frame.clear()
    has_score = ~rows["ranked"].fill_null(False) & (flat["sources"] != _POPULAR)
    return pl.DataFrame(
        {
            "user_id": rows["user_id"],
            "item_id": flat["items"],
            "timestamp": rows["time"],
            "event_type": pl.repeat(IMPRESSION, len(lists), dtype=pl.String, eager=True),
            "value": pl.repeat(None, len(lists), dtype=pl.Float64, eager=True),
            "recommendation_id": rows["recommendation_id"],
            "context": pl.repeat(None, len(lists), dtype=pl.String, eager=True),
            "position": rows["first"].fill_null(1) + pl.Series(np.arange(len(lists)) - starts),
            "score": pl.select(pl.when(has_score).then(flat["scores"])).to_series(),
            "source": flat["sources"],
            "variant": rows["variant"],
            "propensity": flat["propensities"],
        }
    )


def _flat(column: pl.Series, lengths: npt.NDArray[np.int64]) -> pl.Series:
    """All values of lists; as many gaps as the list is long where there is no list."""
    dtype = column.dtype.inner  # type: ignore[attr-defined]
    if column.null_count() == len(column):
        return pl.repeat(None, int(lengths.sum()), dtype=dtype, eager=True)
    if not column.null_count():
        return column.explode()
    values = zip(column.to_list(), lengths.tolist(), strict=True)
    return pl.Series([part for own, length in values for part in (own or [None] * length)], dtype=dtype)


LAYOUTS = (
    Layout(
        name="log",
        summary="what the service wrote to SEQUITUR_LOG: a directory of *.jsonl and *.parquet; items.* beside them",
        columns="events as they were sent; each item of a served list is an impression with recommendation_id, "
        "position, score, source, variant; erased users are gone, event_id and lists count once",
        event_files=("*" + SEGMENT, "*" + PART),
        item_files=("items.csv", "items.parquet"),
        read_events=read_alone,
        read_together=read_together,
        read_items=table_items,
        takes_all=True,
    ),
)
