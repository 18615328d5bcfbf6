"""How fast a key may call: a bucket of tokens for each, filled at its rate, emptied by its calls.

A bucket holds what comes in during `BURST_S`, so a page that asks for several lists at once is not held up. Buckets are
in this process: with several workers each has its share of the rate, and a caller who keeps to one connection, and so
to one worker, gets only that share.
"""

from collections.abc import Callable

from service import metrics
from service.errors import RateLimited
from service.keys import Key

BURST_S = 1.0  # how much of its rate a key may save up


class Rates:
    """One bucket per key's name; it lives on the event loop and needs no lock.

    Args:
        rate: requests per second of a key that says nothing itself; 0: as many as you like.
        workers: processes that share each rate.
        clock: seconds from some fixed moment.
    """

    def __init__(self, rate: float, *, workers: int = 1, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._workers = workers
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted

    def take(self, key: Key) -> None:
        """One call of a key.

        Raises:
            RateLimited: its bucket is empty; says when a token will be there.
        """
        rate = (self._rate if key.rate is None else key.rate) / self._workers
        if not rate:
            return
        now = self._clock()
        most = max(1.0, rate * BURST_S)
        tokens, at = self._buckets.get(key.name, (most, now))
        tokens = min(most, tokens + (now - at) * rate)
        if tokens < 1:
            self._buckets[key.name] = (tokens, now)
            metrics.LIMITED.labels(key.name, "rate").inc()
            raise RateLimited(key.name, rate, after_s=(1 - tokens) / rate)
        self._buckets[key.name] = (tokens - 1, now)
