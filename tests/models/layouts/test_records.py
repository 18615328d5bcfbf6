"""Lines into a table, each bad one by its number."""

import polars as pl
import pytest
from service_log import erased, event, merged, served, write

from models.errors import MissingColumn
from models.layouts.records import SCHEMA, TORN, read_records, read_segment


def test_every_kind_keeps_what_it_says(tmp_path):
    file = write(
        tmp_path / "a.jsonl",
        event(1, "anna", "x", value=2, event_id="e", recommendation_id="r", context={"page": "home"}),
        served(2.5, None, "r", "x", "y", placement="home", propensities=[0.5, 1], degraded=["deadline"]),
        erased(3, "anna"),
        merged(4, "anonymous", "anna"),
    )
    first, _ = read_segment(file)
    assert first.frame.schema == SCHEMA
    assert first.lines.tolist() == [1, 2, 3, 4]
    one, two, three, four = first.frame.to_dicts()
    assert (one["value"], one["timestamp"], one["context"]) == (2.0, 1.0, '{"page":"home"}')
    assert (two["items"], two["propensities"], two["user_id"]) == (["x", "y"], [0.5, 1.0], None)
    assert (two["timings_ms"], two["degraded"], two["ranked"]) == ('{"state":0.1}', ["deadline"], False)
    assert (three["kind"], three["user_id"]) == ("erased", "anna")
    assert (four["user_id"], four["into"]) == ("anonymous", "anna")


def test_a_part_holds_the_same(tmp_path):
    (batch, _) = read_segment(write(tmp_path / "a.jsonl", event(1, "anna", "x"), served(2, "anna", "r", "x")))
    batch.frame.drop("propensities").write_parquet(tmp_path / "a.parquet")
    (again,) = read_records(tmp_path / "a.parquet")
    assert again.frame.equals(batch.frame)


def test_another_table_is_no_part(tmp_path):
    pl.DataFrame({"user_id": ["a"]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(MissingColumn, match="kind, time"):
        list(read_records(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"time": 1}', "unknown kind"),
        ('{"kind": "eaten", "time": 1}', "unknown kind"),
        ('{"kind": "erased", "time": 1}', "missing user_id"),
        ('{"kind": "erased", "user_id": "a"}', "missing time"),
        ('{"kind": "erased", "time": "1", "user_id": "a"}', "time of another type"),
        ('{"kind": "erased", "time": true, "user_id": "a"}', "time of another type"),
        ('{"kind": "erased", "time": 1, "user_id": 5}', "user_id of another type"),
        ('{"kind": "erased", "time": 1, "user_id": "a", "context": "x"}', "context of another type"),
        ('{"kind": "erased", "time": 1, "user_id": "a", "first": 1.5}', "first of another type"),
        ('{"kind": "erased", "time": 1, "user_id": "a", "ranked": 1}', "ranked of another type"),
        (
            '{"kind": "served", "time": 1, "recommendation_id": "r", "items": [1], "scores": [1], "sources": ["s"]}',
            "items of another type",
        ),
        (
            '{"kind": "served", "time": 1, "recommendation_id": "r", "items": ["a"], "scores": [""], "sources": ["s"]}',
            "scores of another type",
        ),
        (
            '{"kind": "served", "time": 1, "recommendation_id": "r", "items": ["a"], "scores": [], "sources": ["s"]}',
            "items, scores and sources of different lengths",
        ),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line, reason):
    write(tmp_path / "a.jsonl", event(1, "anna", "x"), end=f"{line}\n")
    batch, _ = read_segment(tmp_path / "a.jsonl")
    (fault,) = batch.faults
    assert (fault.reason, fault.examples[0][0]) == (reason, 2)
    assert batch.frame.height == 1


def test_fields_of_later_versions_are_passed_over(tmp_path):
    batch, _ = read_segment(write(tmp_path / "a.jsonl", event(1, "anna", "x", weather=["sun"])))
    assert batch.frame.height == 1


@pytest.mark.parametrize("torn", ['{"kind":"event","ti', '{"kind":"event","time":1}', "\0\0\0"])
def test_torn_last_line_is_left_out_and_counted(tmp_path, torn):
    first, tail = read_segment(write(tmp_path / "a.jsonl", event(1, "anna", "x"), end=torn))
    assert first.frame.height == 1
    assert (tail.frame.height, tail.faults, tail.dropped) == (0, (), {TORN: 1})


def test_torn_in_the_middle_of_a_letter(tmp_path):
    file = write(tmp_path / "a.jsonl", event(1, "anna", "x"))
    file.write_bytes(file.read_bytes() + '{"kind":"event","user_id":"é'.encode()[:-1])
    assert [batch.dropped for batch in read_segment(file)] == [{}, {TORN: 1}]


def test_a_last_line_that_lacks_only_its_end_is_whole(tmp_path):
    file = write(tmp_path / "a.jsonl", event(1, "anna", "x"))
    file.write_bytes(file.read_bytes()[:-1])
    assert sum(batch.frame.height for batch in read_segment(file)) == 1


def test_empty_segment(tmp_path):
    assert [batch.frame.height for batch in read_segment(write(tmp_path / "a.jsonl"))] == [0]
