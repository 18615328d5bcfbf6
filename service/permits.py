"""Permits: how many requests may be at work at once. No permit means an immediate refusal, never a growing line.

There is a limit that never moves, and below it one that follows what this process can do here and now. Work that has to
wait before it is begun, for the event loop or for the encoder, says how long it waited. Where even the shortest wait of
a while was too long, requests stand in a line that does not get shorter: the limit falls by as much as the wait is too
long. A burst alone does nothing, since somebody in it hardly waited. While all is well and permits run out, it rises
again. At the limit, throughput is what it was and the line is as long as one wanted.

Whoever has waited for a store for long costs this process nothing meanwhile, and lends its permit to others: a store
that hangs must not keep those out who can do without it. A short wait is none of the store's making. Where this process
is late to read its answers, those who wait for them are work that stands in line, and lending their permits at once
would let in as many as come.

Source: the shortest wait as the sign of a standing line is that of Nichols and Jacobson (2012), "Controlling Queue
Delay", section 4; additive rise and multiplicative fall are Chiu and Jain's (1989).
"""

import asyncio
import math
import sys
import time
from collections.abc import Callable

from service import metrics
from service.errors import Overloaded

WINDOW_S = 0.05  # over which the shortest wait is taken
SURE = 3  # waits, of which the shortest says something; until there are so many the window goes on
FIRST = 64  # permits to begin with: a crowd at once must not stand in line before the first window is over
FEWEST = 8  # permits, however slow this process is: enough to fill a batch
LENT_AFTER_S = 0.02  # of waiting for a store: ten times what a healthy one takes
FALL = 0.5  # the most that a window may take away
RISE = 0.1  # of the limit, and one more, that a good window gives back
LOOK_EVERY_S = 0.01  # at the event loop


