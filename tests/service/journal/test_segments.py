import errno
import fcntl
import os

import pytest

from service.journal.segments import Segments
from service.journal.writer import SinkFailure


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def contents(folder):
    return [file.read_bytes() for file in sorted(folder.glob("*.jsonl"))]


def is_locked(file):
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_nothing_is_made_before_there_is_something_to_write(tmp_path, clock):
    segments = Segments(tmp_path / "log", now=clock)
    segments.tend()
    segments.close()
    assert not (tmp_path / "log").exists()


def test_lines_stand_in_one_file_that_is_locked_while_it_is_written(tmp_path, clock):
    segments = Segments(tmp_path / "a" / "log", now=clock)
    segments.write([b"1\n", b"2\n"])
    segments.write([b"3\n"])
    (file,) = (tmp_path / "a" / "log").iterdir()
    assert file.name.startswith("20231114T221320-")
    assert file.read_bytes() == b"1\n2\n3\n"
    assert is_locked(file)
    segments.close()
    assert not is_locked(file)


def test_two_writers_never_share_a_segment(tmp_path, clock):
    one, two = Segments(tmp_path, now=clock), Segments(tmp_path, now=clock)
    one.write([b"1\n"])
    two.write([b"2\n"])
    assert sorted(contents(tmp_path)) == [b"1\n", b"2\n"]
    one.close()
    two.close()


def test_a_segment_ends_when_it_is_large(tmp_path, clock):
    segments = Segments(tmp_path, now=clock, segment_bytes=4)
    for line in (b"1\n", b"22\n", b"3\n"):
        segments.write([line])
        clock.now += 1
    assert contents(tmp_path) == [b"1\n22\n", b"3\n"]
    segments.close()


@pytest.mark.parametrize("step", [60, -60])
def test_a_segment_ends_when_it_is_old_also_where_nothing_comes(tmp_path, clock, step):
    segments = Segments(tmp_path, now=clock, segment_s=60)
    segments.write([b"1\n"])
    (file,) = tmp_path.iterdir()
    clock.now += step
    segments.tend()
    assert not is_locked(file)
    segments.write([b"2\n"])
    assert len(names(tmp_path)) == 2
    segments.close()


def test_written_lines_are_on_the_disk_after_a_while(tmp_path, clock, monkeypatch):
    synced = []
    segments = Segments(tmp_path, now=clock, sync_s=1)
    segments.write([b"1\n"])
    monkeypatch.setattr(os, "fsync", synced.append)
    segments.write([b"2\n"])
    assert synced == []
    clock.now += 1
    segments.tend()
    segments.tend()
    assert len(synced) == 1
    segments.close()
    assert len(synced) == 1


def test_disk_full_leaves_no_half_line(tmp_path, clock, monkeypatch):
    segments = Segments(tmp_path, now=clock)
    segments.write([b"whole\n"])
    real, calls = os.write, []

    def full(file, data):
        calls.append(bytes(data))
        if len(calls) == 1:
            return real(file, data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    lines = [b"item 2\n"]
    with pytest.raises(SinkFailure, match="No space left on device; SEQUITUR_LOG must name a writable place"):
        segments.write(lines)
    assert calls == [b"item 2\n", b"m 2\n"]
    monkeypatch.setattr(os, "write", real)
    segments.write(lines)
    assert lines == []
    assert contents(tmp_path) == [b"whole\nitem 2\n"]
    segments.close()


def test_a_file_that_cannot_be_mended_is_left_and_another_begun(tmp_path, clock, monkeypatch):
    segments = Segments(tmp_path, now=clock)
    segments.write([b"1\n"])
    with monkeypatch.context() as broken:
        for name in ("write", "ftruncate"):
            broken.setattr(os, name, failing)
        with pytest.raises(SinkFailure):
            segments.write([b"2\n"])
    segments.write([b"2\n"])
    assert sorted(contents(tmp_path)) == [b"1\n", b"2\n"]
    segments.close()


def test_a_file_that_cannot_be_synced_is_left(tmp_path, clock, monkeypatch):
    segments = Segments(tmp_path, now=clock)
    segments.write([b"1\n"])
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", failing)
        with pytest.raises(SinkFailure, match="Input/output error"):
            segments.sync()
    segments.write([b"2\n"])
    assert len(names(tmp_path)) == 2
    segments.close()


def failing(*_):
    raise OSError(errno.EIO, "Input/output error")


def test_a_segment_that_was_taken_away_is_replaced(tmp_path, clock):
    segments = Segments(tmp_path / "log", now=clock)
    segments.write([b"1\n"])
    for file in (tmp_path / "log").iterdir():
        file.unlink()
    (tmp_path / "log").rmdir()
    segments.write([b"2\n"])
    assert contents(tmp_path / "log") == [b"2\n"]
    segments.close()


def test_a_place_that_cannot_be_written_is_named(tmp_path, clock):
    (tmp_path / "file").touch()
    with pytest.raises(SinkFailure, match=r"Not a directory|File exists"):
        Segments(tmp_path / "file", now=clock).write([b"1\n"])


def test_a_name_is_given_only_under_the_lock(tmp_path, clock, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SinkFailure, match="No locks available"):
        Segments(tmp_path, now=clock).write([b"1\n"])
    assert names(tmp_path) == []
