"""The service's log, made small: segments that nobody writes any more become Parquet, and erased users are gone.

Every segment becomes a part of the same name, written beside its place and renamed; segments go last, when all parts
stand. So it may be interrupted anywhere and run again. A segment that is being written is locked by its writer and left
alone. What was said of users (erasures, merges) is carried on in a segment of its own for `CARRY_S`, for the sake of
records that are still on their way from other processes; parts hold no such words.
"""

import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from models.errors import DataError, MissingData
from models.intake import LoadReport, OnBadRow
from models.layouts.owners import Owners
from models.layouts.records import ERASED, MERGED, PART, SCHEMA, SEGMENT, read_part, read_segment
from models.progress import Progress

CARRY_S = 86_400.0  # a segment ends after an hour, and a stream is drained within the day
DRAINED = "stream-"  # names of segments that came from a stream say how far it was drained


@dataclass(frozen=True)
class Compacted:
    """What was done.

    Attributes:
        segments: that became parts.
        records: in those parts.
        rewritten: older parts that held records of users who were erased or merged since.
        removed: records of erased users, from both.
        open: segments that are being written.
        report: what was read and left out.
    """

    segments: int
    records: int
    rewritten: int
    removed: int
    open: int
    report: LoadReport

    def __str__(self) -> str:
        lines = [
            f"{self.segments:,} segments became Parquet, {self.records:,} records; {self.open:,} being written",
            f"{self.removed:,} records of erased users removed, {self.rewritten:,} older parts written again",
        ]
        lines += [f"skipped {found.count:,}: {reason}" for reason, found in self.report.skipped.items()]
        lines += [f"left out {count:,}: {reason}" for reason, count in self.report.dropped.items()]
        return "\n".join(lines)


def compact(
    directory: Path,
    progress: Progress,
    *,
    on_bad_row: OnBadRow = "fail",
    now: Callable[[], float] = time.time,
) -> Compacted:
    """Makes parts of all segments in `directory` that are not being written.

    Raises:
        MissingData: there is no such directory.
        DataError: somebody else is at it.
        BadRow: a line that is no record, unless those are to be skipped; nothing is lost, run it again.
    """
    if not directory.is_dir():
        raise MissingData(f"{directory} is no directory; give the one that SEQUITUR_LOG names")
    with _alone(directory):
        for suffix in (SEGMENT, PART):
            for partial in directory.glob(f".*{suffix}.partial"):
                partial.unlink()
        return _compacted(directory, progress, LoadReport("log"), on_bad_row, now())


def _compacted(
    directory: Path, progress: Progress, report: LoadReport, on_bad_row: OnBadRow, moment_s: float
) -> Compacted:
    segments = sorted(directory.glob("*" + SEGMENT))
    closed = [segment for segment in segments if not _is_being_written(segment)]
    owners = Owners.of(segments)
    older = [file for file in sorted(directory.glob("*" + PART)) if not file.name.startswith(("items.", "users."))]
    stale = [part for part in older if _is_touched(part, owners)]
    fresh = [segment for segment in closed if not segment.with_suffix(PART).exists()]
    records = removed = 0
    for file in progress.bar([*stale, *fresh], "compacting", unit="file"):
        frames = []
        for batch in read_part(file) if file.suffix == PART else read_segment(file):
            before = report.rows_read
            report.rows_read += batch.rows_read
            report.settle(batch, on_bad_row, before)
            frames.append(batch.frame)
        frame = pl.concat(frames).filter(~pl.col("kind").is_in([ERASED, MERGED]))
        users, gone = owners.settled(frame)
        frame = frame.with_columns(users).filter(~gone)
        removed += int(gone.sum())
        records += frame.height if file in fresh else 0
        if frame.height or file.suffix == PART or file.name.startswith(DRAINED):
            _write(frame, file.with_suffix(PART))
    _carry(directory, owners, moment_s)
    for segment in closed:
        segment.unlink()
    _sync(directory)
    return Compacted(len(fresh), records, len(stale), removed, len(segments) - len(closed), report)


def _carry(directory: Path, owners: Owners, moment_s: float) -> None:
    """Says again what may still be needed, in a segment of its own."""
    lines = [word.line for word in owners.words if word.time > moment_s - CARRY_S]
    if not lines:
        return
    name = f"{datetime.fromtimestamp(moment_s, UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    partial = directory / f".{name}{SEGMENT}.partial"
    partial.write_bytes(b"".join(lines))
    _sync(partial)
    partial.rename(directory / (name + SEGMENT))
    _sync(directory)


def _is_touched(part: Path, owners: Owners) -> bool:
    """Whether a part holds a record of somebody of whom something was said."""
    if not owners.names:
        return False
    users = pl.scan_parquet(part, glob=False).select("user_id").filter(pl.col("user_id").is_in(owners.names))
    return bool(users.select(pl.len()).collect().item())


def _write(frame: pl.DataFrame, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    frame.select(list(SCHEMA)).write_parquet(partial, compression="zstd")
    _sync(partial)
    partial.rename(path)
    _sync(path.parent)


def _is_being_written(segment: Path) -> bool:
    with segment.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    with (directory / ".compact").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{directory} is being compacted already; let that end") from error
        yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
