"""The demo catalogue, read from `books.csv`, and the vocabulary that its subjects come from.

Titles, authors, years of first publication, series and subjects are facts (ancient years are approximate; a negative
year is before our era). Series hold their first volumes in the order in which they appeared. Prices and availability
are invented: no shop asks them.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

BOOKS_CSV = Path(__file__).with_name("books.csv")
PERSONAS_JSON = Path(__file__).with_name("personas.json")

# Where a reader of one subject tends to turn next: the first successor is taken more often than the second. The
# arrows have a direction, so the order of a history tells what comes and not only its content.
SUCCESSORS: dict[str, tuple[str, str]] = {
    "adventure": ("historical", "children"),
    "biography": ("travel", "history"),
    "children": ("young adult", "humour"),
    "classics": ("literary", "drama"),
    "crime": ("historical", "classics"),
    "drama": ("humour", "classics"),
    "economics": ("psychology", "mathematics"),
    "fantasy": ("science fiction", "adventure"),
    "history": ("politics", "biography"),
    "historical": ("history", "literary"),
    "horror": ("thriller", "short stories"),
    "humour": ("children", "travel"),
    "literary": ("short stories", "biography"),
    "mathematics": ("philosophy", "science"),
    "nature": ("travel", "science"),
    "philosophy": ("classics", "poetry"),
    "poetry": ("nature", "drama"),
    "politics": ("economics", "philosophy"),
    "psychology": ("philosophy", "literary"),
    "romance": ("historical", "literary"),
    "science": ("philosophy", "nature"),
    "science fiction": ("science", "horror"),
    "short stories": ("poetry", "literary"),
    "thriller": ("crime", "politics"),
    "travel": ("adventure", "history"),
    "young adult": ("fantasy", "romance"),
}
SUBJECTS: tuple[str, ...] = tuple(SUCCESSORS)


@dataclass(frozen=True)
class Book:
    """One row of the catalogue; `series` is empty and `series_index` 0 for a book that stands alone."""

    item_id: str
    title: str
    author: str
    year: int
    categories: tuple[str, ...]
    series: str
    series_index: int
    price: float
    available: bool


def read_books(path: Path = BOOKS_CSV) -> list[Book]:
    """The books of a catalogue file, in the order of the file."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Book(
                item_id=row["item_id"],
                title=row["title"],
                author=row["author"],
                year=int(row["year"]),
                categories=tuple(row["categories"].split("|")),
                series=row["series"],
                series_index=int(row["series_index"] or 0),
                price=float(row["price"]),
                available=row["available"] == "true",
            )
            for row in csv.DictReader(file)
        ]
