"""Logs as users bring them: what is wrong is named with file and line, what is unusual is kept and counted."""

import math
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadRow, EmptyLog, MissingColumn, MissingData, UnknownLayout
from models.events import content_digest, read_log

HEADER = "user_id,item_id,timestamp\n"


@pytest.fixture
def log_of(tmp_path: Path):
    def read(text: str, **options):
        (tmp_path / "events.csv").write_text(text)
        return read_log("csv", tmp_path / "events.csv", **options)

    return read


def pairs(log):
    return log.events.select("user_id", "item_id").rows()


def test_empty_log_with_a_header_only(log_of):
    with pytest.raises(EmptyLog, match=r"events\.csv: a header and no event"):
        log_of(HEADER)


def test_empty_log_of_zero_bytes(log_of):
    with pytest.raises(EmptyLog, match="is empty"):
        log_of("")


def test_empty_log_after_skipping_shows_why(log_of):
    with pytest.raises(EmptyLog, match=r"every row was left out \(2 negative timestamp\)"):
        log_of(HEADER + "a,b,-1\na,b,-2\n", on_bad_row="skip")


def test_one_user(log_of):
    log = log_of(HEADER + "a,x,1\na,y,2\n")
    assert (log.report.users, log.report.items, log.report.users_with_one_event) == (1, 2, 0)


def test_one_item(log_of):
    log = log_of(HEADER + "a,x,1\nb,x,2\n")
    assert (log.report.users, log.report.items) == (2, 1)


def test_users_with_one_event(log_of):
    log = log_of(HEADER + "a,x,1\nb,x,2\nb,y,3\n")
    assert log.report.users_with_one_event == 1
    assert "users 2 (1 with one event)" in str(log.report)


@pytest.mark.parametrize("item", ["a,b", 'say "x"', "🎈📚", " 7 ", "007", "é" * 256, "x\ny"])
def test_ids_are_kept_exactly_as_given(log_of, item):
    quoted = item.replace('"', '""')
    assert pairs(log_of(HEADER + f'u,"{quoted}",1\n')) == [("u", item)]


@pytest.mark.parametrize("letter", ["x", "é", "🎈"])
def test_an_id_of_257_characters(log_of, letter):
    assert pairs(log_of(HEADER + f"u,{letter * 256},1\n")) == [("u", letter * 256)]
    with pytest.raises(BadRow, match=r"events\.csv:3: overlong item_id: .*257 characters.*at most 256"):
        log_of(HEADER + f"u,x,1\nu,{letter * 257},1\n")


@pytest.mark.parametrize(
    ("time", "reason"),
    [
        ("nan", "unparsable timestamp"),
        ("NaN", "unparsable timestamp"),
        ("inf", "unparsable timestamp"),
        ("-inf", "unparsable timestamp"),
        ("-1", "negative timestamp"),
        ("1969-12-31T23:59:59Z", "negative timestamp"),
        ("yesterday", "unparsable timestamp"),
        ("2024-13-01", "unparsable timestamp"),
        ("", "missing timestamp"),
        ("  ", "missing timestamp"),
    ],
)
def test_times_that_are_none(log_of, time, reason):
    with pytest.raises(BadRow) as raised:
        log_of(HEADER + f"u,x,1\nu,y,{time}\nu,z,3\n")
    assert raised.value.place.endswith("events.csv:3")
    assert raised.value.reason == reason
    assert "--on-bad-row skip" in str(raised.value)
    log = log_of(HEADER + f"u,x,1\nu,y,{time}\nu,z,3\n", on_bad_row="skip")
    assert pairs(log) == [("u", "x"), ("u", "z")]
    assert log.report.skipped[reason].count == 1


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("0", 0.0),
        ("1700000000.25", 1700000000.25),
        ("1.7e9", 1700000000.0),
        (" 5 ", 5.0),
        ("1970-01-02", 86400.0),
        ("1970-01-01T00:01", 60.0),
        ("1970-01-01 00:00:01", 1.0),
        ("1970-01-01T00:00:01.5", 1.5),
        ('"1970-01-01T00:00:01,5Z"', 1.5),
        ("1970-01-01T02:00:00+02:00", 0.0),
        ("1970-01-01T02:00:00+0200", 0.0),
        ("1969-12-31T22:30:00.5-01:30", 0.5),
        ("1970-01-01t00:00:03z", 3.0),
        ("1970-01-01T01:00Z", 3600.0),
    ],
)
def test_times_that_are_read(log_of, time, seconds):
    assert log_of(HEADER + f"u,x,{time}\n").events["timestamp"].to_list() == [seconds]


