"""Simulated readers of the demo catalogue: an event log with known structure, the same for a seed on every machine.

What is in the log to be learned, from the easy to the hard:

- popularity is skewed, and every choice has some of it;
- the next volume follows a volume: at once for readers who go through a series in one sweep, after another book for
  those who alternate, after four others for the patient;
- whoever has met an author twice of late goes on to the other books of that author;
- taste sits on a subject, and after some twelve books moves along the arrows of `books.SUCCESSORS`: where a reader
  stands is seen in the last books, and where the reader is heading in their order;
- most readers keep two tastes going and take them in turn, so that the book before last tells more than the last.

Every weight is a whole number held in float64. Sums and products of those are exact in any order, so neither the BLAS
nor the vector width of a machine can tip a draw.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.demo.books import SUBJECTS, SUCCESSORS, Book
from retrieval.errors import InvalidInput

START_S = 1_672_531_200  # 2023-01-01 00:00 UTC
HORIZON_DAYS = 730
DAY_S = 86_400
MIN_LENGTH, MAX_LENGTH = 5, 60
BOOKS_PER_READER = 4  # the catalogue must be this many times MAX_LENGTH at least, or tastes run dry

# Books that nearly everybody has met take the first ranks of popularity, so that the popular list looks like one.
FAMOUS = (
    "harry-potter-and-the-philosophers-stone",
    "nineteen-eighty-four",
    "pride-and-prejudice",
    "the-hobbit",
    "sapiens",
    "the-handmaids-tale",
    "to-kill-a-mockingbird",
    "the-fellowship-of-the-ring",
    "the-great-gatsby",
    "thinking-fast-and-slow",
    "one-hundred-years-of-solitude",
    "dune",
    "the-hunger-games",
    "normal-people",
    "my-brilliant-friend",
    "a-game-of-thrones",
    "the-girl-with-the-dragon-tattoo",
    "a-brief-history-of-time",
    "the-little-prince",
    "crime-and-punishment",
    "the-shining",
    "and-then-there-were-none",
    "the-hitchhikers-guide-to-the-galaxy",
    "meditations",
    "beloved",
    "the-martian",
    "wolf-hall",
    "a-study-in-scarlet",
    "educated",
    "things-fall-apart",
)
TOP_WEIGHT, POPULARITY_EXPONENT = 1000, 0.5
OPENING_WEIGHT = 2  # a series is better known than its first volume alone would be

STAY = 0.92  # the chance to stay on a subject from one book to the next: twelve books on average
FIRST_SUCCESSOR = 0.8
TASTE_NOW, TASTE_BEFORE = 7, 1  # weights of the present subject and of the one before it
TWO_TASTES = 0.7  # the share of readers who keep two tastes and take them in turn
MAIN_SUBJECT = 2  # the first subject of a book counts this much, the others 1

OPEN, LOCKED, READ = 16, 1, 0  # weight of a book at hand, of a volume whose predecessor is unread, of a book read

# The chance to take up the next volume, by style (one row each: in one sweep, alternating, patient) and by how many
# other books were read since the last volume (columns; the last one stands for all beyond).
CONTINUE = np.array(
    [
        [0.95, 0.95, 0.95, 0.95, 0.95],
        [0.02, 0.95, 0.95, 0.95, 0.95],
        [0.02, 0.02, 0.02, 0.02, 0.90],
    ]
)
COMMIT_FIRST, COMMIT_LATER = 0.92, 0.97  # the chance to want the next volume after a first and after a later one
RESUME_PARKED = 0.1  # instead of the newest open series, the one before it

AUTHOR_MEMORY = 8  # books
FOLLOW = 0.75  # the chance to look for an author who was met twice within memory
FOLLOW_WEIGHT = 500  # how much more the books of a followed author weigh

NEW_SESSION = 0.45
EVENT_TYPES = np.array(["view", "purchase", "like"])
EVENT_SHARES = (0.5, 0.85)  # cumulative: half are views, the next 0.35 purchases, the rest likes


@dataclass(frozen=True)
class Events:
    """An event log in columns of equal length, ordered by time.

    `user_id`, `item_id` and `event_type` are strings; `timestamp` is int64, seconds since 1970; `value` is float64:
    the price of a purchase, 4 or 5 stars of a like, NaN for a view.
    """

    user_id: NDArray[np.str_]
    item_id: NDArray[np.str_]
    timestamp: NDArray[np.int64]
    event_type: NDArray[np.str_]
    value: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.timestamp)

    def columns(self) -> dict[str, NDArray]:
        """Name to column, in the order of the event format; what a data frame is made of."""
        return dict(vars(self))

    def write_csv(self, path: Path) -> None:
        """Write the log as CSV with a header; a missing value is an empty field."""
        values = ["" if np.isnan(value) else repr(value) for value in self.value.tolist()]
        columns = [self.user_id, self.item_id, self.timestamp.tolist(), self.event_type, values]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns())
            writer.writerows(zip(*columns, strict=True))


def simulate(books: Sequence[Book], *, readers: int = 4000, seed: int = 7) -> Events:
    """The log of `readers` simulated readers over about two years; nobody reads a book twice.

    Args:
        books: the catalogue, from `read_books`.
        readers: how many readers, at least 1.
        seed: of the only random generator used.

    Raises:
        InvalidInput: no readers, a catalogue too small for the longest histories, or a subject without successors.
    """
    if readers < 1:
        raise InvalidInput(f"readers is {readers}: a log needs at least 1 reader")
    if len(books) < BOOKS_PER_READER * MAX_LENGTH:
        raise InvalidInput(
            f"{len(books)} books: histories of up to {MAX_LENGTH} need at least {BOOKS_PER_READER * MAX_LENGTH}; "
            "use models/demo/books.csv"
        )
    if unknown := {name for book in books for name in book.categories} - set(SUBJECTS):
        raise InvalidInput(
            f"subjects {sorted(unknown)} are not in books.SUCCESSORS: add them there with two successors"
        )
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.rint(np.exp(rng.normal(2.85, 0.65, readers))), MIN_LENGTH, MAX_LENGTH).astype(np.int64)
    chosen = _choose(_Shelf.of(books, rng), lengths, rng)
    reader = np.repeat(np.arange(readers), lengths)
    timestamp = _times(reader, lengths, rng)
    kind = np.searchsorted(EVENT_SHARES, rng.random(len(reader)), side="right")
    stars = rng.integers(4, 6, len(reader)).astype(np.float64)
    prices = np.array([book.price for book in books])
    value = np.select([kind == 0, kind == 1], [np.full(len(reader), np.nan), prices[chosen]], stars)
    width = max(4, len(str(readers)))
    names = np.array([f"reader-{number + 1:0{width}d}" for number in range(readers)])
    ids = np.array([book.item_id for book in books])
    order = np.argsort(timestamp, kind="stable")
    return Events(
        user_id=names[reader][order],
        item_id=ids[chosen][order],
        timestamp=timestamp[order],
        event_type=EVENT_TYPES[kind][order],
        value=value[order],
    )


@dataclass(frozen=True)
class _Shelf:
    """The catalogue as arrays; N books, S subjects. Book numbers start at 0, and -1 is no book."""

    popularity: NDArray[np.float64]  # (N,)
    subjects: NDArray[np.float64]  # (S, N): MAIN_SUBJECT, 1 or 0
    author: NDArray[np.int64]  # (N,)
    following: NDArray[np.int64]  # (N,): the next volume
    first: NDArray[np.bool_]  # (N,): stands alone or opens a series

    @classmethod
    def of(cls, books: Sequence[Book], rng: np.random.Generator) -> "_Shelf":
        number = {book.item_id: place for place, book in enumerate(books)}
        volume = {(book.series, book.series_index): place for place, book in enumerate(books) if book.series}
        subjects = np.zeros((len(SUBJECTS), len(books)))
        for place, book in enumerate(books):
            subjects[[SUBJECTS.index(name) for name in book.categories], place] = 1
            subjects[SUBJECTS.index(book.categories[0]), place] = MAIN_SUBJECT
        authors = sorted({book.author for book in books})
        famous = [number[item_id] for item_id in FAMOUS if item_id in number]
        others = rng.permutation(np.setdiff1d(np.arange(len(books)), famous))
        popularity = np.empty(len(books))
        ranks = np.arange(1, len(books) + 1)
        popularity[[*famous, *others]] = np.rint(TOP_WEIGHT / ranks**POPULARITY_EXPONENT)
        popularity[[place for (_, index), place in volume.items() if index == 1]] *= OPENING_WEIGHT
        return cls(
            popularity=popularity,
            subjects=subjects,
            author=np.array([authors.index(book.author) for book in books]),
            following=np.array([volume.get((book.series, book.series_index + 1), -1) for book in books]),
            first=np.array([book.series_index <= 1 for book in books]),
        )


class _Tastes:
    """Where each of R readers stands on the map of subjects, with one taste or with two that take turns."""

    def __init__(self, readers: int, rng: np.random.Generator) -> None:
        self.successors = np.array([[SUBJECTS.index(name) for name in SUCCESSORS[subject]] for subject in SUBJECTS])
        self.now = rng.integers(len(SUBJECTS), size=(2, readers))
        self.before = self.now.copy()
        self.turn = np.zeros(readers, dtype=np.int64)
        self.step = (rng.random(readers) < TWO_TASTES).astype(np.int64)  # 0 keeps the turn, 1 passes it on

    def move(self, rng: np.random.Generator) -> None:
        """Go on by one book: some readers turn to a successor of a subject, some change to their other taste."""
        self.turn ^= self.step
        moves = rng.random(self.now.shape) >= STAY
        second = (rng.random(self.now.shape) >= FIRST_SUCCESSOR).astype(np.int64)
        self.before = np.where(moves, self.now, self.before)
        self.now = np.where(moves, self.successors[self.now, second], self.now)

    def weights(self, active: NDArray[np.int64]) -> NDArray[np.float64]:
        """(len(active), S): how much each active reader cares for each subject at this turn."""
        taste = np.zeros((len(active), len(SUBJECTS)))
        row, turn = np.arange(len(active)), self.turn[active]
        taste[row, self.now[turn, active]] += TASTE_NOW
        taste[row, self.before[turn, active]] += TASTE_BEFORE
        return taste


class _Threads:
    """The open series of R readers: the next volume of the newest one, and of the one that was parked for it."""

    def __init__(self, readers: int, rng: np.random.Generator) -> None:
        self.style = rng.integers(len(CONTINUE), size=readers)
        self.newest = np.full(readers, -1)
        self.parked = np.full(readers, -1)
        self.others = np.zeros(readers, dtype=np.int64)  # other books read since the last volume

    def volumes(self, active: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """(len(active),): the volume that each reader takes up now, -1 where another kind of choice is made."""
        chance = CONTINUE[self.style[active], np.minimum(self.others[active], CONTINUE.shape[1] - 1)]
        back = (self.parked[active] >= 0) & (rng.random(len(active)) < RESUME_PARKED)
        volume = np.where(back, self.parked[active], self.newest[active])
        return np.where(rng.random(len(active)) < chance, volume, -1)

    def read(self, active: NDArray[np.int64], item: NDArray[np.int64], following: NDArray[np.int64]) -> None:
        """Take note of the book that each active reader has read, and of the volume wanted after it (-1: none)."""
        newest, parked = self.newest[active], self.parked[active]
        continues = (item == newest) | (item == parked)
        newest = np.where((item == newest) | (following == newest), -1, newest)
        parked = np.where((item == parked) | (following == parked), -1, parked)
        waiting = np.where(newest >= 0, newest, parked)
        opens = following >= 0
        self.newest[active] = np.where(opens, following, waiting)
        self.parked[active] = np.where(opens, waiting, np.where(newest >= 0, parked, -1))
        self.others[active] = np.where(opens | continues, 0, self.others[active] + 1)


def _choose(shelf: _Shelf, lengths: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """The numbers of the books that were read, reader after reader, each in reading order; (sum of lengths,)."""
    readers = len(lengths)
    tastes, threads = _Tastes(readers, rng), _Threads(readers, rng)
    door = np.tile(np.where(shelf.first, OPEN, LOCKED).astype(np.uint8), (readers, 1))
    log = np.full((readers, MAX_LENGTH), -1)
    met = np.full((readers, MAX_LENGTH), -1)  # authors
    authors = int(shelf.author.max()) + 1
    for step in range(MAX_LENGTH):
        active = np.flatnonzero(lengths > step)
        tastes.move(rng)
        # The 1 keeps every book possible: this is where popularity comes in as noise.
        weights = (1 + (tastes.weights(active) @ shelf.subjects) ** 2) * shelf.popularity * door[active]
        follows = np.flatnonzero(rng.random(len(active)) < FOLLOW)
        times = _times_met(met[active[follows], max(0, step - AUTHOR_MEMORY) : step], authors)
        weights[follows] *= np.where(times[:, shelf.author] > 1, FOLLOW_WEIGHT, 1)
        heap = np.cumsum(weights, axis=1)
        draw = np.floor(rng.random(len(active)) * heap[:, -1])
        volume = threads.volumes(active, rng)
        item = np.where(volume >= 0, volume, (heap <= draw[:, None]).sum(axis=1))
        log[active, step], met[active, step] = item, shelf.author[item]
        door[active, item] = READ
        following = shelf.following[item]
        unlocked = (following >= 0) & (door[active, following] == LOCKED)
        door[active[unlocked], following[unlocked]] = OPEN
        commits = rng.random(len(active)) < np.where(shelf.first[item], COMMIT_FIRST, COMMIT_LATER)
        threads.read(active, item, np.where(commits & (door[active, following] != READ), following, -1))
    return log[log >= 0]


def _times_met(recent: NDArray[np.int64], authors: int) -> NDArray[np.int64]:
    """(len(recent), authors): how often each author is among the recent books of each reader."""
    place = recent + authors * np.arange(len(recent))[:, None]
    return np.bincount(place.ravel(), minlength=len(recent) * authors).reshape(len(recent), authors)


def _times(reader: NDArray[np.int64], lengths: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Strictly increasing times per reader, seconds since 1970: sessions on different days, mostly in the evening.

    Args:
        reader: (E,), the reader of each event, reader after reader.
        lengths: (R,), events per reader.
        rng: the generator of the simulation.
    """
    events = len(reader)
    opens = rng.random(events) < NEW_SESSION
    opens[np.cumsum(lengths) - lengths] = True
    session = np.cumsum(opens) - 1
    owner = reader[opens]
    sessions = np.bincount(owner, minlength=len(lengths))
    nth = np.arange(len(owner)) - np.repeat(np.cumsum(sessions) - sessions, sessions)
    # Each reader is there for a part of the two years. Adding `nth` puts at least a day between two sessions.
    spare = np.floor((HORIZON_DAYS - sessions) * (0.15 + 0.85 * rng.random(len(lengths))))
    arrival = np.floor((HORIZON_DAYS - sessions - spare) * rng.random(len(lengths)))
    spread = rng.random(len(owner))
    spread = spread[np.lexsort((spread, owner))]
    day = arrival[owner] + np.floor(spread * spare[owner]) + nth
    evening = np.maximum(rng.random(len(owner)), rng.random(len(owner)))
    start = START_S + day.astype(np.int64) * DAY_S + (3600 * (9 + 13 * evening)).astype(np.int64)
    pause = 30 + (870 * rng.random(events) ** 2).astype(np.int64)  # seconds between two books of a session
    elapsed = np.cumsum(pause)
    return start[session] + elapsed - elapsed[opens][session]
