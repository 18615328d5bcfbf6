"""CSV and Parquet: the same events give the same log, and what is no table is refused."""

from datetime import UTC, date, datetime

import polars as pl
import pytest

from models.errors import BadRow, EmptyLog, MissingColumn, UnreadableData
from models.events import read_log

EVENTS = pl.DataFrame(
    {
        "user_id": ["u1", "u2", "u1"],
        "item_id": ["7", "8", "9"],
        "timestamp": [5, 3, 4],
        "event_type": ["view", "cart", None],
        "value": [None, 2.5, None],
        "device": ["phone", None, "desk"],
        "position": [1, 2, 3],
    }
)


def test_csv_and_parquet_have_one_digest(tmp_path):
    EVENTS.write_csv(tmp_path / "a.csv")
    EVENTS.write_parquet(tmp_path / "a.parquet")
    first, second = read_log("csv", tmp_path / "a.csv"), read_log("parquet", tmp_path / "a.parquet")
    assert first.events.equals(second.events)
    assert first.digest == second.digest
    assert first.events["item_id"].to_list() == ["9", "7", "8"]
    assert first.report.context_columns == ["device", "position"]
    assert first.events["position"].dtype == pl.Int64


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([86400, 86401]),
        pl.Series([86400.0, 86401.0]),
        pl.Series([datetime(1970, 1, 2), datetime(1970, 1, 2, 0, 0, 1)]),
        pl.Series([datetime(1970, 1, 2, tzinfo=UTC), datetime(1970, 1, 2, 0, 0, 1, tzinfo=UTC)]),
        pl.Series([datetime(1970, 1, 2), datetime(1970, 1, 2, 0, 0, 1)]).cast(pl.Datetime("ns")),
        pl.Series(["1970-01-02T01:00:00+01:00", "86401"]),
    ],
    ids=["int", "float", "naive", "utc", "nanoseconds", "text"],
)
def test_times_of_parquet(tmp_path, times):
    pl.DataFrame({"user_id": [1, 1], "item_id": [7, 8], "timestamp": times}).write_parquet(tmp_path / "a.parquet")
    log = read_log("parquet", tmp_path / "a.parquet")
    assert log.events["timestamp"].to_list() == [86400.0, 86401.0]
    assert log.events["user_id"].to_list() == ["1", "1"]


def test_days_of_parquet(tmp_path):
    frame = pl.DataFrame({"user_id": ["a"], "item_id": ["b"], "timestamp": [date(1970, 1, 3)]})
    frame.write_parquet(tmp_path / "a.parquet")
    assert read_log("parquet", tmp_path / "a.parquet").events["timestamp"].to_list() == [172800.0]


def test_a_bad_row_of_parquet_is_named_by_its_row(tmp_path):
    frame = pl.DataFrame({"user_id": ["a", "b"], "item_id": ["c", None], "timestamp": [1, 2]})
    frame.write_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadRow, match=r"a\.parquet: row 2: missing item_id"):
        read_log("parquet", tmp_path / "a.parquet")


@pytest.mark.parametrize("column", ["user_id", "timestamp", "value"])
def test_a_column_of_a_type_that_cannot_be_meant(tmp_path, column):
    good = {"user_id": [1], "item_id": [1], "timestamp": [1], "value": [1.0]}
    pl.DataFrame({**good, column: [[1.5]]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UnreadableData, match=f"column {column} is List"):
        read_log("parquet", tmp_path / "a.parquet")


def test_ids_that_became_floats_are_refused(tmp_path):
    pl.DataFrame({"user_id": [1.0], "item_id": [1], "timestamp": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(UnreadableData, match="user_id is Float64"):
        read_log("parquet", tmp_path / "a.parquet")


def test_parquet_without_rows(tmp_path):
    EVENTS.clear().write_parquet(tmp_path / "a.parquet")
    with pytest.raises(EmptyLog, match="no event"):
        read_log("parquet", tmp_path / "a.parquet")


def test_parquet_without_a_required_column(tmp_path):
    EVENTS.drop("timestamp").write_parquet(tmp_path / "a.parquet")
    with pytest.raises(MissingColumn, match="timestamp is required"):
        read_log("parquet", tmp_path / "a.parquet")


def test_text_given_as_parquet(tmp_path):
    (tmp_path / "a.parquet").write_text("user_id,item_id,timestamp\n")
    with pytest.raises(UnreadableData, match="not a Parquet file"):
        read_log("parquet", tmp_path / "a.parquet")


def test_parquet_given_as_csv(tmp_path):
    EVENTS.write_parquet(tmp_path / "a.csv")
    with pytest.raises(UnreadableData, match="choose the layout parquet"):
        read_log("csv", tmp_path / "a.csv")