@pytest.mark.parametrize("row", [",x,1", "u,,1", '"",x,1', " ,x,1"])
def test_a_missing_id(log_of, row):
    with pytest.raises(BadRow, match=r"events\.csv:2: missing (user|item)_id"):
        log_of(HEADER + row + "\n")


@pytest.mark.parametrize("row", ["u,x", "u,x,1,2"])
def test_wrong_column_count(log_of, row):
    with pytest.raises(BadRow, match=rf"events\.csv:3: wrong column count: '{row}'; .*which has 3"):
        log_of(HEADER + f"u,x,1\n{row}\n")


def test_a_value_that_is_no_number(log_of):
    head = "user_id,item_id,timestamp,value\n"
    for value in ("cheap", "nan", "inf"):
        with pytest.raises(BadRow, match="value is not a number"):
            log_of(head + f"u,x,1,{value}\n")
    assert log_of(head + 'u,x,1,\nu,x,2,""\nu,x,3,-2.5\n').events["value"].to_list() == [None, None, -2.5]


def test_the_first_bad_row_is_named_and_the_others_counted(log_of):
    with pytest.raises(
        BadRow, match=r"events\.csv:3: negative timestamp: '-5'; .*3 bad rows in the first 4 rows"
    ) as bad:
        log_of(HEADER + "u,x,1\nu,x,-5\nu,x\nu,x,soon\n")
    assert bad.value.count == 3


def test_skipped_rows_are_counted_by_reason_with_five_examples(log_of, tmp_path):
    log = log_of(HEADER + "u,x,1\n" + "u,x,soon\n" * 7 + "u,x\n", on_bad_row="skip")
    skipped = log.report.skipped
    assert {reason: found.count for reason, found in skipped.items()} == {
        "unparsable timestamp": 7,
        "wrong column count": 1,
    }
    file = tmp_path / "events.csv"
    assert skipped["unparsable timestamp"].examples == [f"{file}:{line}: 'soon'" for line in range(3, 8)]
    assert log.report.rows_read == log.report.rows_kept + 8


def test_duplicate_events_are_kept_and_counted(log_of):
    log = log_of(HEADER + "u,x,1\nv,x,1\nu,y,1\nu,x,1\nu,x,1\nu,x,2\n")
    assert log.events.height == 6
    assert log.report.duplicates == 2
    assert "2 events repeat another" in str(log.report)


def test_an_unsorted_log_is_sorted_stably_and_says_so(log_of):
    log = log_of(HEADER + "b,p,5\na,q,9\nb,r,4\na,s,1\nb,t,5\nb,u,4\n")
    assert pairs(log) == [("b", "r"), ("b", "u"), ("b", "p"), ("b", "t"), ("a", "s"), ("a", "q")]
    assert log.report.out_of_order == 3
    assert "was not sorted" in str(log.report)


def test_a_sorted_log_is_not_called_unsorted(log_of):
    log = log_of(HEADER + "b,p,1\na,q,2\nb,r,2\na,s,2\n")
    assert pairs(log) == [("b", "p"), ("b", "r"), ("a", "q"), ("a", "s")]
    assert log.report.out_of_order == 0


def test_unknown_columns_are_kept_as_context(log_of):
    log = log_of("zip,user_id,device,item_id,n,timestamp,user,x\n02460,u,phone,x,1,5,me,0.5\n10115,u,,y,-2,6,me,2\n")
    assert log.report.context_columns == ["zip", "device", "n", "user", "x"]
    assert log.events.select("zip", "device", "n", "user", "x").rows() == [
        ("02460", "phone", 1, "me", 0.5),
        ("10115", None, -2, "me", 2.0),
    ]


def test_optional_columns(log_of):
    log = log_of("user_id,item_id,timestamp,event_type,session_id\nu,x,1,cart,s1\nu,y,2,,\n")
    assert log.events.select("event_type", "session_id").rows() == [("cart", "s1"), ("view", None)]
    assert log.events.columns[:6] == ["user_id", "item_id", "timestamp", "event_type", "value", "session_id"]
    assert log_of(HEADER + "u,x,1\n").events["event_type"].to_list() == ["view"]


def test_missing_required_column_names_what_is_there(log_of):
    with pytest.raises(MissingColumn, match="item_id, timestamp is required and not there; found user_id, item, time"):
        log_of("user_id,item,time\nu,x,1\n")


@pytest.mark.parametrize("layout", ["csv", "parquet", "ml-1m", "s3rec"])
def test_missing_file(tmp_path, layout):
    with pytest.raises(MissingData, match="does not exist"):
        read_log(layout, tmp_path / "none" / "events.csv")


def test_unknown_layout_lists_the_known_ones(tmp_path):
    with pytest.raises(UnknownLayout, match="'cvs' is not known; the known ones are csv, log, microlens, ml-100k"):
        read_log("cvs", tmp_path)


