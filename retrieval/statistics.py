"""What was counted in the training data and is looked up while ranking: which items follow which, and how items fare.

A table of followers is two sorted arrays, a key for each pair that was ever seen and its weight.
"""

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from retrieval.errors import BundleTorn
from retrieval.sequences import FloatArray, IntArray

ARRAYS = ("pairs", "weights", "rates", "values")


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Counts over the N items that a bundle was trained on.

    Attributes:
        pairs: int64, shape (P,), ascending: `before * (N + 1) + after` of each pair of rows that was counted.
        weights: float32, shape (P,): how often `after` followed, decayed by distance and damped by how often `before`
            occurs.
        rates: float32, shape (N + 1, T): share of an item's events that fulfil each task, drawn towards the share of
            all events where there are few; NaN where there is none.
        values: float32, shape (N + 1,): mean value of an item's events, drawn likewise; NaN where none has a value.
    """

    pairs: IntArray
    weights: FloatArray
    rates: FloatArray
    values: FloatArray
    _starts: IntArray = field(init=False, repr=False)  # where the followers of each row begin
    _followers: IntArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        size = len(self.rates)
        object.__setattr__(self, "_starts", np.searchsorted(self.pairs, np.arange(size + 1) * size))
        object.__setattr__(self, "_followers", self.pairs % max(1, size))

    def follow(self, before: IntArray, after: IntArray) -> FloatArray:
        """float32, shape (B, P, C): the weight of each pair within a line, 0 for those that were never counted.

        Args:
            before: int64, shape (B, P).
            after: int64, shape (B, C). Rows beyond N, which came later, have followed nothing and have no followers.
        """
        size = len(self.rates)
        out = np.zeros((*before.shape, after.shape[1]), dtype=np.float32)
        # The followers of one row are spread over all rows and taken back: no search, and little is touched.
        spread = np.zeros(max(size, int(after.max(initial=0)) + 1), dtype=np.float32)
        for b, line in enumerate(before.tolist()):
            for p, row in enumerate(line):
                if row < size and self._starts[row] < self._starts[row + 1]:
                    own = slice(self._starts[row], self._starts[row + 1])
                    spread[self._followers[own]] = self.weights[own]
                    spread.take(after[b], out=out[b, p], mode="clip")  # any other mode copies first
                    spread[self._followers[own]] = 0
        return out

    def save(self, path: Path) -> None:
        """Writes one `.npz` file of plain arrays."""
        with path.open("wb") as out:
            np.savez_compressed(out, allow_pickle=False, **{name: getattr(self, name) for name in ARRAYS})

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Reads what `save` wrote.

        Raises:
            BundleTorn: the file holds no such arrays, or they do not fit each other.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                pairs, weights, rates, values = (stored[name] for name in ARRAYS)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleTorn(f"{path.name} cannot be read ({error}); export the bundle again") from error
        size = len(values) if values.ndim else 0
        fits = (
            [array.dtype for array in (pairs, weights, rates, values)] == [np.int64, *[np.float32] * 3]
            and pairs.shape == weights.shape == (pairs.size,)
            and rates.ndim == 2
            and values.shape == (len(rates),)
            and (np.diff(pairs) > 0).all()
            and (not pairs.size or 0 <= pairs[0] <= pairs[-1] < size * size)
            and np.isfinite(weights).all()
        )
        if not fits:
            raise BundleTorn(f"{path.name} holds arrays that do not fit each other; export the bundle again")
        return cls(pairs, weights, rates, values)
