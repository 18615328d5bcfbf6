"""From what a caller says of an item to its semantic id: text, vector, codes, and the number that tells twins apart.

The same object gives the items of a catalog their codes and, out of a bundle, the codes of items that come later.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.codes import NO_CODE, Codes, CodeTable
from retrieval.errors import BundleTorn, InvalidInput
from retrieval.quantisers import Quantiser, load_quantiser, save_quantiser
from retrieval.sequences import FloatArray
from retrieval.text import TextEncoder, describe, load_text

ABOUT = "describer.json"
QUANTISER = "quantiser.npz"


@dataclass(frozen=True, eq=False)
class Describer:
    """Attributes in, codes out.

    Attributes:
        text: the encoder of texts.
        quantiser: makes the codes of a text's vector.
        fields: the attributes that make the text, in order.
        dedup: codewords of the last level, which numbers the items whose other codes are equal; 0 for no such level.
    """

    text: TextEncoder
    quantiser: Quantiser
    fields: tuple[str, ...]
    dedup: int = 0

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """L numbers: the codewords of each level of a table of these codes."""
        return (*self.quantiser.vocabulary, *([self.dedup] if self.dedup else []))

    def vectors_for(self, attributes: Sequence[Mapping[str, Any]]) -> FloatArray:
        """float32, shape (n, Dt): the vectors of n items; zero where the fields say nothing."""
        return self.text.encode([describe(known, self.fields) for known in attributes])

    def codes_for(self, attributes: Sequence[Mapping[str, Any]], table: CodeTable | None = None) -> Codes:
        """int32, shape (n, L): the codes of n items that stand behind a table; -1 where the fields say nothing."""
        return self.codes_of(self.vectors_for(attributes), table)

    def codes_of(self, vectors: FloatArray, table: CodeTable | None = None) -> Codes:
        """int32, shape (n, L): the codes of vectors from `vectors_for`; -1 where a vector is zero.

        Raises:
            InvalidInput: the table has other levels than this describer.
        """
        if table is not None and table.vocabulary != self.vocabulary:
            raise InvalidInput(
                f"the table has levels of {list(table.vocabulary)} codewords, this describer of {list(self.vocabulary)}"
            )
        codes = np.full((len(vectors), len(self.vocabulary)), NO_CODE, dtype=np.int32)
        says = vectors.any(axis=1)
        found = self.quantiser.codes(vectors[says])
        if self.dedup:
            found = np.concatenate([found, numbered(found, self.dedup, table)[:, None]], axis=1)
        codes[says] = found
        return codes

    def save(self, directory: Path) -> None:
        """Writes everything that `load` needs into a directory, which may be there already."""
        directory.mkdir(exist_ok=True)
        self.text.save(directory)
        save_quantiser(self.quantiser, directory / QUANTISER)
        (directory / ABOUT).write_text(json.dumps({"fields": self.fields, "dedup": self.dedup}, ensure_ascii=False))

    @classmethod
    def load(cls, directory: Path, *, threads: int = 1) -> "Describer":
        """Reads what `save` wrote.

        Raises:
            BundleTorn: a file is missing or damaged.
            BundleForeign: a text encoder or quantiser that this version does not know, or has no package for.
        """
        try:
            about = json.loads((directory / ABOUT).read_text())
            fields, dedup = tuple(map(str, about["fields"])), int(about["dedup"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleTorn(f"{ABOUT} cannot be read ({error}); export the bundle again") from error
        return cls(load_text(directory, threads=threads), load_quantiser(directory / QUANTISER), fields, dedup)


def numbered(codes: Codes, limit: int, table: CodeTable | None = None) -> Codes:
    """int32, shape (n,): the how-manieth item of its codes each one is, counted from 0 in the order of rows.

    Numbers are only ever appended: what the table holds keeps its own, and a new item goes on counting behind it. Items
    beyond the limit share the last number, and so a leaf.

    Args:
        codes: int32, shape (n, L - 1), none of them -1.
        limit: codewords of the numbering level.
        table: the items before these, with the number as their last code.
    """
    old = table.codes[table.coded] if table is not None else np.zeros((0, codes.shape[1] + 1), dtype=np.int32)
    every = np.concatenate([old[:, :-1], codes])
    groups = np.unique(every, axis=0, return_inverse=True)[1].reshape(-1)
    taken = np.full(len(groups), -1, dtype=np.int64)  # the highest number of each group so far; groups <= items
    np.maximum.at(taken, groups[: len(old)], old[:, -1])
    new = groups[len(old) :]
    order = np.argsort(new, kind="stable")
    runs = new[order]
    place = np.arange(len(runs)) - np.searchsorted(runs, runs)  # within its run of equal groups
    numbers = np.empty(len(new), dtype=np.int64)
    numbers[order] = taken[runs] + 1 + place
    return np.minimum(numbers, limit - 1).astype(np.int32)
