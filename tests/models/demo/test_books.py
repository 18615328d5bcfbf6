"""The demo catalogue: facts that can be checked, and that every reader of the file sees the same."""

import csv
import json
from collections import defaultdict

import polars as pl
import pytest

from models.demo.books import BOOKS_CSV, PERSONAS_JSON, SUBJECTS, SUCCESSORS, Book, read_books
from models.demo.readers import FAMOUS, MAX_LENGTH

COLUMNS = ["item_id", "title", "author", "year", "categories", "series", "series_index", "price", "available"]


@pytest.fixture(scope="module")
def books() -> list[Book]:
    return read_books()


def test_the_catalogue_has_the_promised_size_and_no_id_twice(books: list[Book]) -> None:
    assert 380 <= len(books) <= 450
    assert len({book.item_id for book in books}) == len(books)
    assert len({(book.title, book.author) for book in books}) == len(books)


def test_ids_are_readable_slugs(books: list[Book]) -> None:
    for book in books:
        assert book.item_id == book.item_id.lower().strip("-")
        assert book.item_id.replace("-", "").isalnum()
        assert book.item_id.isascii()


def test_volumes_of_a_series_count_from_one_without_gaps_and_appear_in_order(books: list[Book]) -> None:
    series: defaultdict[str, list[Book]] = defaultdict(list)
    for book in books:
        assert bool(book.series) == (book.series_index > 0), book.item_id
        if book.series:
            series[book.series].append(book)
    assert len(series) >= 30
    for name, volumes in series.items():
        assert [book.series_index for book in volumes] == list(range(1, len(volumes) + 1)), name
        assert 3 <= len(volumes) <= 9, name
        assert len({book.author for book in volumes}) == 1, name
        years = [book.year for book in volumes]
        assert years == sorted(years), name


def test_subjects_come_from_the_vocabulary_and_all_of_it_is_used(books: list[Book]) -> None:
    used = {subject for book in books for subject in book.categories}
    assert used == set(SUBJECTS)
    for book in books:
        assert 1 <= len(book.categories) <= 3, book.item_id
        assert len(set(book.categories)) == len(book.categories), book.item_id


def test_successors_stay_within_the_vocabulary_and_lead_elsewhere() -> None:
    for subject, successors in SUCCESSORS.items():
        assert set(successors) <= set(SUBJECTS)
        assert subject not in successors
        assert len(set(successors)) == 2


def test_years_prices_and_availability_are_plausible(books: list[Book]) -> None:
    assert all(-800 <= book.year <= 2025 and book.year != 0 for book in books)
    assert all(5 <= book.price < 30 for book in books)
    assert 3 <= sum(not book.available for book in books) <= 15


def test_authors_have_other_books_to_go_on_to(books: list[Book]) -> None:
    alone: defaultdict[str, int] = defaultdict(int)
    for book in books:
        alone[book.author] += not book.series
    assert sum(count >= 3 for count in alone.values()) >= 10


def test_titles_exercise_commas_quotes_apostrophes_and_accents(books: list[Book]) -> None:
    titles = " ".join(book.title for book in books)
    authors = " ".join(book.author for book in books)
    for mark in ",\"'&?!–":
        assert mark in titles, mark
    assert "ö" in titles
    assert "ũ" in authors


def test_polars_and_the_csv_module_read_the_same_table() -> None:
    with BOOKS_CSV.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == COLUMNS
    table = pl.read_csv(BOOKS_CSV, infer_schema=False).fill_null("")
    assert table.columns == COLUMNS
    assert table.rows() == [tuple(row) for row in rows[1:]]


def test_famous_books_are_in_the_catalogue(books: list[Book]) -> None:
    assert set(FAMOUS) <= {book.item_id for book in books}
    assert len(set(FAMOUS)) == len(FAMOUS)


def test_personas_have_histories_of_books_that_exist(books: list[Book]) -> None:
    personas = json.loads(PERSONAS_JSON.read_text(encoding="utf-8"))
    ids = {book.item_id for book in books}
    assert 6 <= len(personas) <= 8
    assert len({persona["user_id"] for persona in personas}) == len(personas)
    for persona in personas:
        assert set(persona) == {"user_id", "name", "about", "history"}
        assert persona["name"]
        assert persona["about"]
        history = persona["history"]
        assert set(history) <= ids, persona["name"]
        assert len(set(history)) == len(history), persona["name"]
        assert 5 <= len(history) <= MAX_LENGTH, persona["name"]
