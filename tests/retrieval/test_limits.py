"""Limits: which words are counted, and for whom."""

import numpy as np
import pytest

from retrieval.catalog import Catalog, NewItem
from retrieval.errors import InvalidRule
from retrieval.limits import Limits
from retrieval.rules import Cap

CATALOG = Catalog.build(
    ["a", "b", "c", "d", "e"],
    attributes={
        "categories": [["red", "round"], ["round", "red"], ["red"], None, ["blue", "red", "red"]],
        "brand": ["acme", None, "acme", "other", None],
        "price": [1.0, 2.0, 3.0, 4.0, 5.0],
    },
)


def carried(limits: Limits, row: int) -> set[tuple[int, str]]:
    words = limits.words(limits.kinds[np.array([row])])[:, 0]
    return {limits.names[w] for w in words.tolist() if w < len(limits.names)}


def test_every_word_of_every_cap_is_counted_on_its_own() -> None:
    limits = Limits(CATALOG, [Cap(2), Cap(1, "brand")])
    assert carried(limits, 1) == {(0, "red"), (0, "round"), (1, "acme")}
    assert carried(limits, 2) == {(0, "red"), (0, "round")}
    assert carried(limits, 4) == {(1, "other")}
    assert carried(limits, 5) == {(0, "red"), (0, "blue")}
    assert carried(limits, 0) == set()
    assert {name: int(most) for name, most in zip(limits.names, limits.most, strict=False)} == {
        **dict.fromkeys([(0, "blue"), (0, "red"), (0, "round")], 2),
        **dict.fromkeys([(1, "acme"), (1, "other")], 1),
    }


def test_only_words_that_a_cap_names_are_counted() -> None:
    limits = Limits(CATALOG, [Cap(2, values=("red", "unheard of"))])
    assert [carried(limits, row) for row in range(6)] == [set(), *[{(0, "red")}] * 3, set(), {(0, "red")}]
    assert limits.kinds[1] == limits.kinds[3]  # one kind, whatever else they carry


def test_one_column_may_have_several_caps() -> None:
    limits = Limits(CATALOG, [Cap(3), Cap(1, values=("red",))])
    assert carried(limits, 3) == {(0, "red"), (1, "red")}


def test_items_that_came_later_have_kinds() -> None:
    limits = Limits(CATALOG.with_items([NewItem("f", {"categories": ["new", "red"]})]), [Cap(2)])
    assert carried(limits, 6) == {(0, "new"), (0, "red")}


def test_nobody_carries_anything() -> None:
    limits = Limits(CATALOG, [Cap(2, values=("unheard of",))])
    assert limits.words(limits.kinds).shape == (0, 6)


def test_a_column_that_is_absent_or_holds_numbers_is_refused_with_those_that_would_do() -> None:
    with pytest.raises(
        InvalidRule,
        match="a cap of 2 reads 'genre', which the catalog does not have; columns of words or tags: brand, categories",
    ):
        Limits(CATALOG, [Cap(2, "genre")])
    with pytest.raises(InvalidRule, match="a cap of 2 reads 'price', which does not hold words or tags"):
        Limits(CATALOG, [Cap(2, "price")])
