"""MovieLens-1M: the `::` files as published, and a table of interactions that lacks some ratings and times."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl

from models.intake import Batch
from models.layouts.layout import Layout
from models.layouts.tables import headed, table_items
from models.layouts.text import TSV, Dialect, read_text

_PUBLISHED = Dialect(b"::", encoding="latin-1")
_INTERACTIONS = ("user_id", "movie_id", "rating", "timestamp", "ts_kind")
_UNKNOWN_RATING = "0"


def read_ratings(path: Path) -> Iterator[Batch]:
    """Events of `ratings.dat`, or of `interactions.tsv`, whose rows without any time are left out and counted."""
    if ".dat" in path.suffixes:
        yield from read_text(path, _PUBLISHED, ("user_id", "item_id", "value", "timestamp"))
        return
    for batch in headed(path, TSV, {"movie_id": "item_id", "rating": "value"}, _INTERACTIONS):
        frame = batch.frame.with_columns(pl.col("value").replace(_UNKNOWN_RATING, None))
        has_no_time = (frame["ts_kind"] == "none") & frame["timestamp"].is_null()
        yield replace(batch, frame=frame).drop(has_no_time, "no time (ts_kind none)")


def read_movies(path: Path) -> Iterator[Batch]:
    """Items of `movies.dat`: the year leaves the title and becomes a column, genres become categories."""
    if ".dat" not in path.suffixes:
        yield from table_items(path)
        return
    year = r"\s*\((\d{4})\)$"
    for batch in read_text(path, _PUBLISHED, ("item_id", "title", "categories")):
        title = pl.col("title")
        yield replace(
            batch, frame=batch.frame.with_columns(title.str.replace(year, ""), title.str.extract(year).alias("year"))
        )


def read_viewers(path: Path) -> Iterator[Batch]:
    """Users of `users.dat`; ages and occupations are the codes of the publisher."""
    return read_text(path, _PUBLISHED, ("user_id", "gender", "age", "occupation", "zip"))


LAYOUTS = (
    Layout(
        name="ml-1m",
        summary="MovieLens-1M: ratings.dat with movies.dat and users.dat, or interactions.tsv(.gz) with them",
        columns="rating becomes value (0 in interactions.tsv: unknown), movie_id item_id, genres categories",
        event_files=("ratings.dat", "interactions.tsv"),
        item_files=("movies.dat",),
        user_files=("users.dat",),
        read_events=read_ratings,
        read_items=read_movies,
        read_users=read_viewers,
    ),
)