def test_milliseconds_are_noticed(log_of):
    assert "look like milliseconds" in str(log_of(HEADER + "u,x,1700000000000\n").report)


def test_core_is_repeated_until_stable(log_of):
    # Without z, v has one event left; without v, x has one; what remains is the square of a, b and p, q.
    rows = ["a,p,1", "a,q,2", "b,p,1", "b,q,2", "b,x,3", "v,x,1", "v,z,2"]
    log = log_of(HEADER + "\n".join(rows) + "\n", core=2)
    assert pairs(log) == [("a", "p"), ("a", "q"), ("b", "p"), ("b", "q")]
    assert log.report.core_removed == {"events": 3, "users": 1, "items": 2, "rounds": 3}
    assert "2-core removed events 3" in str(log.report)


def test_core_that_leaves_nothing(log_of):
    with pytest.raises(EmptyLog, match="no user and item have 5 events each"):
        log_of(HEADER + "u,x,1\n", core=5)


def test_several_files_are_one_log(tmp_path):
    (tmp_path / "a.csv").write_text(HEADER + "u,x,1\n")
    (tmp_path / "b.csv").write_text("item_id,user_id,timestamp,device\ny,u,2,phone\n")
    log = read_log("csv", [tmp_path / "a.csv", tmp_path / "b.csv"])
    assert log.events.select("user_id", "item_id", "device").rows() == [("u", "x", None), ("u", "y", "phone")]
    (tmp_path / "b.csv").write_text(HEADER + "u,x,-1\n")
    with pytest.raises(BadRow, match=r"b\.csv:2: negative"):
        read_log("csv", tmp_path)


def test_items_that_only_events_know_are_bare_and_items_without_event_stay(tmp_path):
    (tmp_path / "events.csv").write_text(HEADER + "u,x,1\nu,new,2\n")
    (tmp_path / "items.csv").write_text("item_id,title\nquiet,Never seen\nx,Ex\n")
    log = read_log("csv", tmp_path)
    assert log.items.select("item_id", "title", "categories", "available").rows() == [
        ("quiet", "Never seen", [], True),
        ("x", "Ex", [], True),
        ("new", None, [], True),
    ]
    assert (log.report.items_listed, log.report.items_without_event, log.report.items_unlisted) == (2, 1, 1)


def test_the_digest_is_of_content_and_order(log_of):
    text = HEADER + "b,p,5\na,q,9\n"
    first = log_of(text).digest
    assert log_of("item_id,timestamp,user_id\np,5.0,b\nq,1970-01-01T00:00:09Z,a\n").digest == first
    for other in ("a,q,9\nb,p,5\n", "b,p,5\na,q,8\n", "b,p,5\na,r,9\n", "b,p,5\n"):
        assert log_of(HEADER + other).digest != first


def test_the_digest_tells_joined_texts_apart():
    first, second = pl.DataFrame({"a": ["ab", "c"]}), pl.DataFrame({"a": ["a", "bc"]})
    assert content_digest(first, None) != content_digest(second, None)


def test_progress_counts_rows_and_ends_at_one(tmp_path):
    (tmp_path / "a.csv").write_text(HEADER + "u,x,1\n" * 3)
    (tmp_path / "b.csv").write_text(HEADER + "u,x,1\n")
    seen = []
    read_log("csv", tmp_path, on_progress=lambda rows, share: seen.append((rows, share)))
    assert seen[-1] == (4, 1.0)
    assert seen == sorted(seen)


CELL = st.sampled_from(["u", "v", "", "1", "2", "-1", "nan", "x" * 257])


@given(st.lists(st.tuples(CELL, CELL, CELL), max_size=12))
def test_no_row_is_lost_without_being_counted(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("log") / "events.csv"
    path.write_text(HEADER + "keep,keep,1\n" + "".join(",".join(row) + "\n" for row in rows))
    log = read_log("csv", path, on_bad_row="skip")

    def is_good(row):
        return all(row[:2]) and max(map(len, row[:2])) <= 256 and row[2] in ("1", "2")

    wanted = [("keep", "keep", "1"), *filter(is_good, rows)]
    users = list(dict.fromkeys(user for user, _, _ in wanted))
    wanted.sort(key=lambda row: (users.index(row[0]), float(row[2])))
    assert log.events.select("user_id", "item_id", "timestamp").rows() == [(u, i, float(t)) for u, i, t in wanted]
    assert log.report.rows_read == 1 + len(rows)
    assert log.report.rows_read == log.report.rows_kept + sum(found.count for found in log.report.skipped.values())
    assert not math.isnan(log.report.last_time_s)
