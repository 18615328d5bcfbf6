"""Users whose histories are code words: an answer shows whose history it was made from.

A pool of items is in every question, as the filter's `include_ids`. Each user has clicked a handful of them that is
nobody else's, all of the same size, so that no user's handful holds another's. A model that hides what was seen answers
with the rest of the pool, and what is missing spells the owner of the history.

During a run users click items outside the pool, each in an order of their own, and the latest of these are in their
questions, too: an acknowledged click has to be missing from the next answer. Event ids carry the user's id, so that a
history that is read back shows strangers as well.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import numpy as np

from loadtests.target import LoadError
from loadtests.traffic import PowerLaw

POOL = 16  # items: 1,820 handfuls of four
RECENT = 4  # of a user's clicks that are asked about; with the pool an answer of 20, the usual size
CLICKS = 0.4  # share of events among requests
SKEW = 0.3  # of visits over users


@dataclass(frozen=True, slots=True)
class Step:
    """One request: an event where there is an `item_id`, else a question among some items."""

    user_id: str
    item_id: str | None = None
    event_id: str | None = None
    among: frozenset[str] = frozenset()

    @property
    def path(self) -> str:
        """Where it goes."""
        return "/v1/recommendations" if self.item_id is None else "/v1/events"

    @property
    def body(self) -> Mapping[str, Any]:
        """What it says."""
        if self.item_id is None:
            among = sorted(self.among)
            return {"user_id": self.user_id, "k": len(among), "filter": {"include_ids": among}, "exclude_seen": True}
        return {"events": [{"user_id": self.user_id, "item_id": self.item_id, "event_id": self.event_id}]}


class People:
    """Users of one run.

    Args:
        item_ids: what may be shown, most popular first.
        count: of users.
        seed: of everything that is drawn.
        prefix: of their ids, so that two runs never meet each other's users.

    Raises:
        LoadError: the catalog is too small for so many different histories.
    """

    def __init__(self, item_ids: Sequence[str], *, count: int, seed: int, prefix: str) -> None:
        size = min(POOL, len(item_ids) // 2)
        handful = max(1, size // 4)
        if comb(size, handful) < count:
            raise LoadError(
                f"{len(item_ids)} items give {comb(size, handful)} users histories of their own, and {count} are "
                "wanted; lower --users or serve a larger catalog"
            )
        self.pool = tuple(item_ids[:size])
        self.ids = [f"{prefix}-{n}" for n in range(count)]
        self._rng = np.random.default_rng(seed)
        words = list(itertools.islice(itertools.combinations(self.pool, handful), 10 * count))
        self._codes = [words[at] for at in self._rng.permutation(len(words))[:count]]
        others = list(item_ids[size:])
        self._orders = [[others[at] for at in self._rng.permutation(len(others))] for _ in self.ids]
        self._clicked = [0] * count
        self._visits = PowerLaw(count, SKEW)

    def pasts(self) -> list[Step]:
        """The events to be told before a run: everybody's handful."""
        return [
            Step(user_id, item_id, f"{user_id}.past{n}")
            for user_id, code in zip(self.ids, self._codes, strict=True)
            for n, item_id in enumerate(code)
        ]

    def steps(self, count: int) -> Iterator[Step]:
        """The next requests of everybody, mixed."""
        users = self._visits.draw(self._rng, count)
        clicks = self._rng.random(count) < CLICKS
        for user, is_click in zip(users.tolist(), clicks.tolist(), strict=True):
            user_id, order, done = self.ids[user], self._orders[user], self._clicked[user]
            if is_click:
                self._clicked[user] += 1
                yield Step(user_id, order[done % len(order)], f"{user_id}.{done}")
            else:
                recent = {order[at % len(order)] for at in range(max(0, done - RECENT), done)}
                yield Step(user_id, among=frozenset(self.pool).union(recent))


def owner(event_id: str) -> str:
    """Whose event it is."""
    return event_id.rpartition(".")[0]
