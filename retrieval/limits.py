"""Limits: the words that caps limit in one catalog, and which items carry them."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from retrieval.catalog import Catalog, Numbers, Tags, Words
from retrieval.errors import InvalidRule
from retrieval.rules import Cap
from retrieval.sequences import IntArray

Codes = npt.NDArray[np.int32]


class Limits:
    """The W words that caps limit, numbered across all caps, and who carries which.

    Items with the same limited words in the same order are of one kind. Kinds are few: of them it is asked whether any
    item fits at all.

    Args:
        catalog: whose items are counted.
        caps: what limits them.

    Attributes:
        most: int64, shape (W + 1,): the limit of each word; the last entry is no word and has none.
        names: W pairs of the cap's place and the word.
        kinds: int32, shape (N + 1,): the kind of each item.

    Raises:
        InvalidRule: a cap on a column that the catalog does not have, or that holds numbers.
    """

    def __init__(self, catalog: Catalog, caps: Sequence[Cap]) -> None:
        columns: list[Words | Tags] = []
        for cap in caps:
            column = catalog.columns.get(cap.attribute)
            if not isinstance(column, Words | Tags):
                raise refusal(catalog, f"a cap of {cap.most}", cap.attribute, "words or tags")
            columns.append(column)
        self.names = [
            (n, word)
            for n, (cap, column) in enumerate(zip(caps, columns, strict=True))
            for word in column.vocabulary
            if not cap.values or word in cap.values
        ]
        self.most = np.array([*(caps[n].most for n, _ in self.names), np.iinfo(np.int64).max])
        number = {name: w for w, name in enumerate(self.names)}
        free = len(self.names)  # the number of no word
        layers: list[tuple[IntArray, IntArray]] = []  # rows, and one limited word of each
        for n, column in enumerate(columns):
            # One more entry than words: the code -1 of an absent word reads the last one.
            numbers = np.array([*(number.get((n, word), free) for word in column.vocabulary), free])
            for rows, codes in _layers(column):
                words = numbers[codes]
                layers.append((rows[words < free], words[words < free]))
        kinds = np.zeros(len(catalog) + 1, dtype=np.int64)
        for rows, words in layers:
            _, named = np.unique(kinds[rows] * (free + 1) + words, return_inverse=True)
            kinds[rows] = kinds.max() + 1 + named
        found, kinds = np.unique(kinds, return_inverse=True)
        table = np.full((len(found), len(layers)), free, dtype=np.int32)
        for at, (rows, words) in enumerate(layers):
            table[kinds[rows], at] = words
        table.sort(axis=1)  # no word is the highest number and goes last
        self.kinds = kinds.astype(np.int32)
        self._carried = (table < free).sum(axis=1)
        self._table = np.ascontiguousarray(table.T)

    def words(self, kinds: Codes) -> Codes:
        """int32, shape (T, *kinds.shape): the words of kinds, W where one has fewer than T."""
        longest = int(self._carried[kinds].max(initial=0))
        return self._table[:longest].take(kinds, axis=1)


def refusal(catalog: Catalog, what: str, name: str, kind: str) -> InvalidRule:
    """Says that a rule cannot read a column, and which ones it could."""
    fitting = sorted(n for n, column in catalog.columns.items() if isinstance(column, Numbers) == (kind == "numbers"))
    wrong = f"which does not hold {kind}" if name in catalog.columns else "which the catalog does not have"
    return InvalidRule(f"{what} reads {name!r}, {wrong}; columns of {kind}: {', '.join(fitting) or 'none'}")


def _layers(column: Words | Tags) -> Iterator[tuple[IntArray, Codes]]:
    """Rows and one code of each; an item with several tags is in several layers."""
    if isinstance(column, Words):
        yield np.arange(len(column.codes)), column.codes
        return
    lengths = np.diff(column.offsets)
    for n in range(int(lengths.max(initial=0))):
        rows = np.flatnonzero(lengths > n)
        yield rows, column.codes[column.offsets[rows] + n]
