"""A shop whose visitors' minds are known: logged lists with clicks, likes and purchases, the same for a seed.

There are U users and N items; z(x) is x less its mean, divided by its deviation.

- An item has a category, a price, and a quality that nobody sees and that correlates by a half with the logarithm of
  the price. Its hidden vector is its category's plus one of its own; a user's lies likewise about that of a favourite
  category, the user's `segment`.
- What a user thinks of an item: taste = user vector . item vector / sqrt(D), and sting = thrift * z(log price).
- A list has `PLACES` places. Each is filled with the best item left by taste + quality + noise, or, with probability
  `EXPLORED`, with any item left.
- The item at place p is examined with probability p^-`FADING`, whatever it is. Only what is examined can be clicked,
  and only what is clicked can be liked or bought. Given that, with s the logistic function:

      click     s(-0.5 + 1.5 taste + 0.5 quality)
      like      s(-0.5 + 1.0 taste + 1.5 quality)
      purchase  s(-1.0 + 0.5 taste - 1.5 sting)

- A click lasts exp(3 + 0.5 taste + 0.5 noise) seconds, which is its value.

What a ranker free of position bias should say is `Simulation.truth`: the probabilities of an item that is examined.
Quality costs, so a list for likes and a list for purchases are different lists. Layout `csv` reads what is written;
what users did in it is `models.impressions.feedback` of that log.

    python -m models.simulator --out shop
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from models.impressions import IMPRESSION
from models.progress import Progress
from retrieval.errors import InvalidInput, SequiturError
from retrieval.sequences import IntArray

TASKS = ("click", "like", "purchase")
PLACES = 10
EXPLORED = 0.2
FADING = 0.7
CATEGORIES = ("bread", "cheese", "fruit", "herbs", "honey", "nuts", "oil", "tea")
START_S, DAY_S = 1_700_000_000, 86_400

_DIMENSIONS = 6
_OWN = 0.7  # how long a vector of one's own is, beside that of a category
_DELAY_S = {IMPRESSION: 0, "click": 0, "like": 3, "purchase": 6}  # after the place was reached
_PER_PLACE_S = 10

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Simulation:
    """What was logged, and what nobody outside could know.

    Attributes:
        events: the log, by time: `user_id`, `item_id`, `timestamp`, `event_type` (of `TASKS`, or an impression),
            `value`, `session_id`, and as context `recommendation_id` and, of impressions, `position` and `score` (by
            which the item was chosen).
        items: `item_id`, `categories`, `price`.
        users: `user_id`, `segment`.
        probabilities: float64, shape (U, N + 1, T): see `truth`; 0 for PAD_ROW.
        propensities: float64, shape (PLACES + 1,): the probability that a place is examined; 0 for place 0.
    """

    events: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    probabilities: Values
    propensities: Values

    def truth(self, user: int, rows: IntArray) -> Values:
        """float64, shape (n, T): the probability of each of `TASKS` for items that are examined.

        Args:
            user: from 0, in the order of `users`, in which the log names them, too.
            rows: int64, shape (n,): of the catalog that log and items make.
        """
        return self.probabilities[user, rows]

    def write(self, folder: Path) -> None:
        """Writes `events.csv`, `items.csv` and `users.csv`, each whole or not at all: what layout `csv` finds."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, frame in (("events", self.events), ("items", self.items), ("users", self.users)):
            part = folder / f"{name}.csv.part"
            frame.write_csv(part)
            part.replace(folder / f"{name}.csv")


