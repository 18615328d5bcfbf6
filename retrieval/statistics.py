"""What was counted in the training data and is looked up while ranking: which items follow which, and how items fare.

A table of followers is two sorted arrays, a key for each pair that was ever seen and its weight, so that all pairs of a
batch are looked up in one search.
"""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.errors import BundleTorn
from retrieval.sequences import FloatArray, IntArray


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

    def follow(self, before: IntArray, after: IntArray) -> FloatArray:
        """float32: the weight of each pair, 0 for those that were never counted.

        Args:
            before, after: int64 rows of shapes that broadcast; rows beyond N have followed nothing.
        """
        size = len(self.rates)
        keys = before * size + after
        if not len(self.pairs):
            return np.zeros(keys.shape, dtype=np.float32)
        places = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
        found = (self.pairs[places] == keys) & (after < size) & (before < size)
        return np.where(found, self.weights[places], np.float32(0))

    def save(self, path: Path) -> None:
        """Writes one `.npz` file of plain arrays."""
        with path.open("wb") as out:
            arrays = {name: getattr(self, name) for name in self.__slots__}
            np.savez_compressed(out, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, path: Path) -> "Statistics":
        """Reads what `save` wrote.

        Raises:
            BundleTorn: the file holds no such arrays, or they do not fit each other.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                made = cls(*(stored[name] for name in cls.__slots__))
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleTorn(f"{path.name} cannot be read ({error}); export the bundle again") from error
        fits = made.pairs.shape == made.weights.shape and made.rates.ndim == 2 and len(made.rates) == len(made.values)
        if not fits or (np.diff(made.pairs) <= 0).any():
            raise BundleTorn(f"{path.name} holds arrays that do not fit each other; export the bundle again")
        return made
