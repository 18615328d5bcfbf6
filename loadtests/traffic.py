"""Synthetic readers: who comes, how long they stay, what they click. Seeded, so two runs meet the same people.

Real traffic is skewed and it repeats: few items get most clicks, few users make most visits, most visits are short.
All three are power laws here, truncated so that their tails cannot decide a run. The exponents are round numbers of
that family and no fit to one data set; whoever has a log of their own should set them from it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

LONGEST_HISTORY = 1_000  # events that a request may carry


class PowerLaw:
    """Ranks 0 to n - 1, rank r with a probability proportional to (r + 1) ** -exponent."""

    def __init__(self, n: int, exponent: float) -> None:
        if n < 1:
            raise ValueError(f"a power law over {n} ranks has nothing to draw; at least one is needed")
        weights = np.arange(1, n + 1, dtype=np.float64) ** -exponent
        self._cumulative = np.cumsum(weights / weights.sum())
        self._last = n - 1

    def draw(self, rng: np.random.Generator, size: int) -> npt.NDArray[np.int64]:
        """int64, shape (size,): ranks."""
        found = np.searchsorted(self._cumulative, rng.random(size), side="right")
        return np.minimum(found, self._last).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Habits:
    """What readers are like.

    Attributes:
        users: how many there are to return.
        newcomer_share: share of visits by somebody who was never there.
        user_exponent: skew of visits over users.
        item_exponent: skew of clicks over items.
        visit_exponent: skew of visit lengths.
        longest_visit: clicks.
        past_median: events before the first visit that we see, for users who return; log-normal.
        past_sigma: standard deviation of its logarithm.
        longest_past: events.
        think_s: median seconds between two clicks.
    """

    users: int = 1_000
    newcomer_share: float = 0.1
    user_exponent: float = 0.7
    item_exponent: float = 1.0
    visit_exponent: float = 1.7
    longest_visit: int = 50
    past_median: float = 30.0
    past_sigma: float = 1.0
    longest_past: int = 200
    think_s: float = 5.0


@dataclass(slots=True)
class Visit:
    """One stay of one user. `history` is the past and, as the visit goes on, its clicks."""

    user_id: str
    history: list[str]
    clicks: list[str]
    done: int = field(default=0)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to click."""
        return self.done == len(self.clicks)

    def click(self) -> str:
        """The next item, which is part of the history from now on."""
        item_id = self.clicks[self.done]
        self.done += 1
        self.history.append(item_id)
        return item_id


@dataclass(frozen=True, slots=True)
class Step:
    """One request: an event where there is an `item_id`, else a question for recommendations.

    Attributes:
        user_id: who.
        item_id: what was clicked; None for a question.
        history: the items so far, oldest first.
    """

    user_id: str
    item_id: str | None
    history: tuple[str, ...]


class Readers:
    """A population over one catalog.

    Args:
        item_ids: the catalog, most popular first: what is popular there is clicked most here.
        seed: of everything that is drawn.
        prefix: of user ids, so that runs against one store do not meet each other's users.
        habits: what they are like.
    """

    def __init__(
        self, item_ids: Sequence[str], *, seed: int, prefix: str = "load", habits: Habits | None = None
    ) -> None:
        self.habits = habits or Habits()
        self._ids = item_ids
        self._prefix = prefix
        self._rng = np.random.default_rng(seed)
        self._items = PowerLaw(len(item_ids), self.habits.item_exponent)
        self._users = PowerLaw(self.habits.users, self.habits.user_exponent)
        self._lengths = PowerLaw(self.habits.longest_visit, self.habits.visit_exponent)
        self._histories = {f"{prefix}-{n}": self._past() for n in range(self.habits.users)}
        self._newcomers = 0

    @property
    def pasts(self) -> dict[str, list[str]]:
        """What each user who may return has done so far."""
        return {user_id: list(history) for user_id, history in self._histories.items()}

    def visits(self) -> Iterator[Visit]:
        """Visits without end, some by newcomers."""
        while True:
            clicks = self._clicks(1 + int(self._lengths.draw(self._rng, 1)[0]))
            if self._rng.random() < self.habits.newcomer_share:
                self._newcomers += 1
                yield Visit(f"{self._prefix}-new-{self._newcomers}", [], clicks)
            else:
                user_id = f"{self._prefix}-{int(self._users.draw(self._rng, 1)[0])}"
                yield Visit(user_id, self._histories[user_id], clicks)

    def steps(self, rate: float) -> Iterator[Step]:
        """Requests without end: everybody who is there now takes turns, asking before each click and after the last.

        Args:
            rate: requests per second; with a median `think_s` between two of one person, so many are there at a time.
        """
        arriving = self.visits()
        present = [next(arriving) for _ in range(max(1, round(rate * self.habits.think_s / 2)))]
        has_asked = [False] * len(present)
        while True:
            at = int(self._rng.integers(len(present)))
            visit = present[at]
            if has_asked[at] and visit.is_over:
                visit = present[at] = next(arriving)
                has_asked[at] = False
            if has_asked[at]:
                yield Step(visit.user_id, visit.click(), tuple(visit.history[-LONGEST_HISTORY:]))
            else:
                yield Step(visit.user_id, None, tuple(visit.history[-LONGEST_HISTORY:]))
            has_asked[at] = not has_asked[at]

    def _past(self) -> list[str]:
        drawn = self._rng.lognormal(np.log(self.habits.past_median), self.habits.past_sigma)
        return self._clicks(min(self.habits.longest_past, 1 + int(drawn)))

    def _clicks(self, count: int) -> list[str]:
        return [self._ids[rank] for rank in self._items.draw(self._rng, count)]


def arrivals(rate: float, seconds: float, *, seed: int) -> npt.NDArray[np.float64]:
    """float64, shape (n,): the times of a Poisson process within `seconds`, ascending, in seconds from its start.

    Args:
        rate: arrivals per second, on average.
        seconds: how long.
        seed: of the process.
    """
    rng = np.random.default_rng(seed)
    # The number of a Poisson process in an interval is Poisson, and given their number the times are uniform.
    times: npt.NDArray[np.float64] = np.sort(rng.random(rng.poisson(rate * seconds)) * seconds)
    return times


def click_position(count: int, rng: np.random.Generator) -> int:
    """Which of `count` shown items is clicked: the first most often, as on any list."""
    return int(PowerLaw(count, 1.0).draw(rng, 1)[0])


def visit_length(rng: np.random.Generator, habits: Habits) -> int:
    """How many clicks a visit has."""
    return 1 + int(PowerLaw(habits.longest_visit, habits.visit_exponent).draw(rng, 1)[0])
