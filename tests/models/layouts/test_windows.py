"""Windows on lines written for this test."""

import json

import pytest

from models.errors import BadRow, MissingColumn
from models.events import read_log

HEAD = "user\thistory\ttarget\n"


def test_every_line_is_a_user_of_its_own_and_keeps_its_owner(tmp_path):
    (tmp_path / "test.tsv").write_text(HEAD + "u\t7 3 7\t5\nu\t3 7 5\t7\nv\t1\t1\n")
    (tmp_path / "items.jsonl").write_text("".join(json.dumps({"item": i, "title": f"t{i}"}) + "\n" for i in range(9)))
    log = read_log("windows", tmp_path)
    assert log.events.select("user_id", "item_id", "timestamp", "owner").rows() == [
        ("u/2", "7", 0.0, "u"),
        ("u/2", "3", 1.0, "u"),
        ("u/2", "7", 2.0, "u"),
        ("u/2", "5", 3.0, "u"),
        ("u/3", "3", 0.0, "u"),
        ("u/3", "7", 1.0, "u"),
        ("u/3", "5", 2.0, "u"),
        ("u/3", "7", 3.0, "u"),
        ("v/4", "1", 0.0, "v"),
        ("v/4", "1", 1.0, "v"),
    ]
    assert log.ordered_only
    assert log.items.height == 9


def test_empty_history_leaves_the_target_alone(tmp_path):
    (tmp_path / "test.tsv").write_text(HEAD + "u\t\t5\n")
    assert read_log("windows", tmp_path).events["item_id"].to_list() == ["5"]


def test_a_line_without_target_is_named(tmp_path):
    (tmp_path / "test.tsv").write_text(HEAD + "u\t7\t5\nw\t7 3\t\n")
    with pytest.raises(BadRow, match=r"test\.tsv:3"):
        read_log("windows", tmp_path)
    log = read_log("windows", tmp_path, on_bad_row="skip")
    assert log.events["user_id"].unique().to_list() == ["u/2"]
    assert log.report.skipped["no user or no target"].count == 1


def test_missing_column(tmp_path):
    (tmp_path / "test.tsv").write_text("user\thistory\n")
    with pytest.raises(MissingColumn, match="target"):
        read_log("windows", tmp_path)
