"""The catalogue as a trie of code tuples, in flat arrays: what a generator may say next.

Items are sorted by their tuples, so a node (a prefix that exists) is a range of that order, its children are
neighbours, and the nodes of one depth are numbered lexicographically. Nothing is an object per node: a million items
are a dozen arrays. The layout is that of STATIC (arXiv 2602.22647, section 4: dense tables near the root, compressed
rows below) with the range of every node beside it, which is what lets one trie serve any filter.
"""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.codes import CodeTable
from retrieval.errors import BundleTorn, InvalidInput
from retrieval.sequences import PAD_ROW, BoolArray, FloatArray, IntArray

DENSE_CELLS = 1 << 18  # nodes x V of a level that is kept as a table; below it children are looked up by range
KEY_BITS = 62  # a tuple that fits into this many bits is sorted as one number

Nodes = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Live:
    """What a filter leaves of a trie; made once per filter and shared by every request that has it.

    Attributes:
        before: int32, shape (n + 1,): how many of the first 0, 1, ... n items in trie order are allowed.
        shut: for each dense level float32, shape (nodes, V): 0 where the child holds an allowed item, else -inf.
        open: for each level below, bool by child: whether it holds an allowed item.
    """

    before: Nodes
    shut: tuple[FloatArray, ...]
    open: tuple[BoolArray, ...]

    @property
    def count(self) -> int:
        """Allowed items that have a code."""
        return int(self.before[-1])

    @property
    def nbytes(self) -> int:
        """Memory, in bytes; whoever keeps several of them needs a bound."""
        return sum(array.nbytes for array in (self.before, *self.shut, *self.open))


