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
            count: look at so many of the first items only.
        """
        if count is not None and count < len(answer):
            answer = Answer(answer.rows[:count], answer.scores[:count], answer.sources[:count])
        near = np.full(len(answer), PAD_ROW)
        for source, reads in self._reads.items():
            share = answer.sources.count(source)
            if not share:
                continue
            read = history[reads.rows[history]][-reads.window :]
            if not len(read):
                continue
            if share == len(answer):
                near = self._of(answer.rows, read)
            else:
                at = np.array([place for place, own in enumerate(answer.sources) if own == source])
                near[at] = self._of(answer.rows[at], read)
        return near

    def _of(self, rows: IntArray, read: IntArray) -> IntArray:
        likeness = self._directions[rows] @ self._directions[read].T
        found: IntArray = read[likeness.argmax(axis=1)]
        found[~self._pointing[rows]] = PAD_ROW
        return found
