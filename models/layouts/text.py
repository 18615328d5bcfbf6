"""Delimited text into columns of strings: in blocks, with the true line of every row, and nothing lost.

Where records and fields end is found with array arithmetic over the bytes of a block, so a row with a field too many is
known by its line before the columnar parser sees the block; the parser then gets only rows that fit. Quoting follows
RFC 4180: a line break or separator inside quotes belongs to the field, a quote inside a quoted field is doubled.
"""

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl

from models.errors import EmptyLog, MissingData, UnreadableData
from models.intake import EXAMPLES, Batch, Fault, shown

BLOCK_BYTES = 8 << 20
# A quote that is never closed would swallow the rest of the file; no honest record is this long.
QUOTED_RECORD_BYTES = 1 << 20

_NEWLINE, _RETURN, _QUOTE = b'\n\r"'
_UNIT = b"\x1f"  # stands for separators of several bytes, and splits nothing where a line is one field
_STRAY_QUOTE = ("stray quote", "a quote inside a field is doubled and the field quoted, and every quote is closed")
_COLUMN_COUNT = ("wrong column count", "every row has as many fields as the header")
_ENCODING = ("not UTF-8", "text is UTF-8")

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Dialect:
    """How a text file is cut. `separator` may have several bytes; None keeps a line whole."""

    separator: bytes | None
    quoted: bool = False
    encoding: str = "utf-8"

    @property
    def byte(self) -> bytes:
        """The one byte that separates fields once `plain` has been applied."""
        return self.separator if self.separator and len(self.separator) == 1 else _UNIT

    def plain(self, block: bytes) -> bytes:
        """A block in UTF-8 with separators of one byte; lines stay where they were."""
        if self.encoding != "utf-8":
            block = block.decode(self.encoding).encode()
        if self.separator and len(self.separator) > 1:
            block = block.replace(self.separator, _UNIT)
        return block


CSV = Dialect(b",", quoted=True)
TSV = Dialect(b"\t")
LINES = Dialect(None)


@dataclass(frozen=True)
class _Records:
    """Where the records of a block lie, each from `starts` up to `ends`, and on which line; int64, shape (n,)."""

    block: bytes
    starts: Int64Array
    ends: Int64Array
    fields: Int64Array
    lines: Int64Array


def read_text(path: Path, dialect: Dialect, columns: Sequence[str] | None = None) -> Iterator[Batch]:
    """The rows of a text file as string columns; an empty field is null, or "" where it is quoted.

    Args:
        path: plain, or gzip where the name ends in `.gz`.
        dialect: how lines are cut.
        columns: names of the fields; None takes them from the first line of the file.

    Raises:
        MissingData: there is no such file.
        UnreadableData: not gzip though named so, cut short, or a header that cannot be read.
        EmptyLog: a header was expected and the file holds nothing.
    """
    line, tail = 1, b""
    for fresh, is_last, share in _stretches(path, dialect):
        block = tail + fresh
        if columns is None:
            if not block:
                raise EmptyLog(f"{path} is empty: not even a header is there")
            columns, block = _header(path, block, dialect)
            line += 1
        records, faults, size = _cut(block, dialect, line, is_last=is_last)
        line += block.count(b"\n", 0, size)
        tail = block[size:]
        yield _batch(path, records, faults, columns, dialect, share)


def _stretches(path: Path, dialect: Dialect) -> Iterator[tuple[bytes, bool, float]]:
    """Whole lines of a file, whether they are the last (which may be none), and the share of it read by then."""
    if not path.is_file():
        raise MissingData(f"{path} does not exist or is not a file")
    size = max(path.stat().st_size, 1)
    with path.open("rb") as raw:
        stream = cast("gzip.GzipFile", gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw)
        tail, is_first = b"", True
        while True:
            try:
                # Reading as much again as is held back makes a line of any length cost linear time.
                fresh = stream.read(max(BLOCK_BYTES, len(tail)))
            except gzip.BadGzipFile as error:
                raise UnreadableData(f"{path} is named .gz and is not gzip ({error}); rename or compress it") from error
            except (EOFError, zlib.error) as error:
                raise UnreadableData(f"{path} is cut short or damaged ({error}); fetch it again") from error
            if is_first:
                fresh, is_first = fresh.removeprefix(b"\xef\xbb\xbf"), False
            if not fresh:
                break
            end = fresh.rfind(b"\n") + 1
            if end:
                yield dialect.plain(tail + fresh[:end]), False, min(raw.tell() / size, 1.0)
                tail = fresh[end:]
            else:
                tail += fresh
        yield dialect.plain(tail + b"\n") if tail else b"", True, 1.0


def _header(path: Path, block: bytes, dialect: Dialect) -> tuple[list[str], bytes]:
    """The names in the first line, and the block after it."""
    end = block.index(b"\n") + 1
    try:
        text = block[:end].decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UnreadableData(f"{path}:1: the header is not UTF-8 text ({error}); is it another format?") from error
    separator = dialect.byte.decode()
    split = next(csv.reader([text], delimiter=separator), []) if dialect.quoted else text.split(separator)
    names = [name.strip() for name in split]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UnreadableData(f"{path}:1: the header names column {', '.join(map(shown, twice))} twice; rename one")
    return names, block[end:]


