"""Lists with labels: what a ranker learns from. Who was shown or offered which candidates when, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.features import ARRAYS, Candidates, FeatureTables, build
from retrieval.inputs import Request
from retrieval.sequences import FloatArray, IntArray

BATCH = 64  # lists whose features are made at a time


@dataclass(frozen=True, eq=False)
class Lists:
    """R lists of candidates, one behind the other: list r holds the places `offsets[r]` to `offsets[r + 1]`.

    Attributes:
        tasks: T names.
        requests: R requests, each with the history, the time and the context of its moment: nothing from after it.
        offsets: int64, shape (R + 1,).
        rows: int64, shape (n,). Catalog rows, distinct within a list, best first as they were retrieved or shown.
        scores: float32, shape (n,), of the retriever; NaN where it has none.
        labels: float32, shape (n, T): 1 where the task was fulfilled, 0 where not, NaN where nobody knows.
        positions: int64, shape (n,): place on the page, from 1; 0 where the list was not shown but replayed.
        users: int64, shape (R,): for intervals, which go by user.
    """

    tasks: tuple[str, ...]
    requests: Sequence[Request]
    offsets: IntArray
    rows: IntArray
    scores: FloatArray
    labels: FloatArray
    positions: IntArray
    users: IntArray

    def __len__(self) -> int:
        return len(self.requests)

    def span(self, r: int) -> slice:
        """Where list `r` lies."""
        return slice(int(self.offsets[r]), int(self.offsets[r + 1]))

    def candidates(self, which: Sequence[int]) -> list[Candidates]:
        """Some lists, as a ranker is asked for them."""
        return [Candidates(self.requests[r], self.rows[self.span(r)], self.scores[self.span(r)]) for r in which]

    def take(self, which: IntArray) -> Lists:
        """Some of the lists, int64 of shape (R',), in their order."""
        spans = [np.arange(self.offsets[r], self.offsets[r + 1]) for r in which.tolist()]
        places = np.concatenate([np.zeros(0, np.int64), *spans])
        lengths = np.diff(self.offsets)[which]
        return replace(
            self,
            requests=[self.requests[r] for r in which.tolist()],
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            rows=self.rows[places],
            scores=self.scores[places],
            labels=self.labels[places],
            positions=self.positions[places],
            users=self.users[which],
        )


@dataclass(frozen=True, eq=False)
class Arrays:
    """Lists as arrays, padded to the longest: everything that fitting reads.

    Attributes:
        feeds: by name, the arrays of `retrieval.features` for all R lists.
        labels: float32, shape (R, C, T): NaN where nobody knows, and in padding.
        positions: int64, shape (R, C); 0 unknown.
        users: int64, shape (R,).
    """

    feeds: dict[str, npt.NDArray[Any]]
    labels: FloatArray
    positions: IntArray
    users: IntArray

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, tables: FeatureTables, lists: Lists, names: Sequence[str] = ARRAYS) -> Arrays:
        """The features of all lists, made in batches by the function that serves."""
        r, longest = len(lists), int(np.diff(lists.offsets).max(initial=0))
        labels = np.full((r, longest, len(lists.tasks)), np.nan, dtype=np.float32)
        positions = np.zeros((r, longest), dtype=np.int64)
        for at in range(r):
            own = lists.span(at)
            labels[at, : own.stop - own.start] = lists.labels[own]
            positions[at, : own.stop - own.start] = lists.positions[own]
        parts = [  # one at least, so that no list has arrays too
            build(tables, lists.candidates(range(start, min(start + BATCH, r))), names)
            for start in range(0, max(r, 1), BATCH)
        ]
        feeds = {name: _stacked([part.pop(name) for part in parts], name) for name in names}
        return cls(feeds, labels, positions, lists.users)

    def batch(self, which: IntArray) -> dict[str, npt.NDArray[Any]]:
        """The feeds of some lists; codes as int64, as graphs take them, and no column of events that is all padding."""
        out = {name: feed[which] for name, feed in self.feeds.items()}
        if "event_behaviours" in out:
            used = np.flatnonzero((out["event_behaviours"] > 0).any(axis=0))
            start = min(
                int(used[0]) if len(used) else out["event_behaviours"].shape[1], out["event_behaviours"].shape[1] - 1
            )
            for name in ("event_codes", "event_behaviours"):
                if name in out:
                    out[name] = out[name][:, start:]
        return {name: feed.astype(np.int64) if feed.dtype == np.int32 else feed for name, feed in out.items()}


def _stacked(parts: Sequence[npt.NDArray[Any]], name: str) -> npt.NDArray[Any]:
    """Batches one behind the other, padded to one width: candidates at the end, events at the beginning."""
    if parts[0].ndim == 2 and name.startswith("request"):
        whole = np.concatenate(parts)
        return whole.astype(np.int32) if whole.dtype == np.int64 else whole
    width = max(part.shape[1] for part in parts)
    fill = np.nan if parts[0].dtype == np.float32 else 0
    kind = np.float32 if parts[0].dtype == np.float32 else np.int32  # half the memory
    out = np.full((sum(map(len, parts)), width, *parts[0].shape[2:]), fill, dtype=kind)
    start = 0
    for part in parts:
        own = slice(width - part.shape[1], None) if name.startswith("event") else slice(0, part.shape[1])
        out[start : start + len(part), own] = part
        start += len(part)
    return out
