"""An event log as arrays: every user's history in catalog rows, and the catalog itself.

The log speaks ids and strings; training and evaluation speak rows. This is the only place where the one becomes the
other. All users lie in one ragged array, so a million events are a few NumPy arrays and a user's history is a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from models.events import EventLog
from retrieval.catalog import Catalog
from retrieval.errors import InvalidInput
from retrieval.sequences import PAD_ROW, FloatArray, History, IntArray


@dataclass(frozen=True, eq=False)
class Histories:
    """Many users' events, oldest first: user u holds the events `offsets[u]` to `offsets[u + 1]`.

    Attributes:
        offsets: int64, shape (U + 1,).
        rows: int64, shape (E,). Catalog rows, never PAD_ROW.
        event_types: int64, shape (E,). Code c is the vocabulary's word c - 1; 0 is any other type.
        values: float32, shape (E,); NaN where the event had none.
        timestamps: float64, shape (E,). Seconds since 1970, or 0, 1, 2, ... where the log knows only the order.
        user_ids: U ids.
        ordered_only: whether the timestamps are such ranks and not times.
        dropped: events left out because the catalog does not know their item.
    """

    offsets: IntArray
    rows: IntArray
    event_types: IntArray
    values: FloatArray
    timestamps: npt.NDArray[np.float64]
    user_ids: Sequence[str]
    ordered_only: bool = False
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, user: int) -> History:
        return self.span(int(self.offsets[user]), int(self.offsets[user + 1]))

    def span(self, start: int, end: int) -> History:
        """The events from `start` to before `end` as one history: views, no copies."""
        cut = slice(start, end)
        return History(self.rows[cut], self.event_types[cut], self.values[cut], self.timestamps[cut])

    def lengths(self) -> IntArray:
        """int64, shape (U,): events per user."""
        return np.diff(self.offsets)

    def users(self) -> IntArray:
        """int64, shape (E,): the user of every event."""
        return np.repeat(np.arange(len(self)), self.lengths())

    def counts(self, n_items: int) -> npt.NDArray[np.float64]:
        """float64, shape (N + 1,): events per catalog row."""
        return np.bincount(self.rows, minlength=n_items + 1).astype(np.float64)

    def keep(self, events: npt.NDArray[np.bool_]) -> "Histories":
        """The histories made of the marked events alone; every user stays, some perhaps empty.

        Args:
            events: bool, shape (E,).
        """
        offsets = np.concatenate([[0], np.cumsum(events)])[self.offsets]
        return replace(
            self,
            offsets=offsets.astype(np.int64),
            rows=self.rows[events],
            event_types=self.event_types[events],
            values=self.values[events],
            timestamps=self.timestamps[events],
        )

    @classmethod
    def from_rows(cls, histories: Sequence[Sequence[int]]) -> "Histories":
        """Histories that have only items: type 0, no values, times 0, 1, 2, ... and users `0`, `1`, ..."""
        offsets = np.concatenate([[0], np.cumsum([len(h) for h in histories])]).astype(np.int64)
        rows = np.array([row for history in histories for row in history], dtype=np.int64)
        times = np.array([t for history in histories for t in range(len(history))], dtype=np.float64)
        users = tuple(str(u) for u in range(len(histories)))
        nothing = np.full(len(rows), np.nan, np.float32)
        return cls(offsets, rows, np.zeros(len(rows), np.int64), nothing, times, users, ordered_only=True)

    @classmethod
    def from_log(cls, log: EventLog, catalog: Catalog, event_types: Sequence[str]) -> "Histories":
        """The log in rows of `catalog`, users in the order in which the log first names them.

        Events of items that the catalog does not hold are left out and counted in `dropped`: a bundle may be evaluated
        on a newer log than it was trained on.

        Raises:
            InvalidInput: the log has no event, or none of an item in the catalog.
        """
        events = log.events
        if events.is_empty():
            raise InvalidInput("the event log is empty; at least one event is needed")
        rows = _codes(events["item_id"], catalog.ids[1:])
        known = rows != PAD_ROW
        if not known.any():
            raise InvalidInput("no event of the log is of an item in the catalog; is it the log of another shop?")
        # Grouping by first appearance costs nothing where the log is grouped already, and is right where it is not.
        ids = events["user_id"].unique(maintain_order=True)
        users = _codes(events["user_id"], ids.to_list()) - 1
        order = np.arange(len(users)) if (np.diff(users) >= 0).all() else np.argsort(users, kind="stable")
        every = cls(
            offsets=np.concatenate([[0], np.cumsum(np.bincount(users, minlength=len(ids)))]).astype(np.int64),
            rows=rows[order],
            event_types=_codes(events["event_type"], event_types)[order],
            values=events["value"].cast(pl.Float32).fill_null(float("nan")).to_numpy()[order],
            timestamps=events["timestamp"].cast(pl.Float64).to_numpy()[order],
            user_ids=tuple(ids.to_list()),
            ordered_only=log.ordered_only,
            dropped=int((~known).sum()),
        )
        return every if known.all() else every.keep(known[order])


def event_type_vocabulary(log: EventLog) -> tuple[str, ...]:
    """The event types of a log, the most frequent first, names breaking ties."""
    words = log.events["event_type"].cast(pl.String)  # categories sort in the order in which they were first met
    counted = words.value_counts().sort(["count", "event_type"], descending=[True, False])
    return tuple(counted["event_type"].to_list())


def catalog_from_log(log: EventLog) -> Catalog:
    """The catalog of a log: every item that has an event or stands in the item table.

    Rows are in the order of the ids, shorter ids first, so that numeric ids stand in numeric order. Row order breaks
    ties of scores; an order by popularity would let the counts of held-out events decide them. Popularity counts all
    events of the log; `with_popularity` counts the training part alone.

    Raises:
        InvalidInput: there is no item.
    """
    counted = log.events["item_id"].value_counts()
    counts = dict(zip(counted["item_id"].to_list(), counted["count"].to_list(), strict=True))
    described = log.items
    ids = sorted({*counts, *([] if described is None else described["item_id"].to_list())}, key=lambda i: (len(i), i))
    popularity = [counts.get(item_id, 0) for item_id in ids]
    if described is None:
        return Catalog.build(ids, popularity=popularity)
    table = pl.DataFrame({"item_id": ids}).join(described, on="item_id", how="left", maintain_order="left")
    names = [name for name in table.columns if name not in ("item_id", "available")]
    attributes = {name: table[name].to_list() for name in names if _says_anything(table[name])}
    shown = table["available"].fill_null(True).to_numpy() if "available" in table.columns else None
    return Catalog.build(ids, popularity=popularity, available=shown, attributes=attributes)


def with_popularity(catalog: Catalog, histories: Histories) -> Catalog:
    """The same catalog with the popularity that these histories give it."""
    return replace(catalog, popularity=histories.counts(len(catalog)))


def _says_anything(column: pl.Series) -> bool:
    """Whether any item has a value here: an item table has its usual columns also where a log describes none."""
    given = column.drop_nulls()
    return bool((given.list.len() > 0).any()) if isinstance(given.dtype, pl.List) else not given.is_empty()


def _codes(column: pl.Series, vocabulary: Sequence[str]) -> IntArray:
    """int64: the position of each value in the vocabulary, counted from 1; 0 where it is not in it."""
    codes = column.cast(pl.String).replace_strict(
        pl.Series(vocabulary, dtype=pl.String), pl.int_range(1, len(vocabulary) + 1, eager=True), default=0
    )
    return codes.cast(pl.Int64).to_numpy()
