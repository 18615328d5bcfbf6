"""How long work takes, learnt while it is done: so much for a batch, and so much for each thing in it.

What is counted are the candidates of a ranking, or the requests of a batch of the model. A line is laid through recent
batches (seconds against how many), older ones counting less. It is never steeper than from nought, as if a batch cost
nothing in itself, and never falls. What a single batch says is believed up to twice of
what was expected, so that one hiccup of the machine does not switch the ranker off for those who come after.

Where nothing was ranked for a while and the time would do if ranking took half as long, a few candidates are ranked all
the same: an estimate that is wrong would never be found to be.
"""

import threading
from collections.abc import Callable

from retrieval.queries import EVERY_CANDIDATE

MEMORY = 0.8  # how much of what earlier batches took is remembered after another one
BELIEVED = 2.0  # times what was expected
TRY_AGAIN_S = 1.0  # how long an estimate that leaves no time for ranking stands
A_FEW = 8


class Pace:
    """See the module. Shared by the worker threads of all pools.

    Args:
        clock: seconds from some fixed moment.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._learnt: float | None = None  # when, on the clock
        # Means over recent batches: candidates, seconds, and of both by candidates.
        self._n = self._s = self._nn = self._ns = 0.0
        self._line = 0.0, 0.0  # seconds of a batch in itself, and of each candidate

    def learn(self, candidates: int, seconds: float) -> None:
        """Remembers what a batch took."""
        if not candidates:
            return
        with self._lock:
            kept = 0.0 if self._learnt is None else MEMORY
            batch_s, each_s = self._line
            expected = batch_s + each_s * candidates
            if expected > 0:
                seconds = min(seconds, BELIEVED * expected)
            self._n = kept * self._n + (1 - kept) * candidates
            self._s = kept * self._s + (1 - kept) * seconds
            self._nn = kept * self._nn + (1 - kept) * candidates * candidates
            self._ns = kept * self._ns + (1 - kept) * candidates * seconds
            self._learnt = self._clock()
            self._line = self._laid()

    def expected(self, count: int) -> float:
        """Seconds that a batch of so many will take; none as long as nothing was learnt."""
        batch_s, each_s = self._line  # one object, so that no lock is needed to read it
        return batch_s + each_s * count

    def affordable(self, seconds: float, requests: int) -> int:
        """How many candidates of each request can be ranked within so many seconds.

        Args:
            seconds: what is left.
            requests: how many are ranked together.
        """
        if seconds <= 0:
            return 0
        with self._lock:
            if self._learnt is None:
                return EVERY_CANDIDATE
            batch_s, each_s = self._line
            count = _count(seconds, batch_s, each_s * requests)
            if not count and self._clock() - self._learnt >= TRY_AGAIN_S:
                return min(A_FEW, _count(2 * seconds, batch_s, each_s * requests))
            return count

    def _laid(self) -> tuple[float, float]:
        """The line through what is remembered."""
        steepest = self._s / self._n if self._n else 0.0
        spread = self._nn - self._n * self._n
        each_s = steepest
        if spread > 1e-9 * self._nn:  # else all batches were of one size
            each_s = min(max((self._ns - self._n * self._s) / spread, 0.0), steepest)
        return self._s - each_s * self._n, each_s


def _count(seconds: float, batch_s: float, each_s: float) -> int:
    left = seconds - batch_s
    if left <= 0:
        return 0
    return int(min(left / each_s, EVERY_CANDIDATE)) if each_s else EVERY_CANDIDATE