def simulate(*, users: int = 400, items: int = 200, lists: int = 8, seed: int = 7) -> Simulation:
    """The log of some users.

    Args:
        users: U.
        items: N.
        lists: how many each user is shown, one a day.
        seed: of the only random generator used.

    Raises:
        InvalidInput: no user or list, or fewer items than a list has places.
    """
    if users < 1 or lists < 1 or items < PLACES:
        raise InvalidInput(
            f"{users} users, {lists} lists each and {items} items: at least 1, 1 and {PLACES} (places) are needed"
        )
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(len(CATEGORIES), _DIMENSIONS))
    category, segment = rng.integers(len(CATEGORIES), size=items), rng.integers(len(CATEGORIES), size=users)
    of_items = centres[category] + _OWN * rng.normal(size=(items, _DIMENSIONS))
    of_users = centres[segment] + _OWN * rng.normal(size=(users, _DIMENSIONS))
    dear = rng.normal(size=items)
    quality = 0.5 * dear + np.sqrt(0.75) * rng.normal(size=items)
    taste = of_users @ of_items.T / np.sqrt(_DIMENSIONS)
    sting = rng.gamma(2.0, 0.5, size=(users, 1)) * (dear - dear.mean()) / dear.std()
    chances = {
        "click": _logistic(-0.5 + 1.5 * taste + 0.5 * quality),
        "like": _logistic(-0.5 + 1.0 * taste + 1.5 * quality),
        "purchase": _logistic(-1.0 + 0.5 * taste - 1.5 * sting),
    }
    propensities = np.concatenate([[0.0], np.arange(1, PLACES + 1) ** -FADING])
    days = []
    for day in range(lists):
        scores = taste + quality + rng.normal(size=taste.shape)
        shown = _shown(scores, rng)
        user = np.repeat(np.arange(users), PLACES)
        item, place = shown.ravel(), np.tile(np.arange(1, PLACES + 1), users)
        clicked = (rng.random(len(user)) < propensities[place]) & (rng.random(len(user)) < chances["click"][user, item])
        happened = {name: clicked & (rng.random(len(user)) < chances[name][user, item]) for name in TASKS[1:]}
        seconds = np.exp(3 + 0.5 * taste[user, item] + 0.5 * rng.normal(size=len(user)))
        # On the first day users come in their order, later in any.
        turn = np.arange(users) if day == 0 else rng.permutation(users)
        days.append(
            pl.DataFrame(
                {
                    "user": user,
                    "item": item,
                    "day": np.full(len(user), day),
                    "begun": START_S + DAY_S * day + (turn * (DAY_S // 2) // users)[user],
                    "position": place,
                    "score": scores[user, item].round(6),
                    "value": seconds.round(1),
                    IMPRESSION: np.ones(len(user), dtype=np.bool_),
                    "click": clicked,
                    **happened,
                }
            )
        )
    user_ids, item_ids = _ids("u", users), _ids("i", items)
    both = [chances["click"] * chances[name] if name != "click" else chances[name] for name in TASKS]
    return Simulation(
        events=_events(pl.concat(days), user_ids, item_ids),
        items=pl.DataFrame(
            {
                "item_id": item_ids,
                "categories": [CATEGORIES[at] for at in category],
                "price": np.exp(2.5 + 0.7 * dear).round(2),
            }
        ),
        users=pl.DataFrame({"user_id": user_ids, "segment": [CATEGORIES[at] for at in segment]}),
        probabilities=np.pad(np.stack(both, axis=2), ((0, 0), (1, 0), (0, 0))),
        propensities=propensities,
    )


def _shown(scores: Values, rng: np.random.Generator) -> IntArray:
    """int64, shape (U, PLACES): items from 0, the first place first."""
    left, users = scores.copy(), np.arange(len(scores))
    out = np.empty((len(scores), PLACES), dtype=np.int64)
    for place in range(PLACES):
        any_left = np.where(np.isneginf(left), -1.0, rng.random(left.shape)).argmax(axis=1)
        explored = rng.random(len(left)) < EXPLORED
        out[:, place] = np.where(explored, any_left, left.argmax(axis=1))
        left[users, out[:, place]] = -np.inf
    return out


def _events(cells: pl.DataFrame, user_ids: Sequence[str], item_ids: Sequence[str]) -> pl.DataFrame:
    """The log, from what was shown (a row each) and what came of it."""
    reached = pl.col("begun") + _PER_PLACE_S * pl.col("position")
    kinds = []
    for kind, delay in _DELAY_S.items():
        is_shown = kind == IMPRESSION
        kinds.append(
            cells.filter(kind).with_columns(
                pl.lit(kind).alias("event_type"),
                (pl.col("begun") if is_shown else reached + delay).alias("timestamp"),
                *(pl.lit(None).alias(name) for name in ([] if is_shown else ["position", "score"])),
                *(pl.lit(None).alias(name) for name in ([] if kind == "click" else ["value"])),
            )
        )
    ordered = pl.concat(kinds, how="vertical_relaxed").sort("timestamp", "user", maintain_order=True)
    visit = pl.col("user_id") + "-" + pl.col("day").cast(pl.String)
    return ordered.with_columns(
        pl.Series("user_id", user_ids).gather(ordered["user"]), pl.Series("item_id", item_ids).gather(ordered["item"])
    ).select(
        "user_id",
        "item_id",
        "timestamp",
        "event_type",
        "value",
        visit.alias("session_id"),
        visit.alias("recommendation_id"),
        "position",
        "score",
    )


def _ids(letter: str, n: int) -> list[str]:
    return [f"{letter}{number:0{len(str(n))}d}" for number in range(1, n + 1)]


def _logistic(x: Values) -> Values:
    return 1 / (1 + np.exp(-x))


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes a simulated log; 0 when it stands."""
    parser = argparse.ArgumentParser(prog="python -m models.simulator", description="Write a simulated log.")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    for name, default in (("users", 400), ("items", 200), ("lists", 8), ("seed", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = vars(parser.parse_args(arguments))
    out, progress = options.pop("out"), Progress()
    try:
        made = simulate(**options)
        made.write(out)
    except SequiturError as error:
        progress.say(f"{error.code}: {error}")
        return 2
    progress.say(
        f"{made.events.height:,} events of {made.users.height:,} users and {made.items.height:,} items at {out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
