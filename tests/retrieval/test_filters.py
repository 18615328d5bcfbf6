"""Filters against plain Python over the items' attributes, and what is remembered."""

import threading
from typing import Any

import numpy as np
import pytest
import toy
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import filters
from retrieval.catalog import Catalog, NewItem
from retrieval.errors import InvalidFilter
from retrieval.filters import LONG_INCLUDE, NO_FILTER, AttributeRule, Filter, Filters

PRICES = [None, 1.0, 2.0, 2.5, 10.0]
BRANDS = [None, "acme", "acme & sons", "Łódź", ""]
CATEGORIES = ["red", "blue", "a,b", "ü"]

items = st.fixed_dictionaries(
    {
        "available": st.booleans(),
        "price": st.sampled_from(PRICES),
        "brand": st.sampled_from(BRANDS),
        "categories": st.lists(st.sampled_from(CATEGORIES), max_size=3, unique=True),
    }
)
numbers = st.sampled_from([1, 2, 2.5, 3.0, 10, -1])
words = st.sampled_from(["acme", "sons", "Łódź", "", "nobody"])
rules = st.one_of(
    st.builds(AttributeRule, st.just("price"), st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), numbers),
    st.builds(AttributeRule, st.just("price"), st.just("in"), st.lists(numbers, max_size=3)),
    st.builds(AttributeRule, st.just("brand"), st.sampled_from(["==", "!=", "contains"]), words),
    st.builds(AttributeRule, st.just("brand"), st.just("in"), st.lists(words, max_size=3)),
    st.builds(AttributeRule, st.just("categories"), st.just("contains"), st.sampled_from(CATEGORIES)),
    st.builds(AttributeRule, st.just("categories"), st.just("in"), st.lists(st.sampled_from(CATEGORIES), max_size=2)),
)
names = st.lists(st.sampled_from([*CATEGORIES, "none such"]), max_size=2).map(tuple)
ids = st.lists(st.sampled_from(["i1", "i2", "i3", "i4", "elsewhere"]), max_size=4).map(tuple)
requests = st.builds(
    Filter,
    exclude_ids=ids,
    include_ids=st.none() | ids,
    any_categories=names,
    no_categories=names,
    attributes=st.lists(rules, max_size=2).map(tuple),
)


def catalog_of(rows: list[dict[str, Any]]) -> Catalog:
    return Catalog.build(
        [f"i{n}" for n in range(1, len(rows) + 1)],
        available=[row["available"] for row in rows],
        attributes={name: [row[name] for row in rows] for name in ("price", "brand", "categories")},
    )


def holds(rule: AttributeRule, item: dict[str, Any]) -> bool:
    """The rule, read by a person."""
    value = item[rule.name]
    if rule.op == "!=":
        return value != rule.value
    if value is None:
        return False
    if rule.name == "categories":
        return bool(set(value) & (set(rule.value) if rule.op == "in" else {rule.value}))
    return {
        "==": lambda: value == rule.value,
        "<": lambda: value < rule.value,
        "<=": lambda: value <= rule.value,
        ">": lambda: value > rule.value,
        ">=": lambda: value >= rule.value,
        "in": lambda: value in rule.value,
        "contains": lambda: rule.value in value,
    }[rule.op]()


def allowed(item_id: str, item: dict[str, Any], request: Filter) -> bool:
    return (
        item["available"]
        and (request.include_ids is None or item_id in request.include_ids)
        and (not request.any_categories or bool(set(item["categories"]) & set(request.any_categories)))
        and not set(item["categories"]) & set(request.no_categories)
        and all(holds(rule, item) for rule in request.attributes)
    )


# One item of every kind first, so that no column of a drawn catalog is without values and changes its kind.
FULL = {"available": True, "price": 2.0, "brand": "acme", "categories": ["red"]}


@given(drawn=st.lists(items, max_size=12), request=requests)
@settings(max_examples=300, deadline=None)
def test_what_is_eligible_is_what_a_person_would_pick(drawn: list[dict[str, Any]], request: Filter) -> None:
    drawn = [FULL, *drawn]
    eligible = Filters(catalog_of(drawn)).eligible(request)
    want = [row for row, item in enumerate(drawn, start=1) if allowed(f"i{row}", item, request)]
    assert eligible.rows.tolist() == want
    assert eligible.count == len(want)
    assert not eligible.mask[0]
    bits = np.unpackbits(eligible.bitmap, bitorder="little")
    assert (np.flatnonzero(bits) + 1).tolist() == want


