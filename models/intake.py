"""What is said about rows on their way in: stretches of a file, their faults, and the report over all of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from models.errors import BadRow

OnBadRow = Literal["fail", "skip"]
EXAMPLES = 5  # examples kept of each kind of fault: enough to see a pattern, and memory stays flat
_SHOWN_CHARS = 80


def shown(value: object) -> str:
    """A value as an error message shows it: quoted, and cut where it would fill the screen."""
    text = value if isinstance(value, str) else str(value)
    return repr(text) if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]!r}... ({len(text)} characters)"


@dataclass(frozen=True)
class Fault:
    """Rows of one stretch that break the same rule: how many, and the first few as (line, value shown)."""

    reason: str
    rule: str
    count: int
    examples: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Batch:
    """A stretch of one file, cut into fields and not yet judged.

    Attributes:
        file: where the rows come from.
        lines: int64, shape (rows,). The line each row begins on, the first line of a file being 1.
        frame: the fields under the names of the contract; text files give strings only.
        faults: rows that could not be cut into fields. They are not in `frame`.
        dropped: rows that the layout itself leaves out, by reason. They are not in `frame`.
        blank: empty lines passed over.
        share: how much of the file has been read by now, 0 to 1.
        unit: what `lines` counts; a Parquet file has rows and no lines.
    """

    file: Path
    lines: npt.NDArray[np.int64]
    frame: pl.DataFrame
    faults: tuple[Fault, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    blank: int = 0
    share: float = 1.0
    unit: Literal["line", "row"] = "line"

    @property
    def rows_read(self) -> int:
        return self.frame.height + sum(fault.count for fault in self.faults) + sum(self.dropped.values())

    def having(self, column: pl.Series) -> "Batch":
        """The batch with `column` added, or in place of the one of that name."""
        return replace(self, frame=self.frame.with_columns(column))

    def drop(self, mask: pl.Series, reason: str) -> "Batch":
        """The batch without the rows of `mask`, which are counted under `reason`."""
        count = int(mask.sum())
        if not count:
            return self
        return replace(
            self,
            frame=self.frame.filter(~mask),
            lines=self.lines[~mask.to_numpy()],
            dropped={**self.dropped, reason: count},
        )

    def reject(self, mask: pl.Series, reason: str, rule: str, values: pl.Series) -> "Batch":
        """The batch without the rows of `mask`, which become a fault that shows their `values`."""
        count = int(mask.sum())
        if not count:
            return self
        keep = ~mask.to_numpy()
        examples = zip(self.lines[~keep][:EXAMPLES].tolist(), values.filter(mask).head(EXAMPLES), strict=True)
        fault = Fault(reason, rule, count, tuple((line, shown("" if v is None else v)) for line, v in examples))
        return replace(self, frame=self.frame.filter(~mask), lines=self.lines[keep], faults=(*self.faults, fault))


@dataclass
class Skipped:
    """Rows left out for one reason, and the first few of them as `file:line: value`."""

    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class LoadReport:
    """What was read, what was left out and why. Nothing is left out that is not counted here."""

    layout: str
    files: list[Path] = field(default_factory=list)
    rows_read: int = 0
    rows_kept: int = 0
    blank_lines: int = 0
    skipped: dict[str, Skipped] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    duplicates: int = 0
    out_of_order: int = 0
    core: int = 0
    core_removed: dict[str, int] = field(default_factory=dict)
    users: int = 0
    items: int = 0
    users_with_one_event: int = 0
    items_listed: int = 0
    items_without_event: int = 0
    items_unlisted: int = 0
    first_time_s: float | None = None
    last_time_s: float | None = None
    context_columns: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.layout}: {', '.join(str(file) for file in self.files)}"]
        lines.append(f"  rows read {self.rows_read:,}, events kept {self.rows_kept:,}")
        lines.append(f"  users {self.users:,} ({self.users_with_one_event:,} with one event), items {self.items:,}")
        if self.first_time_s is None or self.last_time_s is None:
            lines.append("  times: none; the log knows the order of each user's events only")
        else:
            lines.append(f"  times {utc(self.first_time_s)} to {utc(self.last_time_s)}")
        for reason, skipped in self.skipped.items():
            lines.append(f"  skipped {skipped.count:,}: {reason}")
            lines.extend(f"    {example}" for example in skipped.examples)
        lines.extend(f"  left out {count:,}: {reason}" for reason, count in self.dropped.items())
        if self.core:
            removed = ", ".join(f"{name} {count:,}" for name, count in self.core_removed.items())
            lines.append(f"  {self.core}-core removed {removed}")
        if self.out_of_order:
            lines.append(f"  the log was not sorted: {self.out_of_order:,} events stood behind a later one; now sorted")
        if self.duplicates:
            lines.append(f"  {self.duplicates:,} events repeat another (same user, item, time and type); kept")
        if self.items_listed:
            lines.append(
                f"  items listed {self.items_listed:,}, of them without event {self.items_without_event:,}; "
                f"items with events and not listed {self.items_unlisted:,}"
            )
        if self.context_columns:
            lines.append(f"  kept as context: {', '.join(self.context_columns)}")
        if self.blank_lines:
            lines.append(f"  blank lines passed over: {self.blank_lines:,}")
        lines.extend(f"  note: {note}" for note in self.notes)
        return "\n".join(lines)

    def settle(self, batch: Batch, on_bad_row: OnBadRow, rows_before: int) -> None:
        """Counts what a judged batch leaves out; `rows_before` of the same kind were read before it.

        Raises:
            BadRow: the batch has a fault and bad rows are not to be skipped; the earliest line is named.
        """
        self.blank_lines += batch.blank
        for reason, count in batch.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + count
        if batch.faults and on_bad_row != "skip":
            first = min(batch.faults, key=lambda fault: fault.examples[0][0])
            line, value = first.examples[0]
            count = sum(fault.count for fault in batch.faults)
            read = rows_before + batch.rows_read
            raise BadRow(_place(batch, line), value, first.reason, first.rule, count=count, rows_read=read)
        for fault in batch.faults:
            skipped = self.skipped.setdefault(fault.reason, Skipped())
            skipped.count += fault.count
            room = EXAMPLES - len(skipped.examples)
            skipped.examples.extend(f"{_place(batch, line)}: {value}" for line, value in fault.examples[:room])


def utc(seconds: float) -> str:
    """A time in seconds since 1970 as people read it; past the year 9999 the number itself."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:.0f} s"


def _place(batch: Batch, line: int) -> str:
    return f"{batch.file}:{line}" if batch.unit == "line" else f"{batch.file}: row {line}"
