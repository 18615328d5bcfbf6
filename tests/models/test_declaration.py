"""What is declared from a catalog whose columns are of every kind, and what standardising does to it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.declaration import MOST_TAGS, MOST_WORDS, declare, standardised, word
from models.events import read_log
from models.histories import Histories, catalog_from_log
from models.lists import Arrays, Lists
from models.statistics import count
from retrieval.catalog import Catalog
from retrieval.errors import InvalidInput
from retrieval.features import FeatureSet, FeatureTables, build
from retrieval.inputs import Request
from retrieval.sequences import EMPTY
from retrieval.tasks import Task

N = 20
CATALOG = Catalog.build(
    [f"i{n}" for n in range(1, N + 1)],
    popularity=np.arange(N, 0, -1),
    attributes={
        "title": [f"Item {n % 3}" for n in range(N)],  # few words, and still no category
        "brand": ["acme" if n % 2 else "zeta" for n in range(N)],
        "serial": [f"s{n}" for n in range(N)],  # a word for each item
        "categories": [["a"] * (1 + n % 3) for n in range(N)],
        "year": [None if n == 0 else 1990 + n for n in range(N)],
    },
)
TASKS = (Task("click"), Task("like", op=">=", value=4.0))


def log() -> Histories:
    rng = np.random.default_rng(0)
    made = Histories.from_rows([rng.integers(1, N + 1, 12).tolist() for _ in range(10)])
    return replace(
        made,
        values=rng.integers(1, 6, 120).astype(np.float32),
        timestamps=1e9 + 3_600 * made.timestamps,
        ordered_only=False,
    )


def sources(features: FeatureSet) -> tuple[list[str], list[str], list[str], list[str]]:
    fields = (features.candidate_codes, features.candidate_numbers, features.request_codes, features.request_numbers)
    codes, numbers, request_codes, request_numbers = ([one.source for one in field] for field in fields)
    return codes, numbers, request_codes, request_numbers


def test_everything_that_is_there_is_declared() -> None:
    users = pl.DataFrame(
        {
            "user_id": [str(u) for u in range(2000)],
            "gender": ["F", "M", "M", None] * 500,
            "age": [25, 25, 35, 45] * 500,
            "income": [u + 0.5 for u in range(2000)],
            "name": [f"n{u}" for u in range(2000)],
        }
    )
    features = declare(CATALOG, log(), TASKS, users)
    codes, numbers, request_codes, request_numbers = sources(features)
    assert codes == ["id", "attribute:brand", "attribute:categories"]
    assert [category.known for category in features.candidate_codes] == [N, 2, 1]
    assert [category.width for category in features.candidate_codes] == [1, 1, 3]
    assert numbers == [
        *("retrieval:score", "retrieval:share", "retrieval:rank", "popularity"),
        *("transition:all", "transition:1", "transition:2", "transition:3"),
        *("similarity:last", "similarity:max", "similarity:mean"),
        *("affinity:brand", "affinity:categories", "attribute:year", "closeness:year", "value", "rate:like"),
    ]
    assert request_codes == ["context:gender", "context:age"]
    assert [category.words for category in features.request_codes] == [("M", "F"), ("25", "35", "45")]
    assert request_numbers == ["length", "recency", "hour", "share:like", "context:income"]
    assert features.event_fields == (0, 1)
    assert (features.behaviours, features.windows) == (("all", "like"), (50, 20))
    assert FeatureSet.parse(features.to_json()) == features


def test_what_is_not_there_is_not_declared() -> None:
    bare = Catalog.build(["a", "b"])
    features = declare(bare, Histories.from_rows([[1, 2]]), (Task("click"),))
    codes, numbers, request_codes, request_numbers = sources(features)
    assert codes == ["id"]
    assert not {"value", "rate:click"} & {*numbers}
    assert request_codes == []
    assert request_numbers == ["length"]
    assert features.event_fields == (0,)
    assert features.behaviours == ("all",)


def test_many_tags_are_hashed_and_cut() -> None:
    tags = [[f"t{n}-{k}" for k in range(60)] for n in range(N)]
    features = declare(Catalog.build(CATALOG.ids[1:], attributes={"keywords": tags}), log(), TASKS)
    category = features.candidate_codes[1]
    assert (category.known, category.slots, category.width) == (0, MOST_WORDS, MOST_TAGS)


@pytest.mark.parametrize(("value", "spelt"), [(25, "25"), (25.0, "25"), (2.5, "2.5"), ("M", "M")])
def test_words_are_spelt_as_a_request_spells_its_numbers(value: object, spelt: str) -> None:
    assert word(value) == spelt


def test_a_request_finds_its_word_whether_it_says_a_word_or_a_number() -> None:
    users = pl.DataFrame({"user_id": ["a", "b"], "age": [25, 35]})
    features = declare(CATALOG, log(), TASKS, users)
    tables = FeatureTables.of(features, count(log(), N, TASKS), CATALOG, np.zeros((N + 1, 2), np.float32))
    said = lists([Request(EMPTY, words={"age": "35"}), Request(EMPTY, context={"age": 35.0}), Request(EMPTY)])
    codes = build(tables, said.candidates(range(3)), ("request_codes",))["request_codes"][:, 0]
    category = features.request_codes[0]
    assert codes.tolist() == [1 + category.slots + category.words.index("35")] * 2 + [0]


def lists(requests: list[Request], *, length: int = 8) -> Lists:
    """Lists of drawn candidates."""
    rng = np.random.default_rng(1)
    n = len(requests) * length
    rows = np.concatenate([rng.choice(N, length, replace=False) + 1 for _ in requests])
    return Lists(
        ("click", "like"),
        requests,
        length * np.arange(len(requests) + 1),
        rows,
        np.where(rng.random(n) < 0.2, np.nan, rng.normal(5, 3, n)).astype(np.float32),
        np.zeros((n, 2), np.float32),
        np.zeros(n, np.int64),
        np.arange(len(requests)),
    )


def test_standardised_numbers_have_mean_zero_and_deviation_one() -> None:
    histories = log()
    vectors = np.random.default_rng(2).normal(size=(N + 1, 4)).astype(np.float32)
    features, statistics = declare(CATALOG, histories, TASKS), count(histories, N, TASKS)
    sample = lists([Request(histories[u].newest(3 + u), 1e9 + 3_600 * (20 + u)) for u in range(10)])
    made = standardised(features, statistics, CATALOG, vectors, sample)
    feeds = Arrays.of(FeatureTables.of(made, statistics, CATALOG, vectors), sample).feeds
    for name in ("candidate_numbers", "request_numbers"):
        for f, number in enumerate(getattr(made, name)):
            x = feeds[name][..., f].astype(np.float64)
            x = x[~np.isnan(x)]
            constant = np.ptp(x) < 1e-6
            assert x.mean() == pytest.approx(0, abs=1e-3), number.source
            assert constant or abs(x).max() == 8 or x.std() == pytest.approx(1, abs=1e-2), number.source
    year = next(number for number in made.candidate_numbers if number.source == "attribute:year")
    assert 1990 < year.shift < 2010  # far beyond the clip, and known all the same
    assert standardised(made, statistics, CATALOG, vectors, sample) == made


def test_a_number_that_never_varies_keeps_its_unit() -> None:
    histories = log()
    features, statistics = declare(CATALOG, histories, TASKS), count(histories, N, TASKS)
    sample = lists([Request(histories[0], 1e9 + 90_000)] * 2)
    made = standardised(features, statistics, CATALOG, np.ones((N + 1, 2), np.float32), sample)
    length = next(number for number in made.request_numbers if number.source == "length")
    assert length.shift == pytest.approx(np.log1p(12))
    assert length.scale == 1.0


def test_empty() -> None:
    with pytest.raises(InvalidInput, match="no list"):
        standardised(
            declare(CATALOG, log(), TASKS),
            count(log(), N, TASKS),
            CATALOG,
            np.zeros((N + 1, 2), np.float32),
            lists([Request(EMPTY)]).take(np.zeros(0, np.int64)),
        )


@pytest.mark.data
def test_movielens_gives_genres_years_and_viewers(shared_data: Callable[[str], Path]) -> None:
    log = read_log("ml-1m", shared_data("ml-1m"))
    catalog = catalog_from_log(log)
    codes, numbers, request_codes, _ = sources(
        declare(catalog, Histories.from_log(log, catalog, ("view",)), TASKS, log.users)
    )
    assert codes == ["id", "attribute:categories"]
    assert {"attribute:year", "closeness:year", "affinity:categories", "value"} <= {*numbers}
    assert request_codes == ["context:gender", "context:age", "context:occupation"]
