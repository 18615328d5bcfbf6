"""Why an item is in a list: of what the model read, the item whose vector points most nearly where its own does.

A model gives no reasons, so this is none that it had; but it is true of the space that it searches in. Nothing is
named that the model did not read: neither an event beyond its window nor an item that it never learnt.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from retrieval.queries import Answer
from retrieval.sequences import PAD_ROW, BoolArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Reads:
    """What one model reads of a history.

    Attributes:
        rows: bool, shape (N + 1,): the items that it knows.
        window: so many of the newest of them.
    """

    rows: BoolArray
    window: int


class Reasons:
    """Finds the nearest item of a history for each item of a list: one matrix product per list.

    Args:
        directions: float32, shape (N + 1, D): item vectors of length one, or zero for items that have none.
        reads: by source of items, what the model behind it reads; items of other sources get no reason.
    """

    def __init__(self, directions: FloatArray, reads: Mapping[str, Reads]) -> None:
        self._directions = directions
        self._pointing: BoolArray = np.asarray(directions.any(axis=1))
        self._all_point = bool(self._pointing[1:].all())
        self._reads = {source: Reads(read.rows & self._pointing, read.window) for source, read in reads.items()}

    def read(self, history: IntArray) -> IntArray:
        """int64: those rows of a history that a model here reads; `nearest` says of them what it says of all.

        Args:
            history: int64, rows, oldest first.
        """
        if not self._reads:
            return history[:0]
        if len(history) <= min(reads.window for reads in self._reads.values()):
            return history
        is_read = np.zeros(len(history), dtype=np.bool_)
        for reads in self._reads.values():
            is_read[np.flatnonzero(reads.rows[history])[-reads.window :]] = True
        return history[is_read]

    def nearest(self, answer: Answer, history: IntArray, *, count: int | None = None) -> IntArray:
        """int64, shape (K,): for each item of an answer the row of the history that is nearest; PAD_ROW for none.

        Args:
            answer: of K items.
            history: int64, rows, oldest first.
            count: for the first so many items alone, K = min(count, items); None means all of them.
        """
        rows, sources = answer.rows, answer.sources
        if count is not None and count < len(rows):
            rows, sources = rows[:count], sources[:count]
        near: IntArray | None = None
        for source, reads in self._reads.items():
            if source not in sources:
                continue
            read = history
            known = reads.rows.take(history)
            if np.count_nonzero(known) < len(known):
                read = history[known]
            read = read[-reads.window :]
            if not len(read):
                continue
            if sources.count(source) == len(sources):  # as nearly always
                return self._of(rows, read)
            if near is None:
                near = np.full(len(rows), PAD_ROW)
            at = np.array([place for place, own in enumerate(sources) if own == source])
            near[at] = self._of(rows[at], read)
        return np.full(len(rows), PAD_ROW) if near is None else near

    def _of(self, rows: IntArray, read: IntArray) -> IntArray:
        likeness = self._directions.take(rows, axis=0) @ self._directions.take(read, axis=0).T
        found: IntArray = read.take(likeness.argmax(axis=1))
        if not self._all_point:
            found[~self._pointing.take(rows)] = PAD_ROW
        return found
