"""Click sessions on lines written for this test."""

import pytest

from models.errors import MissingColumn
from models.events import read_log


def test_a_session_is_a_user(tmp_path):
    (tmp_path / "train.tsv").write_text("SessionId\tItemId\tTime\n7\ta\t20.0\n7\tb\t10.5\n")
    log = read_log("serenade", tmp_path)
    assert log.events.select("user_id", "session_id", "item_id", "timestamp").rows() == [
        ("7", "7", "b", 10.5),
        ("7", "7", "a", 20.0),
    ]


def test_missing_column_names_the_published_one(tmp_path):
    (tmp_path / "train.tsv").write_text("SessionId\tItem\tTime\n")
    with pytest.raises(MissingColumn, match="column ItemId is required and not there; found SessionId, Item, Time"):
        read_log("serenade", tmp_path)
