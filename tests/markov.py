"""A log whose structure is known: each item is followed by its one successor, or now and then by any item.

What a perfect model reaches on it can be written down, a popular list is nearly useless, and only the newest event
matters, so that a history in the wrong order is worth nothing.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.histories import Histories

FAITHFUL = 0.8  # share of events that are the successor of the one before


@dataclass(frozen=True)
class Chain:
    """A log of known structure and the bundle of a model that was trained on it.

    Attributes:
        log: CSV; `items.csv` beside it where its items have titles.
        bundle: directory; nobody writes into it.
        said: what the training said while it ran.
        printed: what it printed at its end.
    """

    log: Path
    bundle: Path
    said: str
    printed: str


def successors(items: int, *, seed: int = 0) -> np.ndarray:
    """int64, shape (N + 1,): which row follows each row; one cycle through all of them."""
    order = np.random.default_rng(seed).permutation(items) + 1
    follows = np.zeros(items + 1, dtype=np.int64)
    follows[order] = np.roll(order, -1)
    return follows


def sequences(users: int, length: int, *, items: int, seed: int = 1) -> list[list[int]]:
    """The rows of each user's events, oldest first."""
    rng, follows = np.random.default_rng(seed), successors(items)
    out = []
    for _ in range(users):
        rows = [int(rng.integers(1, items + 1))]
        while len(rows) < length:
            is_faithful = rng.random() < FAITHFUL
            rows.append(int(follows[rows[-1]] if is_faithful else rng.integers(1, items + 1)))
        out.append(rows)
    return out


def histories(users: int, length: int, *, items: int, seed: int = 1) -> Histories:
    """The same as training reads it."""
    return Histories.from_rows(sequences(users, length, items=items, seed=seed))


def write_csv(path: Path, users: int, length: int, *, items: int, seed: int = 1) -> Path:
    """The same as an event log; row 7 is called `i7`."""
    lines = ["user_id,item_id,timestamp"]
    for user, rows in enumerate(sequences(users, length, items=items, seed=seed)):
        lines += [f"u{user},i{row},{1000 * user + t}" for t, row in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_items(path: Path, *, items: int) -> Path:
    """An item table: titles that say something of every item but the last."""
    things, colours = ("lamp", "chair", "kettle", "shirt"), ("red", "blue", "green")
    lines = [f"i{row},{colours[row % 3]} {things[row % 4]} {row}" for row in range(1, items)]
    path.write_text("\n".join(["item_id,title", *lines, f"i{items},"]) + "\n")
    return path


def best_ndcg(items: int, k: int = 10) -> float:
    """NDCG@k of a model that knows everything, seen items kept: the successor first, then any other items."""
    other = (1 - FAITHFUL) / items
    return FAITHFUL + other * sum(1 / np.log2(rank + 1) for rank in range(1, k + 1))