class ConstraintTrie:
    """The prefixes of a code table. Immutable; every array is read-only.

    Node 0 of depth 0 is the root. A node of depth d holds the items `starts[d][node] : starts[d][node + 1]` of `rows`;
    its children are the nodes `first[d][node] : first[d][node + 1]` of depth d + 1.

    Args:
        rows: int64, shape (n,): coded catalog rows in the order of the trie.
        codes: int32, shape (n, L): their tuples, in lexicographic order.
        vocabulary: V of each level.
        size: N + 1 of the catalog.
        version: of the catalog that this describes.

    Attributes:
        rank: int32, shape (N + 2,): where a row stands in `rows`, -1 without a code; the last entry is for whatever is
            beyond the catalog.
        labels: for each level int32 by child: the code that leads to it.
        child: for each dense level int32, shape (nodes, V): the child behind a code, -1 where there is none.

    Raises:
        InvalidInput: arrays that do not fit each other or are not in order.
    """

    def __init__(
        self, rows: IntArray, codes: Nodes, *, vocabulary: tuple[int, ...], size: int, version: int = 0
    ) -> None:
        _check(rows, codes, vocabulary, size)
        self.rows, self.codes, self.vocabulary, self.size, self.version = rows, codes, vocabulary, size, version
        n, self.levels = codes.shape
        self.rank = np.full(size + 1, -1, dtype=np.int32)
        self.rank[rows] = np.arange(n, dtype=np.int32)
        starts = [np.array([0, n], dtype=np.int32)]
        new = np.zeros(n, dtype=np.bool_)
        new[:1] = True
        first, labels = [], []
        for level in range(self.levels):
            new[1:] |= codes[1:, level] != codes[:-1, level]
            begins = np.flatnonzero(new)
            starts.append(np.append(begins, n).astype(np.int32))
            first.append(np.searchsorted(starts[-1], starts[-2]).astype(np.int32))
            labels.append(codes[begins, level])
        self.starts, self.first, self.labels = tuple(starts), tuple(first), tuple(labels)
        self.child = tuple(self._dense(level) for level in range(self._dense_levels()))
        for array in (rows, codes, self.rank, *starts, *first, *labels, *self.child):
            array.setflags(write=False)

    def __len__(self) -> int:
        """Items that have a code."""
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Memory, in bytes."""
        arrays = (self.rows, self.codes, self.rank, *self.starts, *self.first, *self.labels, *self.child)
        return sum(array.nbytes for array in arrays)

    @classmethod
    def build(cls, table: CodeTable, *, priority: npt.ArrayLike | None = None, version: int = 0) -> "ConstraintTrie":
        """The trie of a code table.

        Args:
            table: the items' codes.
            priority: numbers, shape (N + 1,): which of several items with one tuple comes first; without it, and among
                equals, the lower row.
            version: of the catalog.

        Raises:
            InvalidInput: `priority` has another shape.
        """
        rows = np.flatnonzero(table.coded)
        if priority is not None:
            wanted = np.asarray(priority, dtype=np.float64)
            if wanted.shape != (len(table) + 1,):
                raise InvalidInput(f"priority has shape {wanted.shape}; ({len(table) + 1},) was expected")
            rows = rows[np.argsort(-wanted[rows], kind="stable")]
        codes = table.codes[rows]
        if sum(int(v).bit_length() for v in table.vocabulary) <= KEY_BITS:
            key = np.zeros(len(rows), dtype=np.int64)
            for level, v in enumerate(table.vocabulary):
                key = key * v + codes[:, level]
            order = np.argsort(key, kind="stable")
        else:
            order = np.lexsort(codes.T[::-1])
        sizes = tuple(int(v) for v in table.vocabulary)
        return cls(rows[order], codes[order], vocabulary=sizes, size=len(table) + 1, version=version)

    def live(self, mask: BoolArray) -> Live:
        """What a filter leaves.

        Args:
            mask: bool, shape (N + 1,): the rows that may be returned.

        Raises:
            InvalidInput: another shape.
        """
        if mask.shape != (self.size,):
            raise InvalidInput(f"the mask has shape {mask.shape}; ({self.size},) was expected")
        before = np.zeros(len(self.rows) + 1, dtype=np.int32)
        np.cumsum(mask[self.rows], out=before[1:])
        shut, is_open = [], []
        for level in range(self.levels):
            at = before[self.starts[level + 1]]
            holds = at[1:] > at[:-1]
            if level < len(self.child):
                # The last entry stands for "no child", which index -1 finds.
                penalty = np.where(np.append(holds, False), np.float32(0), np.float32(-np.inf))
                shut.append(penalty[self.child[level]])
            else:
                is_open.append(holds)
        for array in (before, *shut, *is_open):
            array.setflags(write=False)
        return Live(before, tuple(shut), tuple(is_open))

    def prefixes(self, depth: int, nodes: IntArray) -> npt.NDArray[np.int64]:
        """int64, shape (*nodes, depth): the codes that lead to nodes of a depth."""
        prefixes: npt.NDArray[np.int64] = self.codes[self.starts[depth][nodes], :depth].astype(np.int64)
        return prefixes

    def arrays(self) -> Mapping[str, npt.NDArray[Any]]:
        """All that a trie is made from."""
        return {
            "rows": self.rows,
            "codes": self.codes,
            "vocabulary": np.array(self.vocabulary, dtype=np.int64),
            "size": np.array(self.size, dtype=np.int64),
            "version": np.array(self.version, dtype=np.int64),
        }

    def save(self, path: Path) -> None:
        """Writes one `.npz` file of plain arrays."""
        with path.open("wb") as out:
            np.savez(out, allow_pickle=False, **self.arrays())

    @classmethod
    def load(cls, path: Path) -> "ConstraintTrie":
        """Reads what `save` wrote.

        Raises:
            BundleTorn: the file is not such a trie.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                rows, codes = stored["rows"].astype(np.int64), stored["codes"].astype(np.int32)
                sizes = tuple(int(v) for v in stored["vocabulary"])
                return cls(rows, codes, vocabulary=sizes, size=int(stored["size"]), version=int(stored["version"]))
        except (
            OSError,
            EOFError,
            ValueError,
            TypeError,
            KeyError,
            InvalidInput,
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
        ) as error:
            raise BundleTorn(f"{path.name} is not a readable trie ({error}); export the bundle again") from error

    def _dense_levels(self) -> int:
        """How many levels, from the root on, are small enough for a table."""
        cells = [(len(self.starts[level]) - 1) * self.vocabulary[level] for level in range(self.levels)]
        return next((level for level, size in enumerate(cells) if size > DENSE_CELLS), self.levels)

    def _dense(self, level: int) -> Nodes:
        first, labels = self.first[level], self.labels[level]
        table = np.full((len(first) - 1, self.vocabulary[level]), -1, dtype=np.int32)
        parents = np.repeat(np.arange(len(first) - 1), np.diff(first))
        table[parents, labels] = np.arange(len(labels), dtype=np.int32)
        return table


def _check(rows: IntArray, codes: Nodes, vocabulary: tuple[int, ...], size: int) -> None:
    """Refuses arrays that no code table could have given."""
    if codes.ndim != 2 or rows.shape != codes.shape[:1] or not vocabulary or codes.shape[1] != len(vocabulary):
        raise InvalidInput(f"rows {rows.shape}, codes {codes.shape} and {len(vocabulary)} levels do not fit")
    if len(rows) and (rows.min() <= PAD_ROW or rows.max() >= size or len(np.unique(rows)) < len(rows)):
        raise InvalidInput(f"rows of a trie are distinct, above {PAD_ROW} and below {size}")
    if ((codes < 0) | (codes >= np.array(vocabulary))).any():
        raise InvalidInput(f"codes of a trie are at least 0 and below {list(vocabulary)}")
    tied = np.ones(max(len(rows) - 1, 0), dtype=np.bool_)
    for level in range(len(vocabulary)):
        if (tied & (codes[1:, level] < codes[:-1, level])).any():
            raise InvalidInput("codes of a trie stand in lexicographic order")
        tied &= codes[1:, level] == codes[:-1, level]
