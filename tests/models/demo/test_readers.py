"""The simulated readers: each kind of structure that a model is meant to find is really in the log."""

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.demo.books import SUCCESSORS, Book, read_books
from models.demo.readers import EVENT_TYPES, HORIZON_DAYS, MAX_LENGTH, MIN_LENGTH, START_S, Events, simulate
from retrieval.errors import InvalidInput

DAY_S = 86_400


@pytest.fixture(scope="module")
def books() -> list[Book]:
    return read_books()


@pytest.fixture(scope="module")
def events(books: list[Book]) -> Events:
    return simulate(books)


@pytest.fixture(scope="module")
def histories(books: list[Book], events: Events) -> list[list[int]]:
    """Per reader, the places in the catalogue of what was read, oldest first."""
    place = {book.item_id: number for number, book in enumerate(books)}
    read: dict[str, list[int]] = {}
    for user_id, item_id in zip(events.user_id.tolist(), events.item_id.tolist(), strict=True):
        read.setdefault(user_id, []).append(place[item_id])
    return list(read.values())


def test_the_log_has_the_promised_size_and_shape(events: Events, histories: list[list[int]]) -> None:
    lengths = np.array([len(history) for history in histories])
    assert 60_000 <= len(events) <= 90_000
    assert len(histories) == 4000
    assert lengths.min() >= MIN_LENGTH
    assert lengths.max() <= MAX_LENGTH
    assert 17 <= lengths.mean() <= 23
    assert np.quantile(lengths, 0.95) > 2 * np.median(lengths)
    assert {len(column) for column in events.columns().values()} == {len(events)}


def test_a_seed_gives_the_same_log_and_another_seed_another(books: list[Book]) -> None:
    first, again, other = (simulate(books, readers=60, seed=seed) for seed in (7, 7, 8))
    for name, column in first.columns().items():
        np.testing.assert_array_equal(column, again.columns()[name])
    assert first.item_id.tolist() != other.item_id.tolist()


def test_the_global_random_state_is_neither_read_nor_moved(books: list[Book]) -> None:
    before = np.random.get_state(legacy=False)["state"]
    simulate(books, readers=5)
    after = np.random.get_state(legacy=False)["state"]
    np.testing.assert_array_equal(before["key"], after["key"])
    assert before["pos"] == after["pos"]


def test_nobody_reads_a_book_twice(histories: list[list[int]]) -> None:
    assert all(len(set(history)) == len(history) for history in histories)


def test_every_book_has_readers(books: list[Book], events: Events) -> None:
    assert set(events.item_id.tolist()) == {book.item_id for book in books}


def steps_s(events: Events) -> np.ndarray:
    """Seconds from each event to the next of the same reader."""
    log = pl.DataFrame(events.columns())
    return log.select(pl.col("timestamp").diff().over("user_id")).drop_nulls()["timestamp"].to_numpy()


def test_times_increase_for_each_reader_and_stay_within_two_years(events: Events) -> None:
    assert (np.diff(events.timestamp) >= 0).all()
    assert steps_s(events).min() >= 30
    assert events.timestamp[0] >= START_S
    assert events.timestamp[-1] < START_S + (HORIZON_DAYS + 1) * DAY_S


def test_reading_comes_in_sessions(events: Events) -> None:
    within, between = (steps_s(events) <= 900).mean(), (steps_s(events) >= DAY_S / 3).mean()
    assert within + between == pytest.approx(1)
    assert 0.3 < within < 0.7


def test_values_belong_to_their_event_types(books: list[Book], events: Events) -> None:
    price = {book.item_id: book.price for book in books}
    assert set(events.event_type.tolist()) == set(EVENT_TYPES.tolist())
    assert np.isnan(events.value[events.event_type == "view"]).all()
    assert set(events.value[events.event_type == "like"].tolist()) == {4.0, 5.0}
    bought = events.event_type == "purchase"
    assert events.value[bought].tolist() == [price[item_id] for item_id in events.item_id[bought].tolist()]


def test_consecutive_volumes_are_read_in_order(books: list[Book], histories: list[list[int]]) -> None:
    in_order = pairs = 0
    for history in histories:
        when = {(books[item].series, books[item].series_index): step for step, item in enumerate(history)}
        for (series, index), step in when.items():
            if series and (series, index + 1) in when:
                pairs += 1
                in_order += when[series, index + 1] > step
    assert pairs > 5_000
    assert in_order / pairs > 0.95


def test_many_next_volumes_come_after_other_books(books: list[Book], histories: list[list[int]]) -> None:
    gaps: Counter[int] = Counter()
    for history in histories:
        when = {(books[item].series, books[item].series_index): step for step, item in enumerate(history)}
        for (series, index), step in when.items():
            if series and (series, index + 1) in when:
                gaps[when[series, index + 1] - step] += 1
    share = {gap: count / gaps.total() for gap, count in gaps.items()}
    assert share[1] > 0.2
    assert share[2] > 0.2
    assert share[5] > 0.05