class Permits:
    """A counter with a limit; it lives on the event loop and needs no lock.

    Args:
        most: the limit that never moves; the other one begins at `FIRST`.
        target_s: how long work may wait before it is begun.
        clock: seconds from some fixed moment.

    Attributes:
        here: requests of the express lane that have begun to come and are not answered.
        taken: permits that are out now.
        limit: how many there are now.
        waiting: how many wait for a store; a part of those that were taken.
    """

    def __init__(
        self, most: int, *, target_s: float = math.inf, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._most = most
        self._fewest = min(FEWEST, most)
        self._target_s = target_s
        self._clock = clock
        self._since = clock()
        # In this window, by what was waited for: the shortest wait, and how many there were.
        self._shortest_s: dict[str, tuple[float, int]] = {}
        self._busiest = 0  # permits that were out at once in this window
        self.here = 0
        self.taken = 0
        self.waiting = 0
        self._waiting: dict[_Lent, float] = {}  # since when
        self.limit = min(FIRST, most)
        metrics.PERMITS.set(self.limit)
        metrics.watch(metrics.IN_FLIGHT, self, lambda permits: permits.taken + permits.waiting)

    def check(self, coming: int = 0) -> None:
        """Refuses as `hold` would: asked before a body is read, so that an overloaded process does not even parse.

        Args:
            coming: requests that are here already, those included that have not come to take their permit.

        Raises:
            Overloaded: all are taken.
        """
        if self.is_full(coming):
            metrics.SHED.labels("in_flight").inc()
            at_work = self._at_work(coming)
            raise Overloaded(f"{at_work} requests are at work already; try again", reason="in_flight")

    def is_full(self, coming: int = 0) -> bool:
        """Whether `check` would refuse."""
        if max(self.taken + self.waiting, coming) < self.limit:  # as nearly always
            return False
        at_work = self._at_work(coming)
        if at_work < self.limit:
            return False
        self._busiest = max(self._busiest, at_work)
        return True

    def _at_work(self, coming: int) -> int:
        """How many requests are here, without those that have waited for a store for long."""
        before, lent = self._clock() - LENT_AFTER_S, 0
        for since in self._waiting.values():  # the longest wait comes first
            if since > before:
                break
            lent += 1
        return max(self.taken + self.waiting, coming) - lent

    def hold(self, *, is_checked: bool = False) -> "_Held":
        """One permit for as long as the block lasts.

        Args:
            is_checked: whether `check` let it in. Who was told to wait is not sent away afterwards, though the
                limit may have fallen meanwhile; only the fixed one counts.

        Raises:
            Overloaded: all are taken.
        """
        return _Held(self, is_checked)

    def lent(self, *, is_bounded: bool = False) -> "_Lent":
        """Within `hold`: a store is waited for in this block; after `LENT_AFTER_S` the permit is lent meanwhile.

        Args:
            is_bounded: whether no more than the fixed limit may do so. A call that has nothing to say without the store
                is better refused then.

        Raises:
            Overloaded: so many wait already.
        """
        return _Lent(self, is_bounded)

    def _take(self, *, is_checked: bool) -> None:
        if not is_checked or self.taken >= self._most:
            self.check()
        self.taken += 1
        self._busiest = max(self._busiest, self._at_work(0))

    def _give_back(self) -> None:
        self.taken -= 1

    def _lend(self, who: "_Lent", *, is_bounded: bool) -> None:
        if is_bounded and self.waiting >= self._most:
            metrics.SHED.labels("store_slow").inc()
            raise Overloaded(f"{self.waiting} requests wait for the session store already", reason="store_slow")
        self.taken -= 1
        self.waiting += 1
        self._waiting[who] = self._clock()

    def _take_again(self, who: "_Lent") -> None:
        del self._waiting[who]
        self.waiting -= 1
        self.taken += 1

    @property
    def is_idle(self) -> bool:
        """Whether nobody is being served, and nobody waits for a store."""
        return not self.taken and not self.waiting

    @property
    def is_alone(self) -> bool:
        """Whether one request is being served, and no other waits for a store or for its turn."""
        return self.taken + self.waiting == 1 and self.here <= 1

    def felt(self, wait_s: float, what: str) -> None:
        """Hears how long some work waited for something before it was begun."""
        shortest_s, count = self._shortest_s.get(what, (math.inf, 0))
        self._shortest_s[what] = min(shortest_s, wait_s), count + 1
        now = self._clock()
        if now - self._since < WINDOW_S:
            return
        # One who waited, or two, may have met a hiccup of the machine, which is no line.
        sure = [shortest_s for shortest_s, count in self._shortest_s.values() if count >= SURE]
        if not sure:
            return
        standing_s = max(sure)
        if standing_s > self._target_s:
            at_work = min(self.limit, max(self._busiest, self._fewest))
            self.limit = max(self._fewest, int(at_work * max(FALL, self._target_s / standing_s)))
        elif self._busiest >= self.limit:
            self.limit = min(self._most, int(self.limit * (1 + RISE)) + 1)
        metrics.PERMITS.set(self.limit)
        self._since, self._busiest = now, self.taken
        self._shortest_s = {what: few for what, few in self._shortest_s.items() if few[1] < SURE}

    async def watch(self) -> None:
        """Feels how late the event loop comes to what is due, for as long as it is not cancelled."""
        due = self._clock()
        while True:
            due += LOOK_EVERY_S
            await asyncio.sleep(max(0.0, due - self._clock()))
            now = self._clock()
            self.felt(max(0.0, now - due), "loop")
            due = max(due, now - LOOK_EVERY_S)


class Unlimited(Permits):
    """For work that nobody waits for: as many as are wanted, and none of them counts."""

    def __init__(self) -> None:
        self.here = self.taken = self.waiting = 0
        self.limit = sys.maxsize

    def _take(self, *, is_checked: bool) -> None: ...

    def _give_back(self) -> None: ...

    def _lend(self, who: "_Lent", *, is_bounded: bool) -> None: ...

    def _take_again(self, who: "_Lent") -> None: ...


class _Held:  # both are classes and no generators, which take five times as long to enter and to leave
    __slots__ = ("_is_checked", "_permits")

    def __init__(self, permits: Permits, is_checked: bool) -> None:
        self._permits, self._is_checked = permits, is_checked

    def __enter__(self) -> None:
        self._permits._take(is_checked=self._is_checked)

    def __exit__(self, *_: object) -> None:
        self._permits._give_back()


class _Lent:
    __slots__ = ("_is_bounded", "_permits")

    def __init__(self, permits: Permits, is_bounded: bool) -> None:
        self._permits, self._is_bounded = permits, is_bounded

    def __enter__(self) -> None:
        self._permits._lend(self, is_bounded=self._is_bounded)

    def __exit__(self, *_: object) -> None:
        self._permits._take_again(self)
