"""What is looked up of items: codes and numbers against plain Python, and declarations that do not fit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracles_features import FEATURES, LATER, TRAINED, World, of_item, world

from retrieval.catalog import Catalog, NewItem
from retrieval.errors import BundleForeign
from retrieval.feature_sources import AFFINITY_WORDS
from retrieval.features import Category, FeatureSet, FeatureTables, Number
from retrieval.statistics import Statistics
from retrieval.tasks import Task

LIKE = (Task("like", op=">=", value=4.0),)


@pytest.fixture(scope="module")
def some() -> World:
    return world(np.random.default_rng(5))


def nothing(n: int, tasks: int = 1) -> Statistics:
    nan = np.full((n + 1, tasks), np.nan, np.float32)
    return Statistics(np.zeros(0, np.int64), np.zeros(0, np.float32), nan, nan[:, 0])


def made(catalog: Catalog, **fields: Any) -> FeatureTables:
    vectors = np.ones((len(catalog) + 1, 2), np.float32)
    return FeatureTables.of(FeatureSet(LIKE, **fields), nothing(catalog.trained), catalog, vectors)


@pytest.mark.parametrize("seed", range(4))
def test_codes_of_every_item(seed: int) -> None:
    of = world(np.random.default_rng(seed))
    tables = of.tables()
    expected = [
        [code for category in FEATURES.candidate_codes for code in of_item(of, category, row)]
        for row in range(TRAINED + LATER + 1)
    ]
    assert tables.codes.tolist() == expected
    assert tables.event_codes.tolist() == [line[:4] for line in expected]
    assert (tables.codes.dtype, tables.codes.flags.c_contiguous) == (np.int64, True)
    assert tables.codes.max(axis=0).tolist() <= [FEATURES.candidate_codes[at].size - 1 for at in FEATURES.code_columns]


def test_a_new_item_has_codes_in_the_hashed_slots_and_absent_numbers(some: World) -> None:
    tables = some.tables()
    first = TRAINED + 1
    assert (tables.codes[first:, 0] >= 1).all()
    assert (tables.codes[first:, 0] <= FEATURES.candidate_codes[0].slots).all()
    known, never_met = tables.codes[first, 1:3]  # genre 1, and a word that came with the item
    assert known == 1 + 2 + some.catalog.columns["genres"].vocabulary.index("genre 1")
    assert 1 <= never_met <= 2
    sources = [FEATURES.candidate_numbers[at].source for at in tables.number_columns]
    for source in ("value", "rate:like"):
        assert np.isnan(tables.numbers[first:, sources.index(source)]).all()
    years = tables.numbers[first:, sources.index("attribute:year")]
    assert np.isnan(years).tolist() == [False, True, True, True]
    assert np.isfinite(tables.numbers[first:, sources.index("popularity")]).all()


def test_what_is_new_moves_nothing_that_was_there(some: World) -> None:
    before = some.tables()
    catalog = some.catalog.with_items([NewItem("newest", {"genres": [f"w{n}" for n in range(99)], "maker": "x"})])
    vectors = np.concatenate([some.array, np.ones((1, some.array.shape[1]), np.float32)])
    after = FeatureTables.of(FEATURES, some.statistics, catalog, vectors)
    for name in ("codes", "event_codes", "numbers"):
        assert getattr(after, name)[:-1].tobytes() == getattr(before, name).tobytes(), name
    assert after.lookups.directions[:-1].tobytes() == before.lookups.directions.tobytes()


def test_the_row_of_padding_has_nothing(some: World) -> None:
    tables = some.tables()
    assert not tables.codes[0].any()
    assert np.isnan(tables.numbers[0]).all()
    assert not tables.lookups.directions[0].any()


def test_more_ids_than_were_known_share_the_slots() -> None:
    catalog = Catalog.build(["a", "b", "c"])
    assert made(catalog, candidate_codes=(Category("id", 2),)).codes[:, 0].tolist() == [0, 2, 3, 1]
    assert made(catalog, candidate_codes=(Category("id", 0),)).codes[:, 0].tolist() == [0, 1, 1, 1]
    assert made(catalog, candidate_codes=(Category("id", 9),)).codes[:, 0].tolist() == [0, 2, 3, 4]


def test_one_word_in_several_columns_stands_in_the_first() -> None:
    catalog = Catalog.build(["a", "b"], attributes={"maker": ["x", None]})
    codes = made(catalog, candidate_codes=(Category("attribute:maker", 1, width=3),)).codes
    assert codes.tolist() == [[0, 0, 0], [2, 0, 0], [0, 0, 0]]


def test_more_words_than_affinities_count_are_folded() -> None:
    n = AFFINITY_WORDS + 5
    catalog = Catalog.build([f"{row:04}" for row in range(n)], attributes={"word": [f"{row:04}" for row in range(n)]})
    words = made(catalog, candidate_numbers=(Number("affinity:word"),)).lookups.words["word"]
    assert words.shape == (n + 1, 1)
    assert (words.min(), words[1:].min(), words.max()) == (0, 1, AFFINITY_WORDS)
    assert words[1, 0] == words[AFFINITY_WORDS + 1, 0] == 1


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"candidate_numbers": (Number("mood"),)}, "'mood' is unknown to this version, which computes popularity"),
        ({"candidate_numbers": (Number("popularity:x"),)}, "'popularity:x' is unknown"),
        ({"candidate_numbers": (Number("rate:sale"),)}, "'rate:sale' is unknown"),
        ({"candidate_numbers": (Number("retrieval:place"),)}, "which computes retrieval:score, retrieval:share"),
        ({"candidate_numbers": (Number("retrieval"),)}, "'retrieval' is unknown"),
        ({"candidate_numbers": (Number("transition:9"),)}, "'transition:9' is unknown"),
        ({"candidate_numbers": (Number("similarity:least"),)}, "'similarity:least' is unknown"),
        ({"candidate_numbers": (Number("attribute:price"),)}, "numbers 'price'"),
        ({"candidate_numbers": (Number("attribute:maker"),)}, "numbers 'maker'"),
        ({"candidate_numbers": (Number("closeness:maker"),)}, "numbers 'maker'"),
        ({"candidate_numbers": (Number("affinity:year"),)}, "'affinity:year' wants words"),
        ({"candidate_numbers": (Number("affinity:price"),)}, "'affinity:price' wants words"),
        ({"candidate_codes": (Category("attribute:year", 3),)}, "'attribute:year' wants words"),
        ({"candidate_codes": (Category("context:age", 3),)}, "which computes id, attribute:NAME"),
        ({"request_codes": (Category("attribute:maker", 0),)}, "which computes context:NAME"),
        ({"request_numbers": (Number("popularity"),)}, "which computes length, recency"),
        ({"request_numbers": (Number("share:sale"),)}, "which computes share:like"),
    ],
)
def test_a_source_that_is_not_there_is_refused(fields: dict[str, Any], named: str) -> None:
    catalog = Catalog.build(["a", "b"], attributes={"maker": ["x", "y"], "year": [1.0, None]})
    with pytest.raises(BundleForeign, match=named):
        made(catalog, **fields)


def test_parts_of_different_trainings_are_refused(some: World) -> None:
    counted = some.statistics
    fewer = Statistics(counted.pairs, counted.weights, np.zeros((TRAINED + 1, 2), np.float32), counted.values)
    for statistics, vectors in (
        (some.statistics, some.array[:-1]),
        (nothing(len(some.catalog) + 1, 3), some.array),
        (fewer, some.array),
    ):
        with pytest.raises(BundleForeign, match="do not fit 45 rows of a catalog and 3 tasks"):
            FeatureTables.of(FEATURES, statistics, some.catalog, vectors)


def test_nothing_declared_is_nothing_looked_up(some: World) -> None:
    tables = some.tables(FeatureSet(FEATURES.tasks))
    assert tables.codes.shape == tables.numbers.shape == tables.event_codes.shape == (TRAINED + LATER + 1, 0)
    assert not tables.pairs
    assert replace(tables, pairs={}).context == ()