def test_whoever_met_an_author_twice_goes_on_to_more(books: list[Book], histories: list[list[int]]) -> None:
    """How often a book that stands alone is by an author met once, and by one met twice, among the eight before it."""
    chances, taken = Counter[int](), Counter[int]()
    for history in histories:
        for step in range(2, len(history)):
            book = books[history[step]]
            if not book.series:
                recent = Counter(books[item].author for item in history[max(0, step - 8) : step])
                chances.update(recent.values())
                taken[recent[book.author]] += 1
    assert taken[2] / chances[2] > 4 * taken[1] / chances[1]


def test_taste_drifts_along_the_arrows(books: list[Book], histories: list[list[int]]) -> None:
    """Main subjects ten to twelve books later: less of the same, and more successors than predecessors."""
    near = far = pairs = onward = back = 0
    for history in histories:
        subjects = [books[item].categories[0] for item in history]
        for step in range(len(subjects) - 12):
            pairs += 1
            near += subjects[step] == subjects[step + 2]
            far += subjects[step] == subjects[step + 12]
            onward += subjects[step + 12] in SUCCESSORS[subjects[step]]
            back += subjects[step] in SUCCESSORS[subjects[step + 12]]
    assert near / pairs > 1.5 * far / pairs
    assert onward > 1.3 * back


def test_most_readers_take_two_tastes_in_turn(books: list[Book], histories: list[list[int]]) -> None:
    """Among books that stand alone, the book before last shares its main subject more often than the last one."""
    last = before = 0
    for history in histories:
        for first, second, third in zip(history, history[1:], history[2:], strict=False):
            if not (books[first].series or books[second].series or books[third].series):
                last += books[second].categories[0] == books[third].categories[0]
                before += books[first].categories[0] == books[third].categories[0]
    assert before > 1.5 * last


def test_popularity_is_skewed(events: Events) -> None:
    counts = np.sort(list(Counter(events.item_id.tolist()).values()))[::-1]
    assert counts[: len(counts) // 10].sum() > 0.25 * counts.sum()
    assert counts[0] > 5 * np.median(counts)


def test_last_item_transitions_find_at_least_twice_what_the_popular_list_finds(
    books: list[Book], histories: list[list[int]]
) -> None:
    """Counts from the first 80 % of each history, the book after it to be found among ten, what was read left out."""
    popular = np.zeros(len(books))
    follows = np.zeros((len(books), len(books)))
    queries = []
    for history in histories:
        seen, target = history[: len(history) * 4 // 5], history[len(history) * 4 // 5]
        np.add.at(popular, seen, 1)
        np.add.at(follows, (seen[:-1], seen[1:]), 1)
        queries.append((seen, target))

    def hit_at_10(scores: np.ndarray) -> float:
        """Share of targets with fewer than ten unread books at or above them; ties count against the target."""
        hits = 0
        for row, (seen, target) in zip(scores, queries, strict=True):
            left = np.delete(row, [*seen, target])
            hits += (left >= row[target]).sum() < 10
        return hits / len(queries)

    last = [seen[-1] for seen, _ in queries]
    by_popularity = hit_at_10(np.broadcast_to(popular, (len(queries), len(books))))
    by_transition = hit_at_10(follows[last] + popular / popular.sum())  # popularity decides between equal counts
    assert by_transition >= 2 * by_popularity, (by_transition, by_popularity)


def test_the_csv_reads_back_as_the_columns(books: list[Book], tmp_path: Path) -> None:
    log = simulate(books, readers=20)
    log.write_csv(tmp_path / "events.csv")
    with (tmp_path / "events.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["user_id", "item_id", "timestamp", "event_type", "value"]
    assert rows[0]["user_id"].startswith("reader-00")
    back = pl.read_csv(tmp_path / "events.csv")
    columns = pl.DataFrame(log.columns()).with_columns(pl.col("value").fill_nan(None))
    assert back.equals(columns)


def test_no_readers_is_refused(books: list[Book]) -> None:
    with pytest.raises(InvalidInput, match="readers is 0"):
        simulate(books, readers=0)


def test_an_empty_catalogue_is_refused() -> None:
    with pytest.raises(InvalidInput, match="0 books"):
        simulate([])


def test_a_subject_outside_the_vocabulary_is_named(books: list[Book]) -> None:
    odd = replace(books[0], categories=("cookery",))
    with pytest.raises(InvalidInput, match="'cookery'"):
        simulate([odd, *books[1:]], readers=1)
