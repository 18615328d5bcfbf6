"""Ids, rows and attributes, and that all of them survive the disk."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.catalog import MAX_ID_CHARS, Catalog, NewItem, Numbers, Tags, Words
from retrieval.errors import BundleTorn, InvalidInput, UnknownItem
from retrieval.sequences import PAD_ROW

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
columns = st.sampled_from(["numbers", "words", "tags"])
awkward = ['a,b|c"', "naïve", "日本", "📚", " ", "\n", "0", "x" * MAX_ID_CHARS, "ends in zero\0", "\0"]


@st.composite
def catalogs(draw: st.DrawFn) -> tuple[list[str], dict[str, Any]]:
    ids = draw(st.lists(text.filter(bool) | st.sampled_from(awkward), min_size=1, max_size=12, unique=True))
    n = len(ids)
    values = {
        "numbers": st.none() | st.floats(allow_nan=False) | st.integers(-(2**40), 2**40),
        "words": st.none() | text,
        "tags": st.none() | st.lists(text, max_size=3),
    }
    attributes = {
        f"{name} {at}": draw(st.lists(values[name], min_size=n, max_size=n))
        for at, name in enumerate(draw(st.lists(columns, max_size=4)))
    }
    popularity = draw(st.lists(st.floats(0, 1e9), min_size=n, max_size=n))
    available = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    return ids, {"popularity": popularity, "available": available, "attributes": attributes}


@given(given_catalog=catalogs())
@settings(max_examples=150, deadline=None)
def test_a_random_catalog_survives_the_disk(
    tmp_path_factory: pytest.TempPathFactory, given_catalog: tuple[list[str], dict[str, Any]]
) -> None:
    ids, rest = given_catalog
    path = tmp_path_factory.getbasetemp() / "catalog.npz"
    built = Catalog.build(ids, **rest)
    built.save(path)
    loaded = Catalog.load(path)
    assert len(loaded) == len(ids)
    assert loaded.rows(ids).tolist() == list(range(1, len(ids) + 1))
    np.testing.assert_array_equal(loaded.popularity, [0, *rest["popularity"]])
    np.testing.assert_array_equal(loaded.available, [False, *rest["available"]])
    for row, item_id in enumerate(ids, start=1):
        assert loaded.ids[row] == item_id
        assert loaded.row(item_id) == row
        want = {name: values[row - 1] for name, values in rest["attributes"].items()}
        assert loaded.attributes(row) == {name: value for name, value in want.items() if value not in (None, [])}
        assert loaded.attributes(row) == built.attributes(row)


def test_the_kind_of_an_attribute_follows_its_values() -> None:
    catalog = Catalog.build(
        ["a", "b"],
        attributes={
            "price": [1, None],
            "flag": [True, False],
            "brand": ["x", None],
            "mixed": [1, "x"],
            "tags": [None, ["x"]],
            "absent": [None, None],
        },
    )
    kinds = {name: type(column) for name, column in catalog.columns.items()}
    assert kinds == {"price": Numbers, "flag": Numbers, "brand": Words, "mixed": Words, "tags": Tags, "absent": Words}
    assert catalog.attributes(1) == {"price": 1.0, "flag": 1.0, "brand": "x", "mixed": "1"}
    assert catalog.attributes(2) == {"flag": 0.0, "mixed": "x", "tags": ["x"]}


def test_the_padding_row_is_no_item() -> None:
    catalog = toy.catalog()
    assert catalog.ids[PAD_ROW] == ""
    assert not catalog.available[PAD_ROW]
    assert catalog.popularity[PAD_ROW] == 0
    assert catalog.rows([""]).tolist() == [PAD_ROW]
    assert catalog.attributes(PAD_ROW) == {}
    with pytest.raises(UnknownItem):
        catalog.row("")


def test_unknown_ids_have_no_row() -> None:
    catalog = toy.catalog()
    assert catalog.rows(["i03", "elsewhere", "i01"]).tolist() == [3, PAD_ROW, 1]
    assert catalog.rows([]).dtype == np.int64
    with pytest.raises(UnknownItem, match="'elsewhere'") as refused:
        catalog.row("elsewhere")
    assert refused.value.item_id == "elsewhere"


def test_what_is_left_out_is_zero_and_available() -> None:
    catalog = Catalog.build(["a"])
    assert catalog.popularity.tolist() == [0, 0]
    assert catalog.available.tolist() == [False, True]
    assert catalog.attributes(1) == {}


def test_infinite_numbers_survive_and_nan_is_absent() -> None:
    catalog = Catalog.build(["a", "b"], attributes={"price": [math.inf, math.nan]})
    assert catalog.attributes(1) == {"price": math.inf}
    assert catalog.attributes(2) == {}


@pytest.mark.parametrize(
    ("ids", "rest", "says"),
    [
        ([], {}, "catalog is empty"),
        (["a", ""], {}, "has 0 characters"),
        (["x" * 257], {}, "has 257 characters; 1 to 256"),
        (["a", "b", "a"], {}, r"'a' stands twice in the catalog \(rows 1 and 3\)"),
        (["a"], {"popularity": [1, 2]}, r"popularity has shape \(2,\)"),
        (["a"], {"available": []}, r"available has shape \(0,\)"),
        (["a"], {"attributes": {"price": [1, 2]}}, "'price' has 2 values, the catalog has 1"),
    ],
)
def test_a_catalog_that_contradicts_itself_is_refused(ids: list[str], rest: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        Catalog.build(ids, **rest)


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "garbage", "lacks ids", "pickled"])
def test_a_file_that_is_no_catalog_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "catalog.npz"
    toy.catalog().save(path)
    match damage:
        case "gone":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(path.read_bytes()[:400])
        case "garbage":
            path.write_bytes(b"not a catalog")
        case "lacks ids":
            np.savez(path, popularity=np.zeros(3))
        case "pickled":
            np.savez(path, popularity=np.array([{"any": "object"}], dtype=object))
    with pytest.raises(BundleTorn, match=r"catalog\.npz is not a readable catalog"):
        Catalog.load(path)


def test_a_year_is_answered_as_a_whole_number_and_a_price_is_not():
    made = Catalog.build(["a", "b", "c"], attributes={"year": [1968, -700, None], "price": [8.0, 8.5, None]})
    assert [made.attributes(row) for row in (1, 2, 3)] == [
        {"year": 1968, "price": 8.0},
        {"year": -700, "price": 8.5},
        {},
    ]
    assert isinstance(made.attributes(1)["year"], int)
    assert isinstance(made.attributes(1)["price"], float)


def test_a_number_beyond_every_integer_stays_one_that_json_writers_take():
    made = Catalog.build(["a", "b"], attributes={"size": [-2.9e20, 2.0**53]})
    assert [type(made.attributes(row)["size"]) for row in (1, 2)] == [float, int]


# --- a catalog that grows ------------------------------------------------------------------------------------

known = {
    "price": st.none() | st.integers(0, 9),
    "title": st.none() | text,
    "tags": st.none() | st.lists(text, max_size=3),
}


@st.composite
def changes(draw: st.DrawFn) -> list[list[NewItem]]:
    item = st.builds(
        NewItem,
        st.sampled_from("abcdefgh"),
        st.fixed_dictionaries({}, optional=known),
        st.integers(0, 5).map(float),
        st.booleans(),
    )
    return draw(st.lists(st.lists(item, max_size=4, unique_by=lambda i: i.item_id), max_size=4))


@given(changes())
@settings(max_examples=100, deadline=None)
def test_a_catalog_that_grew_is_the_one_that_was_built_so(waves: list[list[NewItem]]) -> None:
    """In any order of changes: the last attributes, the first popularity, rows in order of appearance."""
    first = [NewItem("a", {"price": 1, "title": "x", "tags": ["t", "u"]}, 3.0), NewItem("b", {"tags": ["v"]}, 2.0)]
    attributes = {name: [item.attributes.get(name) for item in first] for name in known}
    grown = Catalog.build([i.item_id for i in first], popularity=[i.popularity for i in first], attributes=attributes)
    state = {item.item_id: item for item in first}
    for wave in waves:
        before = grown, [grown.attributes(row) for row in range(1, len(grown) + 1)]
        grown = grown.with_items(wave)
        assert [before[0].attributes(row) for row in range(1, len(before[0]) + 1)] == before[1]
        for item in wave:
            popularity = state[item.item_id].popularity if item.item_id in state else item.popularity
            state[item.item_id] = NewItem(item.item_id, item.attributes, popularity, item.available)
    assert grown.ids == ("", *state)
    assert grown.trained == 2
    for row, item in enumerate(state.values(), start=1):
        assert grown.row(item.item_id) == row
        assert grown.popularity[row] == item.popularity
        assert grown.available[row] == item.available
        assert grown.attributes(row) == {k: v for k, v in item.attributes.items() if v is not None and v != []}
    assert (grown.popularity[0], grown.available[0]) == (0, False)


def test_an_attribute_that_nobody_had_is_a_column_of_its_own() -> None:
    grown = toy.catalog().with_items([NewItem("n", {"pages": 3, "shelf": "A", "moods": ["dark"], "gone": None})])
    assert grown.attributes(21) == {"pages": 3, "shelf": "A", "moods": ["dark"]}
    assert "pages" not in grown.attributes(1)
    assert grown.attributes(3) == toy.catalog().attributes(3)


def test_what_is_taken_out_is_unavailable_and_known() -> None:
    catalog = toy.catalog()
    less = catalog.without(np.array([2, 3]))
    assert np.flatnonzero(catalog.available & ~less.available).tolist() == [2, 3]
    assert less.attributes(2) == catalog.attributes(2)


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([NewItem("x"), NewItem("x")], "'x' stands twice among the changes"),
        ([NewItem("x" * 257)], "257 characters"),
        ([NewItem("x", {"price": "3"})], "'price' holds numbers"),
        ([NewItem("x", {"title": 3})], "'title' holds strings"),
        ([NewItem("x", {"categories": "red"})], "'categories' holds lists of strings"),
        ([NewItem("x", {"categories": ["red", 3]})], "'categories' holds lists of strings"),
    ],
)
def test_a_change_that_contradicts_the_catalog_is_refused(items: list[NewItem], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        toy.catalog().with_items(items)
