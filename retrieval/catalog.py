"""The catalog: item ids, their rows, what is known about each, and what is available.

Callers speak item ids, arrays speak rows. A row is an item's dense integer in one catalog; rows die with their bundle,
ids do not. Row 0 is `PAD_ROW` and never an item, so every per-item array has N + 1 entries.

Rows of items that come while a bundle is being served are appended; see `retrieval.editions`.

Attributes are columns. There are three kinds, and a filter needs no more: numbers, words (one per item, coded against
a vocabulary) and tags (several per item). All of them are stored as plain arrays; nothing is ever unpickled.
"""

import itertools
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.errors import BundleTorn, InvalidInput, UnknownItem
from retrieval.sequences import PAD_ROW, BoolArray, IntArray

MAX_ID_CHARS = 256
MOST_WHOLE = 2.0**53  # beyond it a float64 is no count of anything, and its digits fit into no 64 bits in the end


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """A numeric attribute: float64, shape (N + 1,); NaN where an item has none.

    A column of whole numbers answers with whole numbers: a year is 1968 and not 1968.0.
    """

    values: npt.NDArray[np.float64]
    is_whole: bool = field(init=False)

    def __post_init__(self) -> None:
        known = self.values[np.isfinite(self.values)]
        object.__setattr__(self, "is_whole", bool((known == np.floor(known)).all()))

    def get(self, row: int) -> float | int | None:
        value = float(self.values[row])
        if math.isnan(value):
            return None
        return int(value) if self.is_whole and abs(value) <= MOST_WHOLE else value


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """One word per item: int32 codes of shape (N + 1,) into `vocabulary`; -1 where an item has none."""

    codes: npt.NDArray[np.int32]
    vocabulary: tuple[str, ...]

    def get(self, row: int) -> str | None:
        code = int(self.codes[row])
        return None if code < 0 else self.vocabulary[code]


@dataclass(frozen=True, slots=True, eq=False)
class Tags:
    """Several words per item: row r holds `codes[offsets[r]:offsets[r + 1]]`; offsets int64 of shape (N + 2,)."""

    offsets: IntArray
    codes: npt.NDArray[np.int32]
    vocabulary: tuple[str, ...]

    def get(self, row: int) -> list[str]:
        return [self.vocabulary[code] for code in self.codes[self.offsets[row] : self.offsets[row + 1]]]


Column = Numbers | Words | Tags


