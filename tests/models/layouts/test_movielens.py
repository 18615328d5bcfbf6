"""MovieLens-1M as published and as a table, on lines written for this test."""

import pytest

from models.errors import BadRow
from models.events import read_log


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "movies.dat").write_bytes("1::Café, The (1995)::Drama|War\n2::No Year::Comedy\n".encode("latin-1"))
    (tmp_path / "users.dat").write_text("9::F::25::3::02460\n")
    return tmp_path


def test_the_published_files(folder):
    (folder / "ratings.dat").write_text("9::1::5::978300760\n9::2::3::978300700\n")
    log = read_log("ml-1m", folder)
    assert log.events.select("user_id", "item_id", "timestamp", "value").rows() == [
        ("9", "2", 978300700.0, 3.0),
        ("9", "1", 978300760.0, 5.0),
    ]
    assert log.items.select("item_id", "title", "categories", "year").rows() == [
        ("1", "Café, The", ["Drama", "War"], 1995),
        ("2", "No Year", ["Comedy"], None),
    ]
    assert log.users.rows() == [("9", "F", 25, 3, "02460")]


def test_the_table_of_interactions(folder):
    table = (
        "user_id\tmovie_id\trating\ttimestamp\tts_kind\n9\t1\t5\t100\tlogged\n9\t2\t0\t90\tforced\n9\t3\t0\t\tnone\n"
    )
    (folder / "interactions.tsv").write_text(table)
    log = read_log("ml-1m", folder / "interactions.tsv")
    assert log.events.select("item_id", "value", "ts_kind").rows() == [("2", None, "forced"), ("1", 5.0, "logged")]
    assert log.report.dropped == {"no time (ts_kind none)": 1}
    assert log.report.rows_read == 3
    assert log.report.skipped == {}


def test_a_time_missing_without_that_kind_is_a_bad_row(folder):
    (folder / "interactions.tsv").write_text(
        "user_id\tmovie_id\trating\ttimestamp\tts_kind\n9\t1\t5\t\tnone\n9\t2\t5\t\tlogged\n"
    )
    with pytest.raises(BadRow, match=r"interactions\.tsv:3: missing timestamp"):
        read_log("ml-1m", folder)
