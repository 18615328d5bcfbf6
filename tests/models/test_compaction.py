"""Segments into Parquet, interrupted anywhere, and nobody left who was to be forgotten."""

import contextlib
import fcntl
import io
from pathlib import Path

import polars as pl
import pytest
from service_log import erased, event, merged, served, write

from models import compaction
from models.__main__ import main
from models.compaction import CARRY_S, compact
from models.errors import BadRow, DataError, MissingData
from models.events import read_log
from models.progress import Progress

NOW = 1_700_000_000.0


def compacted(folder, *, now=NOW, **options):
    return compact(folder, Progress(io.StringIO()), now=lambda: now, **options)


def names(folder):
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))


def digest(folder):
    return read_log("log", folder).digest


def test_parts_read_like_the_segments_that_they_were(tmp_path):
    write(tmp_path / "a.jsonl", event(1, "anna", "x", context={"page": "home"}), served(2, "anna", "r", "x", "y"))
    write(tmp_path / "b.jsonl", event(3, "bert", "y", value=2.5, event_id="e"), end="{torn")
    before = digest(tmp_path)
    done = compacted(tmp_path)
    assert names(tmp_path) == ["a.parquet", "b.parquet"]
    assert digest(tmp_path) == before
    assert (done.segments, done.records, done.removed, done.open) == (2, 3, 0, 0)
    assert "left out 1: torn last lines" in str(done)
    again = compacted(tmp_path)
    assert (again.segments, again.rewritten) == (0, 0)
    assert digest(tmp_path) == before


def test_a_segment_that_is_being_written_is_left_alone(tmp_path):
    write(tmp_path / "a.jsonl", event(1, "anna", "x"))
    file = write(tmp_path / "b.jsonl", event(2, "anna", "y"))
    with file.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = compacted(tmp_path)
        assert names(tmp_path) == ["a.parquet", "b.jsonl"]
        assert done.open == 1
    compacted(tmp_path)
    assert names(tmp_path) == ["a.parquet", "b.parquet"]


def holds(folder, user, pattern="*.parquet"):
    """Whether the id is in a file, as it lies there or as it is read."""
    for file in folder.glob(pattern):
        read = str(pl.read_parquet(file).to_dicts()) if file.suffix == ".parquet" else ""
        if user.encode() in file.read_bytes() or user in read:
            return True
    return False


def test_erased_users_are_gone_from_new_parts_and_from_older_ones(tmp_path):
    write(tmp_path / "a.jsonl", event(1, "secret-1", "x"), event(1, "bert", "x"))
    compacted(tmp_path)
    assert holds(tmp_path, "secret-1")
    write(tmp_path / "b.jsonl", event(2, "secret-1", "y"), served(2, "secret-1", "r", "x"), erased(3, "secret-1"))
    done = compacted(tmp_path)
    assert (done.rewritten, done.removed) == (1, 3)
    assert not holds(tmp_path, "secret-1", "*")
    assert read_log("log", tmp_path).events["user_id"].to_list() == ["bert"]


def test_an_erasure_is_carried_on_for_a_day_for_records_on_their_way(tmp_path):
    late = write(tmp_path / "b.jsonl", event(NOW - 10, "secret-1", "x"), event(NOW - 10, "bert", "x"))
    write(tmp_path / "a.jsonl", erased(NOW - 5, "secret-1"))
    with late.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        compacted(tmp_path)
    assert not (tmp_path / "a.jsonl").exists()
    assert read_log("log", tmp_path).events["user_id"].to_list() == ["bert"]
    compacted(tmp_path)
    assert not holds(tmp_path, "secret-1")
    assert holds(tmp_path, "secret-1", "*.jsonl")
    compacted(tmp_path, now=NOW + CARRY_S)
    assert names(tmp_path) == ["b.parquet"]


def test_a_merged_user_is_the_other_one_for_good(tmp_path):
    write(tmp_path / "a.jsonl", event(1, "guest-1", "x"))
    compacted(tmp_path)
    write(tmp_path / "b.jsonl", merged(2, "guest-1", "anna"))
    compacted(tmp_path)
    assert not holds(tmp_path, "guest-1", "*")
    write(tmp_path / "c.jsonl", erased(3, "anna"), event(4, "bert", "x"))
    compacted(tmp_path)
    assert not holds(tmp_path, "anna", "*")
    assert read_log("log", tmp_path).events["user_id"].to_list() == ["bert"]


def killing(real, lives):
    """`real`, which is interrupted when it was called so many times."""
    calls = []

    def call(*given):
        if len(calls) == lives:
            raise KeyboardInterrupt
        calls.append(given)
        return real(*given)

    return call


@pytest.mark.parametrize("at", ["_write", "_carry", "unlink"])
def test_interrupted_anywhere_it_is_run_again(tmp_path, monkeypatch, at):
    write(tmp_path / "a.jsonl", event(1, "secret-1", "x"), event(1, "bert", "x"))
    compacted(tmp_path)
    write(tmp_path / "b.jsonl", event(2, "bert", "y"), erased(3, "secret-1"))
    write(tmp_path / "c.jsonl", event(2, "secret-1", "z"), event(2, "carl", "z"))
    expected = digest(tmp_path)
    for lives in range(3):
        owner = Path if at == "unlink" else compaction
        with monkeypatch.context() as patched:
            patched.setattr(owner, at, killing(getattr(owner, at), lives))
            with contextlib.suppress(KeyboardInterrupt):
                compacted(tmp_path)
        assert digest(tmp_path) == expected
    compacted(tmp_path)
    assert digest(tmp_path) == expected
    assert not holds(tmp_path, "secret-1", "*")
    assert not list(tmp_path.glob(".*.partial"))


def test_a_drained_segment_keeps_its_name_also_where_nothing_is_left_of_it(tmp_path):
    write(tmp_path / "stream-shop-1-0-2-0.jsonl", erased(1, "anna"))
    write(tmp_path / "a.jsonl", erased(1, "anna"))
    compacted(tmp_path)
    assert names(tmp_path) == ["stream-shop-1-0-2-0.parquet"]
    assert pl.read_parquet(tmp_path / names(tmp_path)[0]).is_empty()


def test_a_bad_line_stops_it_or_is_skipped(tmp_path):
    write(tmp_path / "a.jsonl", event(1, "anna", "x"), end="bad\n")
    with pytest.raises(BadRow, match=r"a\.jsonl:2: not JSON"):
        compacted(tmp_path)
    assert names(tmp_path) == ["a.jsonl"]
    assert "skipped 1: not JSON" in str(compacted(tmp_path, on_bad_row="skip"))
    assert names(tmp_path) == ["a.parquet"]


def test_two_at_a_time_exclude_each_other(tmp_path):
    with (tmp_path / ".compact").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="being compacted already"):
            compacted(tmp_path)


def test_missing_directory(tmp_path):
    with pytest.raises(MissingData, match="SEQUITUR_LOG"):
        compacted(tmp_path / "none")


def test_the_command(tmp_path, capsys):
    write(tmp_path / "a.jsonl", event(1, "anna", "x"))
    assert main(["compact", str(tmp_path)]) == 0
    assert "1 segments became Parquet, 1 records" in capsys.readouterr().out
    assert main(["compact", str(tmp_path / "none")]) == 2
