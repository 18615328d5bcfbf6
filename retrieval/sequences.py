"""Histories, and the windows that encoders read.

A `History` is what one user did, oldest first, in catalog rows. A window is its newest part, padded on the left, so
that the newest event always stands in the last slot. Training, evaluation and serving all cut windows with the one
function below, so they cannot drift apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.errors import InvalidInput

PAD_ROW = 0  # the row that is never an item: padding in windows, "unknown" in look-ups

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]


SHARED = 1024  # events; for histories up to this length columns that are the same for all are made once
_SHARED_VALUES = np.full(SHARED, np.nan, np.float32)
_SHARED_VALUES.setflags(write=False)


@lru_cache(maxsize=64)
def _shared_types(code: int) -> IntArray:
    types = np.full(SHARED, code, np.int64)
    types.setflags(write=False)
    return types


@dataclass(slots=True, eq=False)
class History:
    """One user's events as parallel arrays, oldest first; items that the catalog does not know are already gone.

    Attributes:
        rows: int64, shape (n,). Catalog rows, never PAD_ROW.
        event_types: int64, shape (n,). Codes from the bundle's event-type vocabulary; 0 is "another type".
        values: float32, shape (n,). Rating, price, watch seconds; NaN where the event had none.
        timestamps: float64, shape (n,). Seconds since 1970.
    """

    rows: IntArray
    event_types: IntArray
    values: FloatArray
    timestamps: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)

    def newest(self, length: int) -> "History":
        """The last `length` events (all of them when there are fewer)."""
        if length >= len(self.rows):
            return self
        return self._part(slice(len(self.rows) - length, None))

    def where(self, keep: BoolArray) -> "History":
        """The events for which `keep`, bool of shape (n,), is true."""
        return self if keep.all() else self._part(keep)

    def _part(self, cut: slice | BoolArray) -> "History":
        return History(self.rows[cut], self.event_types[cut], self.values[cut], self.timestamps[cut])

    @classmethod
    def of_rows(cls, rows: Sequence[int] | IntArray) -> "History":
        """A history that has only items: type 0, no values, times 0, 1, 2, ..."""
        array = np.asarray(rows, dtype=np.int64)
        n = len(array)
        return cls(array, np.zeros(n, np.int64), np.full(n, np.nan, np.float32), np.arange(n, dtype=np.float64))

    @classmethod
    def of_events(
        cls, rows: IntArray, event_types: Sequence[int], values: Sequence[float | None], timestamps: Sequence[float]
    ) -> "History":
        """A history from n events, oldest first, those without a row (PAD_ROW: unknown items) left out.

        Args:
            rows: int64, shape (n,), as `Catalog.rows` gives them.
            event_types: n codes of the bundle's vocabulary.
            values: n numbers; None where an event has none.
            timestamps: n times, seconds since 1970.
        """
        types = np.array(event_types, dtype=np.int64)
        numbers = np.array(values, dtype=np.float32)  # None becomes NaN
        times = np.array(timestamps, dtype=np.float64)
        if np.count_nonzero(rows) == len(rows):  # PAD_ROW is nought
            return cls(rows, types, numbers, times)
        known = rows != PAD_ROW
        return cls(rows[known], types[known], numbers[known], times[known])

    @classmethod
    def of_items(cls, rows: IntArray, event_type: int, timestamps: float | Sequence[float]) -> "History":
        """What `of_events` makes of n events of one type without values, as nearly all histories are.

        Args:
            rows: int64, shape (n,), as `Catalog.rows` gives them.
            event_type: a code of the bundle's vocabulary.
            timestamps: seconds since 1970: of all events, or n times.
        """
        times = np.empty(len(rows), np.float64)
        times[:] = timestamps
        if np.count_nonzero(rows) != len(rows):
            known = rows != PAD_ROW
            rows, times = rows[known], times[known]
        n = len(rows)
        if n > SHARED:
            return cls(rows, np.full(n, event_type, np.int64), np.full(n, np.nan, np.float32), times)
        return cls(rows, _shared_types(event_type)[:n], _SHARED_VALUES[:n], times)


EMPTY = History.of_rows([])


def window(columns: Sequence[npt.NDArray[Any]], *, length: int, fill: float, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """The newest `length` entries of each column, padded on the left.

    Args:
        columns: B arrays of shape (n_b,), oldest first.
        length: window length L.
        fill: what stands in empty slots: PAD_ROW for rows.
        dtype: of the result.

    Returns:
        shape (B, L). Slot L - 1 is the newest event.

    Raises:
        InvalidInput: `length` is not positive.

    Source:
        Kang and McAuley (2018), "Self-Attentive Sequential Recommendation", section III-A.
    """
    if length < 1:
        raise InvalidInput(f"window length {length} is not positive; it comes from the bundle manifest")
    if len(columns) == 1 and len(columns[0]) >= length:
        return columns[0][len(columns[0]) - length :].astype(dtype)[None]
    out = np.empty((len(columns), length), dtype=dtype)
    out.fill(fill)
    for own, column in zip(out, columns, strict=True):
        n = len(column)
        if n >= length:
            own[:] = column[n - length :]
        elif n:
            own[length - n :] = column
    return out
