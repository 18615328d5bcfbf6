"""Likeness by words, against the cosine of whole vectors of words, one item after the other."""

import math

import numpy as np
import pytest

from retrieval.catalog import Catalog
from retrieval.likeness import Likeness, words_of

WORDS = ["sea", "storm", "Night", "old", "town", "river", "glass", "of", "the"]


def said_of(attributes: dict) -> set[tuple[str, str]]:
    """What is said of an item, by column: words and whole values."""
    texts = {name: value if isinstance(value, list) else [value] for name, value in attributes.items()}
    return {
        (name, word)
        for name, own in texts.items()
        for text in own
        if isinstance(text, str)
        for word in words_of(text, whole=True)
    }


def by_hand(items: list[dict], new: dict) -> list[float]:
    """The cosine of the new item and each other one."""
    said = [said_of(item) for item in items]
    count = {term: sum(term in own for own in said) for own in said for term in own}
    known = {term for term, times in count.items() if times > 1 or " " not in term[1]}
    weight = {term: math.log(len(items) / count[term]) for term in known}
    said = [own & known for own in said]
    shared = [sum(weight[term] ** 2 for term in own & said_of(new)) for own in said]
    length = [math.sqrt(sum(weight[term] ** 2 for term in own)) for own in said]
    return [share / own if own else 0.0 for share, own in zip(shared, length, strict=True)]


def random_item(rng: np.random.Generator) -> dict:
    item = {
        "title": " ".join(rng.choice(WORDS, rng.integers(1, 5))),
        "categories": rng.choice(WORDS[:4], rng.integers(0, 3)).tolist(),
        "author": str(rng.choice(["A. Storm", "Old Night", "B."])),
        "price": float(rng.integers(1, 9)),
    }
    return {name: value for name, value in item.items() if rng.random() < 0.8}


@pytest.mark.parametrize("seed", range(10))
def test_nearest_are_those_of_the_plain_reading(seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = [random_item(rng) for _ in range(40)]
    names = ("title", "categories", "author", "price")
    catalog = Catalog.build(
        [f"i{n}" for n in range(40)], attributes={name: [item.get(name) for item in items] for name in names}
    )
    vectors = rng.normal(size=(41, 3)).astype(np.float32)
    vectors[0] = vectors[1:][rng.random(40) < 0.2] = 0
    table, among = Likeness(catalog, vectors), vectors.any(axis=1)
    for new in (random_item(rng) for _ in range(20)):
        likeness = np.append(0.0, by_hand(items, new))
        found = table.nearest(new, 5)
        fitting = [row for row in range(1, 41) if among[row] and likeness[row] > 1e-12]
        assert len(found) == len(set(found.tolist())) == min(5, len(fitting))
        assert set(found.tolist()) <= set(fitting)
        best = np.sort(likeness[fitting])[::-1][: len(found)]
        np.testing.assert_allclose(likeness[found], best, rtol=1e-9)
        mean = vectors[found].mean(axis=0) if len(found) else np.zeros(3)
        np.testing.assert_allclose(table.vector(new, 5), mean, rtol=1e-6)


def test_nothing_in_common_is_no_likeness() -> None:
    catalog = Catalog.build(["a", "b"], attributes={"title": ["sea", "storm"], "price": [1.0, 2.0]})
    vectors = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]], np.float32)
    table = Likeness.of(catalog, vectors)
    for new in ({}, {"price": 1.0}, {"title": "river"}, {"author": "sea"}, {"title": ""}, {"title": None}):
        assert table.nearest(new, 5).tolist() == []
        assert table.vector(new, 5).tolist() == [0, 0, 0]
    assert table.nearest({"title": "The STORM"}, 5).tolist() == [2]


def test_a_catalog_of_numbers_or_of_nothing_knows_no_likeness() -> None:
    for attributes in ({}, {"price": [1.0]}, {"title": [None]}, {"tags": [[]]}):
        table = Likeness(Catalog.build(["a"], attributes=attributes), np.ones((2, 2), np.float32))
        assert table.nearest({"title": "sea"}, 5).tolist() == []


def test_equal_ones_stand_in_the_order_of_their_rows() -> None:
    catalog = Catalog.build([f"i{n}" for n in range(30)], attributes={"title": ["sea", *["storm"] * 29]})
    table = Likeness(catalog, np.ones((31, 2), np.float32))
    assert table.nearest({"title": "storm"}, 3).tolist() == [2, 3, 4]
