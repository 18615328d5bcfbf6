"""Logs of order alone, on lines written for this test."""

import pytest

from models.errors import BadRow, OrderOnly
from models.events import read_log


def events(log):
    return log.events.select("user_id", "item_id", "timestamp").rows()


def test_pairs_keep_their_order_and_may_interleave_users(tmp_path):
    (tmp_path / "x.txt").write_text("2 b\n1 a\n2\tc\n\n1 a\n")
    log = read_log("sasrec-txt", tmp_path)
    assert events(log) == [("2", "b", 0.0), ("2", "c", 1.0), ("1", "a", 0.0), ("1", "a", 1.0)]
    assert log.ordered_only
    assert log.report.first_time_s is None
    assert log.report.blank_lines == 1


def test_a_pair_with_a_third_word(tmp_path):
    (tmp_path / "x.txt").write_text("1 a\n1 a 5\n")
    with pytest.raises(BadRow, match=r"x\.txt:2: wrong column count: '1 a 5'; every line is: user item"):
        read_log("sasrec-txt", tmp_path)


def test_lists_with_a_user_on_two_lines(tmp_path):
    (tmp_path / "x.txt").write_text("1 a b\n2 c\n1 d\n")
    log = read_log("s3rec", tmp_path)
    assert events(log) == [("1", "a", 0.0), ("1", "b", 1.0), ("1", "d", 2.0), ("2", "c", 0.0)]
    assert log.report.rows_read == 4


def test_a_user_without_items(tmp_path):
    (tmp_path / "x.txt").write_text("1 a b\n2\n3 c\n")
    with pytest.raises(BadRow, match=r"x\.txt:2: missing item_id: '2'"):
        read_log("s3rec", tmp_path)
    log = read_log("s3rec", tmp_path, on_bad_row="skip")
    assert log.report.skipped["missing item_id"].examples == [f"{tmp_path / 'x.txt'}:2: '2'"]
    assert log.report.users == 2


def test_an_overlong_id_in_a_list_is_named_by_its_line(tmp_path):
    (tmp_path / "x.txt").write_text(f"1 a b\n2 c {'x' * 257} d\n")
    with pytest.raises(BadRow, match=r"x\.txt:2: overlong item_id: 'x+'\.\.\. \(257 characters\)"):
        read_log("s3rec", tmp_path)


def test_microlens(tmp_path):
    (tmp_path / "pairs.tsv").write_text("1\ta b\n2\tb\n")
    (tmp_path / "titles.csv").write_text('item,title\na,"One, two"\nb,Three\n')
    log = read_log("microlens", tmp_path)
    assert events(log) == [("1", "a", 0.0), ("1", "b", 1.0), ("2", "b", 0.0)]
    assert log.items.select("item_id", "title").rows() == [("a", "One, two"), ("b", "Three")]


def test_items_as_json_objects(tmp_path):
    (tmp_path / "x.txt").write_text("1 1 2\n")
    (tmp_path / "items.jsonl").write_text(
        '{"item": 1, "title": "Nail file", "categories": [["Beauty", "Nails"], ["Beauty", "Tools"]], "asin": "B0"}\n'
        '{"item": 2}\n'
    )
    log = read_log("s3rec", tmp_path)
    assert log.items.select("item_id", "title", "categories", "asin").rows() == [
        ("1", "Nail file", ["Beauty", "Nails", "Tools"], "B0"),
        ("2", None, [], None),
    ]


@pytest.mark.parametrize("line", ["{", "[1]", '{"title": "no id"}'])
def test_items_that_are_no_json_objects(tmp_path, line):
    (tmp_path / "x.txt").write_text("1 1 2\n")
    (tmp_path / "items.jsonl").write_text('{"item": 1}\n' + line + "\n")
    with pytest.raises(BadRow, match=r"items\.jsonl:2: not a JSON object"):
        read_log("s3rec", tmp_path)


def test_times_are_refused_where_there_is_only_an_order(tmp_path):
    (tmp_path / "x.txt").write_text("1 a b\n")
    with pytest.raises(OrderOnly, match="the temporal split needs times, and layout s3rec"):
        read_log("s3rec", tmp_path).require_times("the temporal split")