@dataclass(frozen=True, slots=True)
class NewItem:
    """What a caller says of an item.

    Attributes:
        item_id: 1 to 256 characters.
        attributes: name -> number, string or list of strings; None is absent.
        popularity: events so far; of an item that the catalog holds already it stays what it was.
        available: whether it may be shown.
    """

    item_id: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    popularity: float = 0.0
    available: bool = True


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Catalog:
    """All that can be recommended, in one order that never changes while a bundle lives.

    Attributes:
        ids: N + 1 item ids; `ids[PAD_ROW]` is the empty string.
        popularity: float64, shape (N + 1,). Events per item in the training data; 0 for the padding row.
        available: bool, shape (N + 1,). What may be shown at all; false for the padding row.
        columns: attributes by name.
        trained: the last row of the bundle's own items; those behind it came later.
    """

    ids: tuple[str, ...]
    popularity: npt.NDArray[np.float64]
    available: BoolArray
    columns: Mapping[str, Column]
    trained: int
    _rows: Mapping[str, int] = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids) - 1

    @classmethod
    def build(
        cls,
        item_ids: Sequence[str],
        *,
        popularity: npt.ArrayLike | None = None,
        available: npt.ArrayLike | None = None,
        attributes: Mapping[str, Sequence[Any]] | None = None,
    ) -> "Catalog":
        """A catalog from N items in the order of their rows.

        Args:
            item_ids: N distinct ids, each of 1 to 256 characters.
            popularity: N numbers; zeros when left out.
            available: N booleans; all true when left out.
            attributes: name -> N values. Lists become tags, strings words, the rest numbers; None is absent.

        Raises:
            InvalidInput: no item, a repeated or overlong id, or a column of another length.
        """
        n = len(item_ids)
        if n == 0:
            raise InvalidInput("the catalog is empty; at least one item is needed")
        rows: dict[str, int] = {}
        for row, item_id in enumerate(item_ids, start=1):
            _check_id(item_id)
            if item_id in rows:
                raise InvalidInput(f"item id {item_id!r} stands twice in the catalog (rows {rows[item_id]} and {row})")
            rows[item_id] = row
        popular = np.zeros(n + 1)
        shown = np.ones(n + 1, dtype=np.bool_)
        for name, target, given in (("popularity", popular, popularity), ("available", shown, available)):
            if given is None:
                continue
            array = np.asarray(given)
            if array.shape != (n,):
                raise InvalidInput(f"{name} has shape {array.shape}, the catalog has {n} items")
            target[1:] = array
        shown[PAD_ROW] = False
        columns: dict[str, Column] = {}
        for name, values in (attributes or {}).items():
            if len(values) != n:
                raise InvalidInput(f"attribute {name!r} has {len(values)} values, the catalog has {n} items")
            columns[name] = _column(values)
        return cls(("", *item_ids), popular, shown, columns, n, rows)

    def row(self, item_id: str) -> int:
        """The item's row.

        Raises:
            UnknownItem: the catalog does not hold it.
        """
        row = self._rows.get(item_id, PAD_ROW)
        if row == PAD_ROW:
            raise UnknownItem(item_id)
        return row

    def rows(self, item_ids: Iterable[str]) -> IntArray:
        """int64 rows of the ids, in their order; PAD_ROW stands for ids that the catalog does not know."""
        return np.array([*map(self._rows.get, item_ids, itertools.repeat(PAD_ROW))], dtype=np.int64)

    def attributes(self, row: int) -> dict[str, Any]:
        """What is known about an item, absent values left out."""
        out = {}
        for name, column in self.columns.items():
            value = column.get(row)
            if value is not None and value != []:
                out[name] = value
        return out

    def with_items(self, items: Sequence[NewItem]) -> "Catalog":
        """The same catalog with items changed, all of their attributes replaced, and new ones behind the old ones.

        Args:
            items: of distinct ids.

        Raises:
            InvalidInput: an id is repeated or overlong, or an attribute of another kind than its column.
        """
        rows = dict(self._rows)
        touched: dict[int, NewItem] = {}
        for item in items:
            _check_id(item.item_id)
            row = rows.setdefault(item.item_id, len(rows) + 1)
            if row in touched:
                raise InvalidInput(f"item id {item.item_id!r} stands twice among the changes; send the last one only")
            touched[row] = item
        size = len(rows) + 1
        popularity, available = np.zeros(size), np.zeros(size, dtype=np.bool_)
        popularity[: len(self.ids)], available[: len(self.ids)] = self.popularity, self.available
        for row, item in touched.items():
            available[row] = item.available
            if row >= len(self.ids):
                popularity[row] = item.popularity
        columns: dict[str, Column] = {}
        for name in dict.fromkeys([*self.columns, *(name for item in items for name in item.attributes)]):
            values = {row: item.attributes.get(name) for row, item in touched.items()}
            column = self.columns.get(name) or _empty(next((v for v in values.values() if v is not None), None))
            columns[name] = _changed(name, column, values, size)
        new = tuple(touched[row].item_id for row in range(len(self.ids), size))
        return Catalog(self.ids + new, popularity, available, columns, self.trained, rows)

    def without(self, rows: IntArray) -> "Catalog":
        """The same catalog with some items unavailable."""
        available = self.available.copy()
        available[rows] = False
        return replace(self, available=available)

    def save(self, path: Path) -> None:
        """Writes one `.npz` file of plain arrays."""
        arrays: dict[str, npt.NDArray[Any]] = {
            "popularity": self.popularity,
            "available": self.available,
            **_pack("ids", self.ids),
        }
        names: list[str] = []
        for at, (name, column) in enumerate(self.columns.items()):
            names.append(name)
            match column:
                case Numbers(values=values):
                    arrays[f"{at}.values"] = values
                case Words(codes, vocabulary):
                    arrays |= {f"{at}.codes": codes, **_pack(f"{at}.words", vocabulary)}
                case Tags(offsets, codes, vocabulary):
                    arrays |= {f"{at}.offsets": offsets, f"{at}.codes": codes, **_pack(f"{at}.words", vocabulary)}
        arrays |= _pack("columns", names)
        with path.open("wb") as out:
            np.savez_compressed(out, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Catalog":
        """Reads what `save` wrote.

        Raises:
            BundleTorn: the file is not such a catalog.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                arrays = dict(stored.items())
            ids = _unpack("ids", arrays)
            columns: dict[str, Column] = {}
            for at, name in enumerate(_unpack("columns", arrays)):
                if f"{at}.values" in arrays:
                    columns[name] = Numbers(arrays[f"{at}.values"])
                elif f"{at}.offsets" in arrays:
                    words = _unpack(f"{at}.words", arrays)
                    columns[name] = Tags(arrays[f"{at}.offsets"], arrays[f"{at}.codes"], words)
                else:
                    columns[name] = Words(arrays[f"{at}.codes"], _unpack(f"{at}.words", arrays))
            rows = {item_id: row for row, item_id in enumerate(ids) if row != PAD_ROW}
            return cls(ids, arrays["popularity"], arrays["available"], columns, len(rows), rows)
        except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleTorn(f"{path.name} is not a readable catalog ({error}); export the bundle again") from error


def _column(values: Sequence[Any]) -> Column:
    present = [v for v in values if v is not None]
    if any(isinstance(v, list | tuple) for v in present):
        lists = [list(v) if v is not None else [] for v in values]
        vocabulary = tuple(sorted({str(word) for words in lists for word in words}))
        code = {word: i for i, word in enumerate(vocabulary)}
        codes = np.array([code[str(word)] for words in lists for word in words], dtype=np.int32)
        offsets = np.zeros(len(lists) + 2, dtype=np.int64)
        offsets[2:] = np.cumsum([len(words) for words in lists])
        return Tags(offsets, codes, vocabulary)
    if present and all(isinstance(v, int | float | np.number | np.bool_) for v in present):
        return Numbers(np.array([math.nan, *(math.nan if v is None else float(v) for v in values)]))
    vocabulary = tuple(sorted({str(v) for v in present}))
    code = {word: i for i, word in enumerate(vocabulary)}
    return Words(np.array([-1, *(-1 if v is None else code[str(v)] for v in values)], dtype=np.int32), vocabulary)


def _check_id(item_id: str) -> None:
    if not item_id or len(item_id) > MAX_ID_CHARS:
        raise InvalidInput(f"item id {item_id[:40]!r} has {len(item_id)} characters; 1 to {MAX_ID_CHARS} are allowed")


def _empty(example: object) -> Column:
    """A column of no rows, of the kind that holds such a value."""
    if isinstance(example, list | tuple):
        return Tags(np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int32), ())
    if isinstance(example, int | float):
        return Numbers(np.zeros(0))
    return Words(np.zeros(0, dtype=np.int32), ())


def _changed(name: str, column: Column, values: Mapping[int, Any], size: int) -> Column:
    """A column of `size` rows with the values of some of them replaced; rows that are new and not named are absent.

    Raises:
        InvalidInput: a value of another kind.
    """
    kinds: Mapping[type[Column], tuple[Any, str]] = {
        Numbers: (int | float, "numbers"),
        Words: (str, "strings"),
        Tags: (list | tuple, "lists of strings"),
    }
    kind, called = kinds[type(column)]
    for value in values.values():
        of_kind = value is None or isinstance(value, kind)
        if not of_kind or (kind is not str and isinstance(value, list | tuple) and not _are_words(value)):
            raise InvalidInput(f"attribute {name!r} holds {called} in this catalog; {value!r:.60} is none")
    match column:
        case Numbers(values=old):
            numbers = np.full(size, math.nan)
            numbers[: len(old)] = old
            for row, value in values.items():
                numbers[row] = math.nan if value is None else value
            return Numbers(numbers)
        case Words(old, vocabulary):
            code = _Codes(vocabulary)
            codes = np.full(size, -1, dtype=np.int32)
            codes[: len(old)] = old
            for row, value in values.items():
                codes[row] = -1 if value is None else code[value]
            return Words(codes, tuple(code))
        case Tags(offsets, old, vocabulary):
            code = _Codes(vocabulary)
            last = len(offsets) - 1
            lengths = np.zeros(size, dtype=np.int64)
            lengths[:last] = np.diff(offsets)
            parts, start = [], 0
            for row in sorted(values):
                words = values[row] or ()
                lengths[row] = len(words)
                parts += [old[start : offsets[min(row, last)]], np.array([code[word] for word in words], np.int32)]
                start = int(offsets[min(row + 1, last)])
            parts.append(old[start:])
            ends = np.zeros(size + 1, dtype=np.int64)
            np.cumsum(lengths, out=ends[1:])
            return Tags(ends, np.concatenate(parts), tuple(code))


class _Codes(dict[str, int]):
    """The codes of a vocabulary, which grows by each word that it is asked for."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        super().__init__((word, code) for code, word in enumerate(vocabulary))

    def __missing__(self, word: str) -> int:
        self[word] = len(self)
        return self[word]


def _are_words(values: Sequence[object]) -> bool:
    return all(isinstance(value, str) for value in values)


def _pack(name: str, words: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """Strings as one block of UTF-8 and its offsets: NumPy's own string arrays pad every id to the longest."""
    encoded = [word.encode() for word in words]
    ends = np.fromiter(itertools.accumulate(len(e) for e in encoded), dtype=np.int64, count=len(encoded))
    return {f"{name}.text": np.frombuffer(b"".join(encoded), dtype=np.uint8), f"{name}.ends": ends}


def _unpack(name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> tuple[str, ...]:
    text = arrays[f"{name}.text"].tobytes()
    ends = arrays[f"{name}.ends"].tolist()
    return tuple(text[a:b].decode() for a, b in zip([0, *ends], ends, strict=False))