@pytest.mark.parametrize(
    ("name", "op", "value", "rows"),
    [
        ("price", "==", 2, [2]),
        ("price", "!=", 2, [1, 3, 4]),
        ("price", "<", 3, [1, 2]),
        ("price", "<=", 3, [1, 2, 3]),
        ("price", ">", 2, [3]),
        ("price", ">=", 2, [2, 3]),
        ("price", "in", [1, 3.0, 9], [1, 3]),
        ("price", "in", [], []),
        ("brand", "==", "acme", [1]),
        ("brand", "!=", "acme", [2, 3, 4]),
        ("brand", "in", ["acme", "Łódź"], [1, 3]),
        ("brand", "contains", "acme", [1, 2]),
        ("brand", "contains", "", [1, 2, 3]),
        ("tags", "contains", "x", [1, 3]),
        ("tags", "in", ["y", "z"], [1, 2]),
    ],
)
def test_an_operator_means_what_it_says(name: str, op: str, value: Any, rows: list[int]) -> None:
    """The fourth item has none of the attributes: it fits `!=` and nothing else."""
    catalog = Catalog.build(
        ["a", "b", "c", "d"],
        attributes={
            "price": [1, 2, 3, None],
            "brand": ["acme", "acme & sons", "Łódź", None],
            "tags": [["x", "y"], ["z"], ["x"], None],
        },
    )
    assert Filters(catalog).eligible(Filter(attributes=(AttributeRule(name, op, value),))).rows.tolist() == rows


@pytest.fixture
def toy_filters() -> Filters:
    return Filters(toy.catalog())


def test_no_filter_allows_what_is_available(toy_filters: Filters) -> None:
    eligible = toy_filters.eligible(NO_FILTER)
    assert eligible.count == toy.N - 1  # i20 is out of stock
    assert 20 not in eligible.rows


def test_equal_filters_get_the_same_object_whatever_they_exclude(toy_filters: Filters) -> None:
    first = toy_filters.eligible(Filter(any_categories=("red",)))
    assert toy_filters.eligible(Filter(any_categories=("red",), exclude_ids=("i03",))) is first
    assert toy_filters.eligible(Filter(exclude_ids=("i03",))) is toy_filters.eligible(NO_FILTER)
    assert 3 in first.rows


def test_only_the_recent_selections_are_remembered() -> None:
    memory = Filters(toy.catalog(), cache_size=2)
    red, blue, all_ = (Filter(any_categories=(name,)) for name in ("red", "blue", "all"))
    first = memory.eligible(red)
    memory.eligible(blue)
    assert memory.eligible(red) is first  # used again, so blue is now the oldest
    memory.eligible(all_)
    assert memory.eligible(red) is first
    assert len(memory._recent) == 2


def test_memory_for_selections_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "CACHE_BYTES", 3 * (toy.N + 1))
    memory = Filters(toy.catalog())
    for price in range(10):
        memory.eligible(Filter(attributes=(AttributeRule("price", "<", price),)))
    assert len(memory._recent) == 3


def test_a_long_list_of_candidates_is_not_remembered(toy_filters: Filters) -> None:
    long = Filter(include_ids=(*(f"x{n}" for n in range(LONG_INCLUDE)), "i01"))
    assert toy_filters.eligible(long).rows.tolist() == [1]
    assert toy_filters.eligible(long) is not toy_filters.eligible(long)
    short = Filter(include_ids=("i01", "unheard of"))
    assert toy_filters.eligible(short) is toy_filters.eligible(short)


