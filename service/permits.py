"""Permits: how many requests may be at work at once. No permit means an immediate refusal, never a growing line."""

from collections.abc import Iterator
from contextlib import contextmanager

from service import metrics
from service.errors import Overloaded


class Permits:
    """A counter with a limit; it lives on the event loop and needs no lock.

    Attributes:
        taken: permits that are out now.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.taken = 0

    def check(self) -> None:
        """Refuses as `hold` would: asked before a body is read, so that an overloaded process does not even parse.

        Raises:
            Overloaded: all are taken.
        """
        if self.taken >= self._limit:
            metrics.SHED.labels("in_flight").inc()
            raise Overloaded(f"{self._limit} requests are at work already; try again", reason="in_flight")

    @contextmanager
    def hold(self) -> Iterator[None]:
        """One permit for as long as the block lasts.

        Raises:
            Overloaded: all are taken.
        """
        self.check()
        self.taken += 1
        metrics.IN_FLIGHT.inc()
        try:
            yield
        finally:
            self.taken -= 1
            metrics.IN_FLIGHT.dec()
