"""How long each stage took: one small timer for the request, the batch, the header, the metric and the log line."""

from collections.abc import Callable
from types import TracebackType


class Timings:
    """Seconds by stage; a stage entered twice adds up. `with timings("state"): ...`"""

    __slots__ = ("_clock", "seconds")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, /) -> "_Span":
        return _Span(self, stage)

    def add(self, stage: str, seconds: float) -> None:
        """Counts time that was measured elsewhere."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def milliseconds(self) -> dict[str, float]:
        """The same in milliseconds, to the microsecond: what people and headers read."""
        # What `round(..., 3)` gives, in a third of its time: the nearest number to so many thousandths.
        return {stage: int(seconds * 1e6 + 0.5) / 1000 for stage, seconds in self.seconds.items()}


class _Span:
    __slots__ = ("_stage", "_started", "_timings")

    def __init__(self, timings: Timings, stage: str) -> None:
        self._timings = timings
        self._stage = stage

    def __enter__(self) -> None:
        self._started = self._timings._clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        timings, stage = self._timings, self._stage
        timings.seconds[stage] = timings.seconds.get(stage, 0.0) + timings._clock() - self._started