def _cut(block: bytes, dialect: Dialect, line: int, *, is_last: bool) -> tuple[_Records, list[Fault], int]:
    """The records of a block of whole lines, faults found on the way, and how many bytes they take up together."""
    array = np.frombuffer(block, np.uint8)
    newlines = np.flatnonzero(array == _NEWLINE)
    separators = np.flatnonzero(array == dialect.byte[0])
    ends = newlines + 1
    if dialect.quoted and b'"' in block:
        quotes = np.flatnonzero(array == _QUOTE)
        # With quotes doubled inside quoted fields, a byte is outside of quotes when an even number came before it.
        ends = ends[np.searchsorted(quotes, newlines) % 2 == 0]
        separators = separators[np.searchsorted(quotes, separators) % 2 == 0]
        open_bytes = len(block) - (int(ends[-1]) if ends.size else 0)
        never_closed = open_bytes and (is_last or open_bytes > QUOTED_RECORD_BYTES)
        if never_closed or not _quotes_fit(array, quotes, dialect.byte[0]):
            return _mend(block, dialect, line, is_last=is_last)
    bounds = np.concatenate([np.zeros(1, np.int64), ends])
    fields = np.diff(np.searchsorted(separators, bounds)) + 1
    lines = line + np.searchsorted(newlines, bounds[:-1])
    return _Records(block, bounds[:-1], ends, fields, lines), [], int(bounds[-1])


def _quotes_fit(array: npt.NDArray[np.uint8], quotes: Int64Array, separator: int) -> bool:
    """Whether every quote opens a field, closes one, or is doubled."""
    opening, closing = quotes[0::2], quotes[1::2]
    before = array[opening - 1]
    begins = (before == separator) | (before == _NEWLINE) | (opening == 0)
    begins[1:] |= opening[1:] == closing[: opening.size - 1] + 1
    after = array[closing + 1]
    finishes = (after == separator) | (after == _NEWLINE) | (after == _QUOTE)
    returns = np.flatnonzero(after == _RETURN)
    finishes[returns] = array[closing[returns] + 2] == _NEWLINE
    return bool(begins.all() and finishes.all())


def _mend(block: bytes, dialect: Dialect, line: int, *, is_last: bool) -> tuple[_Records, list[Fault], int]:
    """Like `_cut`, record by record, for a block in which a quote stands where none may: only that line is lost."""
    plain, mark = rb'[^"\n' + re.escape(dialect.byte) + rb"]*+", re.escape(dialect.byte)
    field = rb'(?:"[^"]*+(?:""[^"]*+)*+"|' + plain + rb")"
    record = re.compile(field + rb"(?:" + mark + field + rb")*+\r?\n")
    parts, lines, stray = [], [], []
    at, now = 0, line
    while at < len(block):
        match = record.match(block, at)
        if match is None and not is_last and len(block) - at <= QUOTED_RECORD_BYTES:
            break  # the record may go on in the next block
        end = match.end() if match else block.index(b"\n", at) + 1
        if match:
            parts.append(block[at:end])
            lines.append(now)
        else:
            stray.append((now, shown(block[at:end].decode(errors="replace").rstrip("\r\n"))))
        now += block.count(b"\n", at, end)
        at = end
    records, _, _ = _cut(b"".join(parts), dialect, line, is_last=True)
    faults = [Fault(*_STRAY_QUOTE, len(stray), tuple(stray[:EXAMPLES]))] if stray else []
    return replace(records, lines=np.array(lines, np.int64)), faults, at


def _batch(
    path: Path, records: _Records, faults: list[Fault], columns: Sequence[str], dialect: Dialect, share: float
) -> Batch:
    """Records as a frame; what does not fit it becomes a fault."""
    block, starts, ends = records.block, records.starts, records.ends
    lengths = ends - starts
    keep = np.ones(starts.size, np.bool_)
    first = np.frombuffer(block, np.uint8)[starts]
    blank = (lengths == 1) | ((lengths == 2) & (first == _RETURN))
    keep &= ~blank

    def reject(mask: npt.NDArray[np.bool_], reason: str, rule: str) -> None:
        found = np.flatnonzero(mask & keep)
        if not found.size:
            return
        texts = (block[starts[i] : ends[i]].decode(errors="replace").rstrip("\r\n") for i in found[:EXAMPLES])
        examples = tuple(zip(records.lines[found[:EXAMPLES]].tolist(), map(shown, texts), strict=True))
        faults.append(Fault(reason, rule, int(found.size), examples))
        keep[found] = False

    reason, rule = _COLUMN_COUNT
    reject(records.fields != len(columns), reason, f"{rule}, which has {len(columns)}")
    if not _is_utf8(block):
        reject(np.array([not _is_utf8(block[s:e]) for s, e in zip(starts, ends, strict=True)], np.bool_), *_ENCODING)
    if keep.all():
        rows = block[: int(ends[-1])] if ends.size else b""
    else:
        size = int(ends[-1])
        rows = np.frombuffer(block, np.uint8)[:size][np.repeat(keep, lengths)].tobytes()
    frame = _parse(rows, columns, dialect)
    if frame.height != int(keep.sum()):
        raise UnreadableData(f"{path}: {int(keep.sum())} records became {frame.height} rows; please report this file")
    return Batch(path, records.lines[keep], frame, tuple(faults), blank=int(blank.sum()), share=share)


def _parse(rows: bytes, columns: Sequence[str], dialect: Dialect) -> pl.DataFrame:
    # A header of our own, since the parser would otherwise count the columns in a first row that may hold line breaks.
    names = [f"column_{i}" for i in range(len(columns))]
    header = dialect.byte.join(name.encode() for name in names) + b"\n"
    frame = pl.read_csv(
        header + rows,
        separator=dialect.byte.decode(),
        quote_char='"' if dialect.quoted else None,
        schema=dict.fromkeys(names, pl.String),
    )
    return frame.rename(dict(zip(names, columns, strict=True)))


def _is_utf8(block: bytes) -> bool:
    try:
        block.decode()
    except UnicodeDecodeError:
        return False
    return True
