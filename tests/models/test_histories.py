"""The log as arrays: what is kept, what is dropped and counted, and in which order."""

import types
from typing import Any

import numpy as np
import polars as pl
import pytest

from models.histories import Histories, catalog_from_log, event_type_vocabulary, with_popularity
from retrieval.catalog import Catalog
from retrieval.errors import InvalidInput


def log(rows: list[tuple[str, str, float, str, float | None]], items: dict[str, list[Any]] | None = None) -> Any:
    """As much of an event log as histories read."""
    schema = {
        "user_id": pl.String,
        "item_id": pl.String,
        "timestamp": pl.Float64,
        "event_type": pl.String,
        "value": pl.Float64,
    }
    events = pl.DataFrame(rows, schema=schema, orient="row")
    return types.SimpleNamespace(
        events=events, items=None if items is None else pl.DataFrame(items), ordered_only=False
    )


SMALL = [
    ("ann", "9", 1.0, "view", None),
    ("ann", "10", 2.0, "buy", 3.5),
    ("bob", "9", 5.0, "view", None),
]


def test_histories_hold_rows_codes_values_and_times() -> None:
    small = log(SMALL)
    histories = Histories.from_log(small, catalog_from_log(small), event_type_vocabulary(small))
    assert histories.user_ids == ("ann", "bob")
    assert histories.offsets.tolist() == [0, 2, 3]
    ann = histories[0]
    assert (ann.rows.tolist(), ann.event_types.tolist(), ann.timestamps.tolist()) == ([1, 2], [1, 2], [1.0, 2.0])
    assert np.isnan(ann.values[0])
    assert ann.values[1] == np.float32(3.5)


def test_a_history_is_a_view() -> None:
    histories = Histories.from_rows([[1, 2], [3]])
    assert np.shares_memory(histories[1].rows, histories.rows)


def test_interleaved_users_are_grouped_without_losing_their_order() -> None:
    mixed = log([("b", "1", 1.0, "view", None), ("a", "2", 1.0, "view", None), ("b", "3", 2.0, "view", None)])
    histories = Histories.from_log(mixed, catalog_from_log(mixed), ("view",))
    assert histories.user_ids == ("b", "a")
    assert [histories[u].rows.tolist() for u in range(2)] == [[1, 3], [2]]


def test_unknown_items_are_dropped_and_counted() -> None:
    histories = Histories.from_log(log(SMALL), Catalog.build(["10"]), ("view", "buy"))
    assert histories.dropped == 2
    assert histories.lengths().tolist() == [1, 0]
    assert histories[0].event_types.tolist() == [2]


def test_an_event_type_outside_the_vocabulary_is_code_0() -> None:
    small = log(SMALL)
    assert Histories.from_log(small, catalog_from_log(small), ("view",))[0].event_types.tolist() == [1, 0]


def test_an_empty_log_is_refused() -> None:
    with pytest.raises(InvalidInput, match="empty"):
        Histories.from_log(log([]), Catalog.build(["a"]), ())


def test_a_log_of_another_shop_is_refused() -> None:
    with pytest.raises(InvalidInput, match="another shop"):
        Histories.from_log(log(SMALL), Catalog.build(["zzz"]), ())


def test_catalog_rows_follow_the_ids_and_not_the_counts() -> None:
    catalog = catalog_from_log(log([*SMALL, ("cid", "10", 1.0, "view", None), ("cid", "x", 2.0, "view", None)]))
    assert catalog.ids == ("", "9", "x", "10")
    assert catalog.popularity.tolist() == [0, 2, 1, 2]


def test_catalog_holds_items_that_have_no_event_and_their_attributes() -> None:
    items = {
        "item_id": ["9", "77"],
        "title": ["Nine", None],
        "categories": [["a", "b"], None],
        "available": [False, None],
    }
    catalog = catalog_from_log(log(SMALL, items))
    assert catalog.ids == ("", "9", "10", "77")
    assert catalog.available.tolist() == [False, False, True, True]
    assert catalog.attributes(1) == {"title": "Nine", "categories": ["a", "b"]}
    assert catalog.attributes(3) == {}


def test_popularity_can_be_that_of_the_training_part_alone() -> None:
    catalog = Catalog.build(["a", "b"], popularity=[5, 5])
    assert with_popularity(catalog, Histories.from_rows([[1], [1]])).popularity.tolist() == [0, 2, 0]


def test_the_vocabulary_begins_with_the_most_frequent_type() -> None:
    assert event_type_vocabulary(log(SMALL)) == ("view", "buy")
    assert event_type_vocabulary(log([("u", "i", 0.0, t, None) for t in ("b", "a")])) == ("a", "b")


def test_keeping_events_keeps_every_user() -> None:
    kept = Histories.from_rows([[1, 2], [3], [4]]).keep(np.array([True, False, False, True]))
    assert kept.offsets.tolist() == [0, 1, 1, 2]
    assert kept.rows.tolist() == [1, 4]
