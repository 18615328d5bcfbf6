"""Atomic files: tab-separated, with a header whose fields state their types (`user_id:token`, `class:token_seq`)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from models.errors import MissingColumn, UnreadableData
from models.intake import Batch
from models.layouts.layout import Layout
from models.layouts.tables import EVENT_COLUMNS, table_items
from models.layouts.text import TSV, read_text

_TYPES = ("token", "token_seq", "float", "float_seq")
_CATEGORY_NAMES = ("class", "genre", "genres", "category")


def read_interactions(path: Path) -> Iterator[Batch]:
    """Events of a `.inter` file."""
    return _atomic(path, EVENT_COLUMNS, {"rating": "value"})


def read_catalogue(path: Path) -> Iterator[Batch]:
    """Items of an `.item` file; a title stays one text, sequences become lists."""
    if ".item" not in path.suffixes:
        return table_items(path)
    return _atomic(path, ("item_id",), {"movie_title": "title", **dict.fromkeys(_CATEGORY_NAMES, "categories")})


def read_people(path: Path) -> Iterator[Batch]:
    """Users of a `.user` file."""
    return _atomic(path, ("user_id",), {})


def _atomic(path: Path, required: Sequence[str], names: dict[str, str]) -> Iterator[Batch]:
    for batch in read_text(path, TSV):
        kinds: dict[str, str] = {}
        renamed: dict[str, str] = {}
        for head in batch.frame.columns:
            field, _, kind = head.partition(":")
            if kind not in _TYPES:
                raise UnreadableData(f"{path}:1: {head!r} is no typed field; name:type with type {' | '.join(_TYPES)}")
            name = names.get(field, field)
            # The first of several names for one thing gets the name of the contract; the others keep their own.
            renamed[head] = name if name not in kinds else field
            kinds[renamed[head]] = kind
        missing = [name for name in required if name not in kinds]
        if missing:
            raise MissingColumn(path, missing, list(kinds))
        frame = batch.frame.rename(renamed)
        lists = [name for name, kind in kinds.items() if kind.endswith("_seq") and name != "title"]
        split = [pl.col(name).str.extract_all(r"\S+") for name in lists]
        floats = [pl.col(name).cast(pl.List(pl.Float64), strict=False) for name in lists if kinds[name] == "float_seq"]
        yield replace(batch, frame=frame.with_columns(split).with_columns(floats))


_COLUMNS = "user_id, item_id, timestamp; rating becomes value; token_seq and float_seq become lists"

LAYOUTS = tuple(
    Layout(
        name=name,
        summary=f"{what}: *.inter with *.item and *.user, plain or .gz",
        columns=_COLUMNS,
        event_files=("*.inter",),
        item_files=("*.item",),
        user_files=("*.user",),
        read_events=read_interactions,
        read_items=read_catalogue,
        read_users=read_people,
    )
    for name, what in (("recbole", "RecBole's atomic files"), ("ml-100k", "MovieLens-100K in RecBole's atomic files"))
)
