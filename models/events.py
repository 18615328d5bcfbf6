"""The event log: who did what when, read from any layout, judged row by row and sorted.

    log = read_log("csv", Path("events.csv"))
    print(log.report)

Rows pass in stretches: cut by the layout, judged and coded here, then put together once. Ids are held as codes until
the end, so ten million events need far less memory than their text.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from models import columns
from models.errors import EmptyLog, MissingData, OrderOnly, UnknownLayout
from models.intake import Batch, LoadReport, OnBadRow
from models.items import read_items, read_users
from models.layouts import Sources, layouts

DEFAULT_EVENT_TYPE = "view"
EVENT_COLUMNS = ("user_id", "item_id", "timestamp", "event_type", "value", "session_id")
_USER = "\nuser"  # each row's place of its user; no column of a header has such a name
# A second later than this lies past the year 9999: almost surely milliseconds.
_LAST_SECOND = 253_402_300_799.0

Progress = Callable[[int, float], None]
CodeArray = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class EventLog:
    """Events of one log in the order models learn from, and what is known of its items and users.

    Attributes:
        events: `user_id`, `item_id` (String), `timestamp` (Float64, seconds since 1970), `event_type` (Categorical),
            `value` (Float64 or null), `session_id` (String, where the source has it), then context columns. Users stand
            in the order of their first row in the source, each user's events by time, equal times in source order.
        items: one row per item, `item_id`, `title`, `categories`, `price`, `available`, `image` first: the listed ones
            in file order, then those known from events only. None without a list of items.
        users: one row per user of the source's list of users; None without one.
        report: what was read and what was left out.
        digest: SHA-256 of events and items; the same for the same content in another layout.
        ordered_only: the source knew an order and no times. Timestamps are then 0, 1, 2, ... per user.
    """

    events: pl.DataFrame
    items: pl.DataFrame | None
    users: pl.DataFrame | None
    report: LoadReport
    digest: str
    ordered_only: bool

    def require_times(self, purpose: str) -> None:
        """Passes where events have times.

        Raises:
            OrderOnly: the log knows an order only, so `purpose` would compare made-up times between users.
        """
        if self.ordered_only:
            raise OrderOnly(
                f"{purpose} needs times, and layout {self.report.layout} knows only the order of each user's events; "
                "split leave-one-out, or use a layout with times"
            )


def read_log(
    layout: str,
    events: Path | Sequence[Path],
    items: Path | None = None,
    *,
    on_bad_row: OnBadRow = "fail",
    core: int = 0,
    on_progress: Progress | None = None,
) -> EventLog:
    """The event log in files of a named layout.

    Args:
        layout: a name of `layouts()`.
        events: a file, several files, or a directory in which the layout finds its files.
        items: the file of items; None takes the one the layout finds, if any.
        on_bad_row: whether the first bad row is an error or bad rows are left out and counted.
        core: k keeps users and items with at least k events each, repeated until stable; 0 keeps all.
        on_progress: called with rows read and the share of the event files read, 0 to 1.

    Raises:
        DataError: see `models/errors.py`; the message names file, line, value, rule and remedy.
    """
    form = layouts().get(layout)
    if form is None:
        raise UnknownLayout(layout, layouts())
    found = [form.find(path) for path in ([events] if isinstance(events, Path) else events)]
    sources = Sources(
        tuple(file for source in found for file in source.events),
        items or next((source.items for source in found if source.items), None),
        next((source.users for source in found if source.users), None),
    )
    if sources.items and not sources.items.is_file():
        raise MissingData(f"{sources.items}, given for the items, does not exist or is not a file")
    report = LoadReport(layout, files=[*sources.events])
    read = form.read_together(sources.events) if form.read_together else form.read_events
    stretches = _read_events(sources.events, read, report, on_bad_row, on_progress, form.is_ordered_only)
    frame = _sorted(stretches, report, is_ordered_only=form.is_ordered_only)
    if core:
        frame = _core(frame, core, report)
    frame = _finished(frame)
    listed = listed_users = None
    if sources.items:
        report.files.append(sources.items)
        listed = read_items(form.read_items(sources.items), report, on_bad_row)
        listed = _with_unlisted(listed, frame, core, report)
    if sources.users and form.read_users:
        report.files.append(sources.users)
        listed_users = read_users(form.read_users(sources.users), report, on_bad_row)
    _describe(frame, report, is_ordered_only=form.is_ordered_only)
    return EventLog(frame, listed, listed_users, report, content_digest(frame, listed), form.is_ordered_only)


def content_digest(events: pl.DataFrame, items: pl.DataFrame | None) -> str:
    """SHA-256 over the columns in the order of their names, whatever the number types and layout they came in."""
    digest = hashlib.sha256()
    for frame in (events, items):
        if frame is None:
            continue
        digest.update(f"{frame.height} rows\n".encode())
        for name in sorted(frame.columns):
            column = frame[name]
            if column.null_count() == frame.height:
                continue  # a column without any value says nothing; one source writes it, another does not
            digest.update(f"{name}\n".encode())
            _digest_column(digest, column)
    return digest.hexdigest()


def _read_events(
    files: Sequence[Path],
    read: Callable[[Path], Iterator[Batch]],
    report: LoadReport,
    on_bad_row: OnBadRow,
    on_progress: Progress | None,
    is_ordered_only: bool,
) -> pl.DataFrame:
    """All events as coded columns, in source order."""
    # Categories of this load alone: they are given back with it, and every stretch shares their codes.
    coded = {name: pl.Categorical(pl.Categories.random()) for name in ("user_id", "item_id", "session_id")}
    sizes = [file.stat().st_size for file in files]
    frames = []
    for nth, file in enumerate(files):
        for batch in read(file):
            rows_before = report.rows_read
            report.rows_read += batch.rows_read
            judged = _judged(batch, is_ordered_only)
            report.settle(judged, on_bad_row, rows_before)
            frames.append(judged.frame.cast({name: kind for name, kind in coded.items() if name in judged.frame}))
            if on_progress:
                on_progress(report.rows_read, (sum(sizes[:nth]) + batch.share * sizes[nth]) / max(sum(sizes), 1))
    frame = pl.concat(frames, how="diagonal_relaxed")
    if not frame.height:
        left_out = {**{reason: found.count for reason, found in report.skipped.items()}, **report.dropped}
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
        rows = f"every row was left out ({reasons})" if left_out else "a header and no event"
        raise EmptyLog(f"{', '.join(map(str, files))}: {rows}; there is nothing to learn from")
    return frame


def _judged(batch: Batch, is_ordered_only: bool) -> Batch:
    """A stretch in the types of the contract, without the rows that break a rule."""
    batch = columns.ids(columns.ids(batch, "user_id"), "item_id")
    if not is_ordered_only:
        batch = columns.times(batch, "timestamp")
    absent = [
        pl.lit(None, dtype=dtype).alias(name)
        for name, dtype in (("value", pl.Float64), ("event_type", pl.String))
        if name not in batch.frame.columns
    ]
    batch = columns.numbers(replace(batch, frame=batch.frame.with_columns(absent)), "value")
    kinds = columns.texts(batch.frame["event_type"]).fill_null(DEFAULT_EVENT_TYPE)
    batch = batch.having(kinds.cast(pl.Categorical))
    if "session_id" in batch.frame.columns:
        batch = batch.having(columns.texts(batch.frame["session_id"]))
    return batch


def _sorted(frame: pl.DataFrame, report: LoadReport, *, is_ordered_only: bool) -> pl.DataFrame:
    """Users in the order of their first row, each user's events by time; both stable. Adds the users' numbers."""
    frame = frame.with_columns(pl.Series(_USER, _first_seen(frame["user_id"])[1]))
    user = frame[_USER].to_numpy()
    if (user[1:] < user[:-1]).any():
        frame = frame.sort(_USER, maintain_order=True)
        user = frame[_USER].to_numpy()
    is_same = user[1:] == user[:-1]
    if is_ordered_only:
        starts = np.concatenate([[0], np.flatnonzero(~is_same) + 1])
        lengths = np.diff(np.append(starts, user.size))
        position = np.arange(user.size) - np.repeat(starts, lengths)
        return frame.with_columns(pl.Series("timestamp", position.astype(np.float64)))
    time = frame["timestamp"].to_numpy()
    report.out_of_order = int((is_same & (time[1:] < time[:-1])).sum())
    return frame.sort(_USER, "timestamp", maintain_order=True) if report.out_of_order else frame


def _core(frame: pl.DataFrame, core: int, report: LoadReport) -> pl.DataFrame:
    """The events of users and items that have `core` events or more among those kept."""
    users, items = frame[_USER].to_numpy(), _first_seen(frame["item_id"])[1]
    kept, rounds = np.arange(users.size), 0
    while True:
        enough = (np.bincount(users[kept])[users[kept]] >= core) & (np.bincount(items[kept])[items[kept]] >= core)
        if enough.all():
            break
        kept, rounds = kept[enough], rounds + 1
        if not kept.size:
            raise EmptyLog(f"no user and item have {core} events each in a {core}-core; lower the core or leave it out")
    report.core = core
    report.core_removed = {
        "events": users.size - kept.size,
        "users": np.unique(users).size - np.unique(users[kept]).size,
        "items": np.unique(items).size - np.unique(items[kept]).size,
        "rounds": rounds,
    }
    return frame[kept] if rounds else frame


def _finished(frame: pl.DataFrame) -> pl.DataFrame:
    """Ids as strings again, context in natural types, columns in order. Equal strings share their bytes."""
    for name in ("user_id", "item_id", "session_id"):
        if name in frame.columns:
            frame = frame.with_columns(frame[name].cast(pl.String))
    frame = frame.drop(_USER)
    frame = frame.with_columns(columns.natural(column) for column in frame if column.name not in EVENT_COLUMNS)
    return frame.select(*(name for name in EVENT_COLUMNS if name in frame.columns), pl.exclude(*EVENT_COLUMNS))


def _with_unlisted(listed: pl.DataFrame, frame: pl.DataFrame, core: int, report: LoadReport) -> pl.DataFrame:
    """Listed items, then bare rows for items that only events know; with a core, what it removed is gone here too."""
    seen = frame["item_id"].unique(maintain_order=True)
    is_seen = listed["item_id"].is_in(seen.implode())
    bare = seen.filter(~seen.is_in(listed["item_id"].implode()))
    report.items_listed, report.items_unlisted = listed.height, bare.len()
    report.items_without_event = int((~is_seen).sum())
    if core:
        listed = listed.filter(is_seen)
    missing = pl.DataFrame({"item_id": bare}).with_columns(
        pl.lit(True).alias("available"), pl.lit([], dtype=pl.List(pl.String)).alias("categories")
    )
    return pl.concat([listed, missing], how="diagonal_relaxed")


def _describe(frame: pl.DataFrame, report: LoadReport, *, is_ordered_only: bool) -> None:
    """Fills the report with what the finished log holds."""
    report.rows_kept = frame.height
    per_user = frame["user_id"].unique_counts()
    report.users, report.users_with_one_event = per_user.len(), int((per_user == 1).sum())
    report.items = frame["item_id"].n_unique()
    report.context_columns = [name for name in frame.columns if name not in EVENT_COLUMNS]
    if is_ordered_only:
        return
    times = frame["timestamp"].to_numpy()
    report.first_time_s, report.last_time_s = float(times.min()), float(times.max())
    if report.last_time_s > _LAST_SECOND:
        report.notes.append(f"times up to {report.last_time_s:.0f} look like milliseconds; timestamps are seconds")
    # Repeats have equal users and times, and sorting has put those side by side: few rows are left to compare.
    same = (frame["user_id"] == frame["user_id"].shift()) & (frame["timestamp"] == frame["timestamp"].shift())
    same = same.fill_null(False)
    beside = frame.select("user_id", "item_id", "timestamp", "event_type").filter(
        same | same.shift(-1, fill_value=False)
    )
    report.duplicates = beside.height - beside.n_unique()


def _first_seen(column: pl.Series) -> tuple[pl.Series, CodeArray]:
    """The distinct values of a categorical column in the order they first stand, and each row's place among them."""
    distinct = column.unique(maintain_order=True)
    codes = distinct.to_physical().to_numpy()
    place = np.zeros(int(codes.max()) + 1, np.uint32)
    place[codes] = np.arange(codes.size, dtype=np.uint32)
    return distinct.cast(pl.String), place[column.to_physical().to_numpy()]


def _digest_column(digest: "hashlib._Hash", column: pl.Series) -> None:
    """Numbers as little-endian float64, everything else as distinct texts and their places; gaps as a bit each."""
    digest.update(np.packbits(column.is_null().to_numpy()).tobytes())
    column = column.drop_nulls()
    if column.dtype.is_numeric() or column.dtype == pl.Boolean:
        digest.update(column.cast(pl.Float64).to_numpy().astype("<f8", copy=False).tobytes())
        return
    if isinstance(column.dtype, pl.List):
        column = column.cast(pl.List(pl.String)).list.join("\x1f", ignore_nulls=True)
    elif column.dtype.is_nested():
        column = column.to_frame().select(pl.struct(pl.all()).struct.json_encode()).to_series()
    distinct, places = _first_seen(column.cast(pl.String).cast(pl.Categorical(pl.Categories.random())))
    digest.update(distinct.str.len_bytes().to_numpy().astype("<u4").tobytes())
    digest.update(distinct.str.join().item().encode())
    digest.update(places.astype("<u4", copy=False).tobytes())
