"""Atomic files on lines written for this test."""

import pytest

from models.errors import MissingColumn, UnreadableData
from models.events import read_log

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\ttags:token_seq\n"


def test_types_and_names(tmp_path):
    (tmp_path / "x.inter").write_text(INTER + "u\ti\t4\t10\ta b\n")
    (tmp_path / "x.item").write_text(
        "item_id:token\tmovie_title:token_seq\tclass:token_seq\tgenre:token_seq\tvector:float_seq\n"
        "i\tToy Story\tAnimation Comedy\tFun\t0.5 1\n"
    )
    (tmp_path / "x.user").write_text("user_id:token\tage:token\nu\t31\n")
    log = read_log("recbole", tmp_path)
    assert log.events.select("user_id", "item_id", "timestamp", "value", "tags").rows() == [
        ("u", "i", 10.0, 4.0, ["a", "b"])
    ]
    assert log.items.select("item_id", "title", "categories", "genre", "vector").rows() == [
        ("i", "Toy Story", ["Animation", "Comedy"], ["Fun"], [0.5, 1.0])
    ]
    assert log.users.rows() == [("u", 31)]


def test_header_without_types(tmp_path):
    (tmp_path / "x.inter").write_text("user_id\titem_id\ttimestamp\n1\t2\t3\n")
    with pytest.raises(UnreadableData, match="'user_id' is no typed field"):
        read_log("recbole", tmp_path)


def test_missing_required_column(tmp_path):
    (tmp_path / "x.inter").write_text("user_id:token\titem_id:token\n1\t2\n")
    with pytest.raises(MissingColumn, match="timestamp is required"):
        read_log("ml-100k", tmp_path)
