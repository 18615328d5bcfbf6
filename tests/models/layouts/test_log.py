"""The service's log as an event log."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from service_log import erased, event, merged, served, write

from models.errors import BadRow
from models.events import read_log
from models.histories import catalog_from_log
from models.impressions import feedback, logged
from models.layouts.log import Met
from models.layouts.records import read_segment
from retrieval.tasks import Task


def rows(log, *names):
    return log.events.select(*names).rows()


def test_events_are_read_like_those_of_any_layout(tmp_path):
    write(
        tmp_path / "a.jsonl",
        event(10, "anna", "x", event_type="click", value=2.5, recommendation_id="r", context={"page": "home"}),
        event(20, "anna", "y", timestamp=5),
    )
    log = read_log("log", tmp_path)
    assert rows(log, "user_id", "item_id", "timestamp", "event_type", "value", "recommendation_id", "context") == [
        ("anna", "y", 5.0, "view", None, None, None),
        ("anna", "x", 10.0, "click", 2.5, "r", '{"page":"home"}'),
    ]
    assert not log.ordered_only


def test_a_served_list_is_an_impression_of_each_item(tmp_path):
    write(
        tmp_path / "a.jsonl",
        served(1, "anna", "r1", "x", "y", propensities=[0.25, None]),
        served(2, "anna", "r1", "z", first=3),
        served(3, "anna", "r2", "x", "y", sources=["retrieval", "popular"]),
        served(4, "anna", "r3", "x", ranked=True),
        served(5, "anna", "r4"),
        served(6, None, "r5", "x"),
    )
    log = read_log("log", tmp_path)
    assert rows(log, "event_type", "item_id", "timestamp", "recommendation_id", "position", "score", "propensity") == [
        ("impression", "x", 1.0, "r1", 1, 1.0, 0.25),
        ("impression", "y", 1.0, "r1", 2, 0.5, None),
        ("impression", "z", 2.0, "r1", 3, 1.0, None),
        ("impression", "x", 3.0, "r2", 1, 1.0, None),
        ("impression", "y", 3.0, "r2", 2, None, None),
        ("impression", "x", 4.0, "r3", 1, None, None),
    ]
    assert log.report.dropped == {"lists without an item": 1, "lists for nobody in particular": 1}
    assert feedback(log).events.is_empty()


def test_rankers_find_lists_with_what_came_of_them(tmp_path):
    write(
        tmp_path / "a.jsonl",
        event(1, "anna", "z"),
        served(10, "anna", "r1", "x", "y"),
        event(12, "anna", "y", event_type="click", recommendation_id="r1"),
    )
    log = read_log("log", tmp_path)
    lists, account = logged(log, catalog_from_log(log), ("view", "click"), (Task("click"),))
    assert (account.impressions, account.attributed) == (2, 1)
    assert lists.positions.tolist() == [1, 2]
    assert lists.labels.ravel().tolist() == [0, 1]
    assert len(lists.requests[0].history) == 1


def test_an_event_id_and_a_page_count_once_per_user(tmp_path):
    write(tmp_path / "a.jsonl", event(1, "anna", "x", event_id="e"), event(2, "anna", "x", event_id="e"))
    write(
        tmp_path / "b.jsonl",
        event(3, "anna", "x", event_id="e"),
        event(3, "bert", "x", event_id="e"),
        event(4, "anna", "x"),
        event(4, "anna", "x"),
        served(5, "anna", "r", "x"),
        served(5, "anna", "r", "y", first=2),
        served(5, "anna", "r", "x"),
    )
    log = read_log("log", tmp_path)
    assert log.events.height == 6
    assert log.report.dropped["repeats of an event_id or a list"] == 3


def test_users_who_were_erased_are_gone_with_what_came_before(tmp_path):
    write(tmp_path / "a.jsonl", event(1, "anna", "x"), served(2, "anna", "r", "x"), event(1, "guest", "g"))
    write(
        tmp_path / "b.jsonl",
        erased(3, "anna"),
        event(4, "anna", "y"),
        merged(4, "guest", "bert"),
        event(5, "bert", "x"),
    )
    log = read_log("log", tmp_path)
    assert rows(log, "user_id", "item_id") == [("bert", "g"), ("bert", "x"), ("anna", "y")]
    assert log.report.dropped["of users who were erased since"] == 2


def test_a_part_stands_for_its_segment(tmp_path):
    segment = write(tmp_path / "a.jsonl", event(1, "anna", "x"))
    next(read_segment(segment)).frame.write_parquet(tmp_path / "a.parquet")
    assert read_log("log", tmp_path).events.height == 1


def test_impressions_that_callers_tell_do_not_count_beside_the_lists(tmp_path):
    write(tmp_path / "a.jsonl", event(1, "anna", "x"), event(2, "anna", "x", event_type="impression"))
    log = read_log("log", tmp_path)
    assert rows(log, "event_type") == [("view",)]


def test_a_bad_line_is_named_with_its_file_or_left_out(tmp_path):
    write(tmp_path / "a.jsonl", event(1, "anna", "x"), end='{"kind": "event"}\n')
    with pytest.raises(BadRow, match=r"a\.jsonl:2: missing time"):
        read_log("log", tmp_path)
    log = read_log("log", tmp_path, on_bad_row="skip")
    assert (log.events.height, log.report.skipped["missing time"].count) == (1, 1)


def test_a_rule_of_every_log_holds_here_with_the_line(tmp_path):
    write(tmp_path / "a.jsonl", served(1, "anna", "r", "x", "y"), event(1, "anna", "x", timestamp=-5))
    with pytest.raises(BadRow, match=r"a\.jsonl:2: negative timestamp"):
        read_log("log", tmp_path)


def test_one_file_is_read_alone(tmp_path):
    write(tmp_path / "b.jsonl", event(1, "bert", "x"))
    assert read_log("log", write(tmp_path / "a.jsonl", event(1, "anna", "x"))).events["user_id"].to_list() == ["anna"]


def test_items_may_lie_beside(tmp_path):
    write(tmp_path / "a.jsonl", event(1, "anna", "x"))
    pl.DataFrame({"item_id": ["x"], "title": ["X"]}).write_parquet(tmp_path / "items.parquet")
    log = read_log("log", tmp_path)
    assert log.items is not None
    assert log.items["title"].to_list() == ["X"]


@given(st.lists(st.lists(st.integers(0, 30), max_size=20), max_size=20))
def test_met_knows_what_a_set_knows(batches):
    met, known = Met(), set()
    for batch in batches:
        expected = []
        for key in batch:
            expected.append(key not in known)
            known.add(key)
        assert met.fresh(np.array(batch, dtype=np.uint64)).tolist() == expected
