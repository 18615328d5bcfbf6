"""Likeness by what is said of items: which trained items a new one resembles, where no model can read its text.

What is said of an item are the words of its attributes, each in its column: `title` words, categories, an author, and
so on; a value of several words counts as a whole as well, where several items have it. Numbers say nothing here. Two
items are as alike as the cosine of their words, each weighed by how rare it is: log(N / n) for a word that n of N items
have.

Source: Manning, Raghavan, Schuetze, Introduction to Information Retrieval (2008), sections 6.2 and 6.3.
"""

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from retrieval.catalog import Catalog, Numbers, Words
from retrieval.sequences import PAD_ROW, FloatArray, IntArray
from retrieval.text import WORD

_tables: WeakKeyDictionary[Catalog, "Likeness"] = WeakKeyDictionary()


class Likeness:
    """The words of a catalog, by word.

    Args:
        catalog: of N items.
        vectors: float32, shape (N + 1, D): theirs; items without one resemble nothing.
    """

    def __init__(self, catalog: Catalog, vectors: FloatArray) -> None:
        self._vectors = vectors
        self._numbers: dict[str, dict[str, int]] = {}  # column -> word -> its number
        size, count = len(catalog) + 1, 0
        rows: list[IntArray] = [np.zeros(0, dtype=np.int64)]
        terms: list[IntArray] = [np.zeros(0, dtype=np.int64)]
        for name, column in catalog.columns.items():
            if isinstance(column, Numbers):
                continue
            if isinstance(column, Words):
                carriers = np.flatnonzero(column.codes >= 0)
                codes = column.codes[carriers].astype(np.int64)
            else:
                carriers = np.repeat(np.arange(len(column.offsets) - 1), np.diff(column.offsets))
                codes = column.codes.astype(np.int64)
            carried = np.bincount(codes, minlength=len(column.vocabulary)).tolist()
            numbers = self._numbers[name] = {}
            lengths, flat = [], []
            for value, times in zip(column.vocabulary, carried, strict=True):
                # As a whole a value says something only where several items have it: a title hardly ever.
                said = words_of(value, whole=times > 1)
                lengths.append(len(said))
                flat += [numbers.setdefault(word, count + len(numbers)) for word in said]
            count += len(numbers)
            each = np.array(lengths, dtype=np.int64)
            counts, starts = each[codes], (each.cumsum() - each)[codes]
            within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
            rows.append(np.repeat(carriers, counts))
            terms.append(np.array(flat, dtype=np.int64)[np.repeat(starts, counts) + within])
        # A word that an item has twice counts once.
        of, self._rows = np.divmod(np.unique(np.concatenate(terms) * size + np.concatenate(rows)), size)
        frequencies = np.bincount(of, minlength=count)
        self._starts = np.concatenate([[0], frequencies.cumsum()])
        self._weights = np.log(len(catalog) / np.maximum(frequencies, 1))
        lengths_ = np.sqrt(np.bincount(self._rows, np.square(self._weights[of]), minlength=size))
        has_vector = (lengths_ > 0) & vectors.any(axis=1)
        self._inverse_lengths = np.divide(1, lengths_, out=np.zeros(size), where=has_vector)

    @classmethod
    def of(cls, catalog: Catalog, vectors: FloatArray) -> "Likeness":
        """The table of a catalog, made when it is first asked for and kept as long as the catalog is."""
        table = _tables.get(catalog)
        if table is None:
            table = _tables[catalog] = cls(catalog, vectors)
        return table

    def nearest(self, attributes: Mapping[str, Any], most: int) -> IntArray:
        """The items most alike, the most alike first, equal ones in the order of their rows.

        Args:
            attributes: what is said of an item.
            most: at most so many.

        Returns:
            int64, shape (n,): rows; none where no item shares a word.
        """
        terms = [
            self._numbers[name][word]
            for name, value in attributes.items()
            if name in self._numbers
            for word in {word for text in _texts(value) for word in words_of(text, whole=True)}
            if word in self._numbers[name]
        ]
        if not terms:
            return np.zeros(0, dtype=np.int64)
        parts = [self._rows[self._starts[term] : self._starts[term + 1]] for term in terms]
        shares = np.repeat(np.square(self._weights[terms]), [len(part) for part in parts])
        likeness = np.bincount(np.concatenate(parts), shares, minlength=len(self._vectors)) * self._inverse_lengths
        rows = np.flatnonzero(likeness > 0)
        own = likeness[rows]
        if len(rows) > most:
            near = own >= np.partition(own, len(own) - most)[len(own) - most]
            rows, own = rows[near], own[near]
        return rows[np.argsort(-own, kind="stable")[:most]]

    def vector(self, attributes: Mapping[str, Any], most: int) -> FloatArray:
        """float32, shape (D,): the mean vector of the `most` items most alike; zero where there are none."""
        near = self.nearest(attributes, most)
        return np.asarray(self._vectors[near].mean(axis=0) if len(near) else self._vectors[PAD_ROW])


def words_of(value: str, *, whole: bool) -> list[str]:
    """The words of a value, and where it has several and that is wanted, the value as a whole."""
    text = value.lower()
    words = WORD.findall(text)
    return [*words, text] if whole and len(words) > 1 else words


def _texts(value: Any) -> Iterator[str]:
    """The texts of an attribute's value."""
    for one in value if isinstance(value, list | tuple) else (value,):
        if isinstance(one, str):
            yield one
