"""How much of the model a key may learn in a day: a budget of distinct query sequences.

A model is copied by asking it thousands of made-up histories; a shop asks about those of its visitors, and again about
the same ones. So what counts is the sequence that the model reads (the newest events of its window that it knows),
whether it came in the body or from the store, once however often it is asked. Lists without a history cost nothing:
they are the popular items and tell nothing of the model.

Each process knows exactly what it was asked, eight bytes a sequence, and once a second tells the store what is new. The
store answers how many there are among all workers and replicas, so that a budget is one budget; between two words of
it, and while it is away, each process goes by what it knows. Once a budget is used up, a repeat is answered by the
process that answered it before.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

from service import metrics
from service.errors import BudgetExhausted, StoreUnavailable
from service.keys import Key

_log = logging.getLogger(__name__)

DAY_S = 86_400  # windows begin at midnight UTC
SHARE_EVERY_S = 1.0
TOLD_AT_ONCE = 1_000  # members in one call of the store
WARN_SHARE = 0.8  # of a budget: said in the log, once a day
KEPT_S = 3_600.0  # how long the store keeps a count after its day, for whoever wants to look


class Counts(Protocol):
    """Counts distinct members under a name, for all processes together; see `service.sessions`."""

    async def count_distinct(self, name: str, members: Sequence[bytes], *, ttl_s: float) -> int: ...


@dataclass(slots=True)
class _Spent:
    """What one key has asked today."""

    budget: int
    seen: set[bytes] = field(default_factory=set)
    unshared: list[bytes] = field(default_factory=list)
    shared: int = 0  # distinct ones among all processes, when the store last said
    is_near: bool = False

    @property
    def count(self) -> int:
        return max(len(self.seen), self.shared + len(self.unshared))


class Budgets:
    """What each key has asked; it lives on the event loop and needs no lock.

    Args:
        budget: distinct sequences per day of a key that says nothing itself; 0: as many as you like.
        now: seconds since 1970.
    """

    def __init__(self, budget: int, *, now: Callable[[], float]) -> None:
        self._budget = budget
        self._now = now
        self._day = 0
        self._spent: dict[str, _Spent] = {}

    def spend(self, key: Key, sequence: bytes) -> None:
        """One query of a key; a sequence that it has asked before today, or an empty one, is free.

        Raises:
            BudgetExhausted: it is a new one, and the budget of the day is used up.
        """
        budget = self._budget if key.budget is None else key.budget
        if not budget or not sequence:
            return
        now = self._now()
        if now // DAY_S != self._day:
            self._day = int(now // DAY_S)
            self._spent.clear()
        spent = self._spent.get(key.name)
        if spent is None:
            spent = self._spent[key.name] = _Spent(budget)
        spent.budget = budget
        member = blake2b(sequence, digest_size=8).digest()
        if member in spent.seen:
            return
        if spent.count >= budget:
            metrics.LIMITED.labels(key.name, "budget").inc()
            raise BudgetExhausted(key.name, budget, after_s=(self._day + 1) * DAY_S - now)
        spent.seen.add(member)
        spent.unshared.append(member)

    async def share(self, store: Counts | None) -> None:
        """Tells the store what is new and hears what others were asked; shows how much of each budget is used.

        Raises:
            StoreUnavailable: the store is away; what it was to hear is told it the next time.
        """
        day = self._day
        for name, spent in list(self._spent.items()):
            if store is not None:
                ttl_s = (day + 1) * DAY_S - self._now() + KEPT_S
                await _tell(store, f"budget:{day}:{name}", spent, ttl_s=max(ttl_s, KEPT_S))
            used = spent.count / spent.budget
            metrics.BUDGET_USED.labels(name).set(used)
            if used >= WARN_SHARE and not spent.is_near:
                spent.is_near = True
                _log.warning("API key %r has used %.0f %% of its query budget of the day", name, 100 * used)

    async def follow(self, store: Counts | None) -> None:
        """Shares for ever, once in `SHARE_EVERY_S`; with no store the counts stay in this process."""
        while True:
            await asyncio.sleep(SHARE_EVERY_S)
            try:
                await self.share(store)
            except StoreUnavailable as error:
                metrics.STORE_ERRORS.labels(error.operation).inc()
            except Exception:  # whatever it is, the next second is another chance, and requests go on
                _log.exception("query budgets could not be shared")


async def _tell(store: Counts, name: str, spent: _Spent, *, ttl_s: float) -> None:
    told = spent.unshared[:TOLD_AT_ONCE]
    while True:
        spent.shared = await store.count_distinct(name, told, ttl_s=ttl_s)
        del spent.unshared[: len(told)]
        told = spent.unshared[:TOLD_AT_ONCE]
        if not told:
            return
