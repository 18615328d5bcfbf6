"""Text is cut where RFC 4180 says, every row knows its line, and only the row that is wrong is lost."""

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import EmptyLog, MissingData, UnreadableData
from models.layouts import text
from models.layouts.text import CSV, LINES, TSV, Dialect, read_text

PUBLISHED = Dialect(b"::", encoding="latin-1")


def rows(path: Path, dialect: Dialect = CSV, columns: tuple[str, ...] | None = None) -> list[tuple[int, ...]]:
    found = []
    for batch in read_text(path, dialect, columns):
        found += [(line, *row) for line, row in zip(batch.lines.tolist(), batch.frame.rows(), strict=True)]
    return found


def faults(path: Path, dialect: Dialect = CSV) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for batch in read_text(path, dialect):
        for fault in batch.faults:
            found.setdefault(fault.reason, []).extend(line for line, _ in fault.examples)
    return found


@pytest.fixture
def write(tmp_path: Path):
    def to(content: bytes, name: str = "x.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return to


@pytest.fixture(params=[1 << 23, 7], ids=["one block", "blocks of seven bytes"])
def block(request, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", request.param)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_lines_are_true_through_quoted_line_breaks_blank_lines_and_returns(write, name):
    path = write(b'a,b\r\n1,2\r\n"x\r\ny","q""z"\r\n\r\n\n"",4', name)
    assert rows(path) == [(2, "1", "2"), (3, "x\r\ny", 'q"z'), (7, "", "4")]
    assert sum(batch.blank for batch in read_text(path, CSV)) == 2


@pytest.mark.usefixtures("block")
def test_a_record_with_another_number_of_fields_is_named_and_the_rest_kept(write):
    path = write(b'a,b\n1,2,3\n"u,n",2\n5\n7,8\n')
    assert rows(path) == [(3, "u,n", "2"), (5, "7", "8")]
    assert faults(path) == {"wrong column count": [2, 4]}


@pytest.mark.usefixtures("block")
def test_stray_quotes_lose_their_own_line_only(write):
    path = write(b'a,b\n1,2\n5" disk,2\n"x\ny",8\n"a"b,1\n"open,9\n"fine",1\n')
    assert rows(path) == [(2, "1", "2"), (4, "x\ny", "8"), (8, "fine", "1")]
    assert faults(path) == {"stray quote": [3, 6, 7]}


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("limit", [8, 1 << 20])
def test_a_quote_never_closed_does_not_swallow_the_file(write, monkeypatch, limit):
    monkeypatch.setattr(text, "QUOTED_RECORD_BYTES", limit)
    path = write(b'a,b\n1,2\n"open,3\n4,5\n6,7\n8,9\n')
    assert rows(path) == [(2, "1", "2"), (4, "4", "5"), (5, "6", "7"), (6, "8", "9")]
    assert faults(path) == {"stray quote": [3]}


def test_bytes_that_are_not_utf8_are_named(write):
    path = write(b"a,b\n1,2\n\xff,3\n4,5\n")
    assert rows(path) == [(2, "1", "2"), (4, "4", "5")]
    assert faults(path) == {"not UTF-8": [3]}


def test_quotes_are_letters_where_the_dialect_has_none(write):
    assert rows(write(b'a\tb\n"1\t2"\n'), TSV) == [(2, '"1', '2"')]


def test_separators_of_two_bytes_in_latin_1(write):
    assert rows(write(b"1::\xe9 (1995)::a|b\n2::x::y\n"), PUBLISHED, ("i", "t", "g")) == [
        (1, "1", "é (1995)", "a|b"),
        (2, "2", "x", "y"),
    ]


@pytest.mark.usefixtures("block")
def test_a_line_stays_whole(write):
    assert rows(write(b"1 2,3\t4\r\n5\n"), LINES, ("line",)) == [(1, "1 2,3\t4"), (2, "5")]


def test_byte_order_mark_is_no_part_of_the_header(write):
    batch = next(read_text(write(b"\xef\xbb\xbfa,b\n1,2\n"), CSV))
    assert batch.frame.columns == ["a", "b"]


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_zero_bytes(write, name):
    with pytest.raises(EmptyLog, match="is empty"):
        list(read_text(write(b"", name), CSV))


def test_missing_file(tmp_path):
    with pytest.raises(MissingData, match="does not exist"):
        list(read_text(tmp_path / "none.csv", CSV))


def test_not_gzip_though_named_gz(tmp_path):
    path = tmp_path / "x.csv.gz"
    path.write_bytes(b"a,b\n1,2\n")
    with pytest.raises(UnreadableData, match=r"named \.gz and is not gzip"):
        list(read_text(path, CSV))


def test_gzip_cut_short(tmp_path):
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + bytes(range(32, 127)) * 100)[:-20])
    with pytest.raises(UnreadableData, match="cut short"):
        list(read_text(path, CSV))


def test_header_that_names_a_column_twice(write):
    with pytest.raises(UnreadableData, match="names column 'a' twice"):
        list(read_text(write(b"a,b,a\n1,2,3\n"), CSV))


FIELD = st.text(st.sampled_from('a,"\n\r é😀'), max_size=6)


@given(st.lists(st.tuples(FIELD, FIELD), max_size=8), st.sampled_from([5, 64]))
def test_what_a_csv_writer_writes_is_read_back(tmp_path_factory, table, size):
    target = io.StringIO()
    csv.writer(target, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("a", "b"), *table])
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_bytes(target.getvalue().encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", size)
        found = rows(path)
    lines, line = [], 2
    for a, b in table:
        lines.append(line)
        line += 1 + a.count("\n") + b.count("\n")
    assert found == [(line, a, b) for line, (a, b) in zip(lines, table, strict=True)]