def test_threads_that_ask_at_once_share_one_object(toy_filters: Filters, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads meet while they are all still building, so every one of them comes with an object of its own."""
    barrier, build, got = threading.Barrier(8), toy_filters._mask, []

    def build_together(asked: Filter) -> Any:
        barrier.wait(timeout=10)
        return build(asked)

    monkeypatch.setattr(toy_filters, "_mask", build_together)
    threads = [
        threading.Thread(target=lambda: got.append(toy_filters.eligible(Filter(no_categories=("red",)))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len({id(eligible) for eligible in got}) == 1


def test_an_empty_list_of_candidates_allows_nothing(toy_filters: Filters) -> None:
    assert toy_filters.eligible(Filter(include_ids=())).count == 0


def test_all_filtered(toy_filters: Filters) -> None:
    eligible = toy_filters.eligible(Filter(any_categories=("red",), no_categories=("all",)))
    assert eligible.count == len(eligible.rows) == 0


def test_unknown_categories_match_nothing(toy_filters: Filters) -> None:
    assert toy_filters.eligible(Filter(any_categories=("mauve",))).count == 0
    assert toy_filters.eligible(Filter(no_categories=("mauve",))).count == toy.N - 1


def test_a_catalog_without_categories_has_none_to_match() -> None:
    bare = Filters(Catalog.build(["a", "b"]))
    assert bare.eligible(Filter(any_categories=("red",))).count == 0
    assert bare.eligible(Filter(no_categories=("red",))).count == 2


def test_a_column_of_single_words_serves_as_categories() -> None:
    single = Filters(Catalog.build(["a", "b"], attributes={"categories": ["red", None]}))
    assert single.eligible(Filter(any_categories=("red",))).rows.tolist() == [1]


def test_a_selection_cannot_be_changed(toy_filters: Filters) -> None:
    with pytest.raises(ValueError, match="read-only"):
        toy_filters.eligible(NO_FILTER).mask[3] = False


def test_the_catalog_is_left_as_it_was() -> None:
    catalog = toy.catalog()
    Filters(catalog).eligible(Filter(any_categories=("red",)))
    assert catalog.available[1:20].all()
    assert catalog.available.flags.writeable


def test_an_unknown_attribute_is_named_beside_the_known_ones(toy_filters: Filters) -> None:
    with pytest.raises(InvalidFilter, match=r"no attribute 'colour'; it has: categories, price, title"):
        toy_filters.eligible(Filter(attributes=(AttributeRule("colour", "==", "red"),)))


@pytest.mark.parametrize(
    ("name", "op", "value", "says"),
    [
        ("price", "contains", 3, "holds numbers, which know"),
        ("title", "<", "M", "holds words, which know"),
        ("categories", "==", "red", "holds tags, which know in, contains"),
        ("price", "<", "20", "compare it with a number, not with '20'"),
        ("price", "in", [1, "2"], "compare it with a number"),
        ("title", "==", 7, "compare it with a string, not with 7"),
        ("categories", "in", ["red", 1], "compare it with a string"),
    ],
)
def test_a_rule_that_the_kind_does_not_know_is_refused(
    toy_filters: Filters, name: str, op: str, value: Any, says: str
) -> None:
    with pytest.raises(InvalidFilter, match=says):
        toy_filters.eligible(Filter(attributes=(AttributeRule(name, op, value),)))


@pytest.mark.parametrize(
    ("op", "value", "says"),
    [
        ("~", 1, "operator '~' on 'price' is unknown; use one of ==, !="),
        ("in", 1, "`in` takes a list"),
        ("==", [1], "`in` takes a list"),
        ("==", None, "only finite numbers and strings"),
        ("==", {"a": 1}, "only finite numbers and strings"),
        ("<", float("nan"), "only finite numbers"),
        ("<", float("inf"), "only finite numbers"),
        ("<", 10**400, "only finite numbers"),
        ("in", [[1]], "only finite numbers"),
    ],
)
def test_a_rule_that_means_nothing_is_refused_when_it_is_made(op: str, value: Any, says: str) -> None:
    with pytest.raises(InvalidFilter, match=says):
        AttributeRule("price", op, value)


def test_a_rule_keeps_its_list_out_of_the_callers_hands() -> None:
    values = [1, 2]
    rule = AttributeRule("price", "in", values)
    values.append(3)
    assert rule.value == (1, 2)
    assert hash(rule) == hash(AttributeRule("price", "in", (1, 2)))


# --- items that came later -----------------------------------------------------------------------------------


def test_only_new_items_are_those_behind_the_trained_ones() -> None:
    grown = toy.catalog().with_items(
        [NewItem("a", {"categories": ["red"]}), NewItem("b", available=False), NewItem("c"), NewItem("i03")]
    )
    filters = Filters(grown)
    assert filters.eligible(Filter(new_only=True)).rows.tolist() == [21, 23]
    assert filters.eligible(Filter(new_only=True, any_categories=("red",))).rows.tolist() == [21]
    assert filters.eligible(Filter(new_only=True)) is filters.eligible(Filter(new_only=True))
    assert filters.eligible(NO_FILTER).count == 21


def test_a_catalog_that_did_not_grow_has_no_new_items(toy_filters: Filters) -> None:
    assert toy_filters.eligible(Filter(new_only=True)).count == 0
