"""Permits: how many requests may be at work at once. No permit means an immediate refusal, never a growing line."""

from collections.abc import Iterator
from contextlib import contextmanager

from service import metrics
from service.errors import Overloaded


class Permits:
    """A counter with a limit; it lives on the event loop and needs no lock."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0

    @contextmanager
    def hold(self) -> Iterator[None]:
        """One permit for as long as the block lasts.

        Raises:
            Overloaded: all are taken.
        """
        if self._taken >= self._limit:
            metrics.SHED.labels("in_flight").inc()
            raise Overloaded(f"{self._limit} requests are at work already; try again", reason="in_flight")
        self._taken += 1
        metrics.IN_FLIGHT.inc()
        try:
            yield
        finally:
            self._taken -= 1
            metrics.IN_FLIGHT.dec()
