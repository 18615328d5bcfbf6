"""Items and users: one row per id, in types that do not depend on the layout."""

import polars as pl
import pytest

from models.errors import BadRow, MissingColumn, MissingData
from models.events import read_log


@pytest.fixture
def items_of(tmp_path):
    def read(text, **options):
        (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,x,1\n")
        (tmp_path / "items.csv").write_text(text)
        log = read_log("csv", tmp_path / "events.csv", tmp_path / "items.csv", **options)
        return log.items, log.report

    return read


def test_every_column(items_of):
    items, _ = items_of(
        "brand,item_id,available,price,categories,title,image,pages\n"
        "Acme,x,false,9.5, a | b||,Ex,http://e/x.png,12\n"
        ",y,,,,,,\n"
    )
    assert items.columns == ["item_id", "title", "categories", "price", "available", "image", "brand", "pages"]
    assert items.rows() == [
        ("x", "Ex", ["a", "b"], 9.5, False, "http://e/x.png", "Acme", 12),
        ("y", None, [], None, True, None, None, None),
    ]


def test_ids_alone(items_of):
    items, _ = items_of("item_id\nx\n")
    assert items.rows() == [("x", None, [], None, True, None)]


@pytest.mark.parametrize(("word", "flag"), [("1", True), ("NO", False), ("yes", True), ("False", False), ("0", False)])
def test_available_in_the_usual_words(items_of, word, flag):
    assert items_of(f"item_id,available\nx,{word}\n")[0]["available"].to_list() == [flag]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("available", "maybe", "neither true nor false"),
        ("price", "cheap", "not a number"),
        ("price", "nan", "not a num"),
    ],
)
def test_a_bad_row_of_items(items_of, column, value, reason):
    text = f"item_id,{column}\nx,1\ny,{value}\n"
    with pytest.raises(BadRow, match=rf"items\.csv:3: {column} is {reason}"):
        items_of(text)
    items, report = items_of(text, on_bad_row="skip")
    assert items["item_id"].to_list() == ["x"]
    assert sum(found.count for found in report.skipped.values()) == 1


def test_an_item_given_twice_names_both_lines(items_of):
    text = "item_id,title\nx,first\ny,other\nx,second\n"
    with pytest.raises(BadRow, match=r"items\.csv:4: item_id given twice: 'x \(first in line 2\)'"):
        items_of(text)
    items, report = items_of(text, on_bad_row="skip")
    assert items.select("item_id", "title").rows() == [("x", "first"), ("y", "other")]
    assert report.skipped["item_id given twice"].count == 1


def test_items_without_the_id_column(items_of):
    with pytest.raises(MissingColumn, match="item_id is required"):
        items_of("id,title\nx,Ex\n")


def test_a_header_alone_leaves_bare_items(items_of):
    items, report = items_of("item_id,title\n")
    assert items["item_id"].to_list() == ["x"]
    assert report.items_unlisted == 1


def test_missing_file_of_items(tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,x,1\n")
    with pytest.raises(MissingData, match=r"none\.csv, given for the items, does not exist"):
        read_log("csv", tmp_path / "events.csv", tmp_path / "none.csv")


def test_items_of_parquet_have_the_same_content(items_of, tmp_path):
    items, _ = items_of("item_id,title,categories,price,available,brand\nx,Ex,a|b,2,true,Acme\n")
    pl.DataFrame(
        {
            "item_id": ["x"],
            "title": ["Ex"],
            "categories": [["a", "b"]],
            "price": [2],
            "available": [True],
            "brand": "Acme",
        }
    ).write_parquet(tmp_path / "items.parquet")
    log = read_log("csv", tmp_path / "events.csv", tmp_path / "items.parquet")
    assert log.items.equals(items)


def test_a_core_leaves_no_item_it_removed(tmp_path):
    rows = "a,p,1\na,q,2\nb,p,1\nb,q,2\nb,x,3\n"
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\n" + rows)
    (tmp_path / "items.csv").write_text("item_id\nx\nq\np\nquiet\n")
    log = read_log("csv", tmp_path, core=2)
    assert log.items["item_id"].to_list() == ["q", "p"]
    assert log.report.items_without_event == 2


def test_users(tmp_path):
    (tmp_path / "events.csv").write_text("user_id,item_id,timestamp\nu,x,1\n")
    (tmp_path / "users.csv").write_text("age,user_id\n31,u\n32,u\n")
    with pytest.raises(BadRow, match=r"users\.csv:3: user_id given twice"):
        read_log("csv", tmp_path)
    assert read_log("csv", tmp_path, on_bad_row="skip").users.rows() == [("u", 31)]
