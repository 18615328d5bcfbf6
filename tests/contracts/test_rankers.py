"""What every ranker owes: one suite over all that are registered, from lists of real tables to the graph that serves.

In the shop of these tests `click` follows the price, the shelf and how near a candidate is to the history; `like`
follows the genres that it shares with the history. The retriever's scores say a little of either.
"""

import inspect
import io
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.lists import Arrays, Lists
from models.progress import Progress
from models.ranker_runs import RankerData
from models.ranker_training import RankerTraining, ndcg
from models.registry import configure, families
from retrieval.catalog import Catalog
from retrieval.encoder import open_graph
from retrieval.features import ARRAYS, Candidates, Category, FeatureSet, FeatureTables, Number, build
from retrieval.inputs import Request
from retrieval.ranking import OnnxRanker, Ranking
from retrieval.sequences import EMPTY, PAD_ROW, History
from retrieval.statistics import Statistics
from retrieval.tasks import Task

ITEMS, KNOWN, LONGEST = 60, 50, 14
WINDOWS = (6, 4)
GENRES, SHELVES = ("crime", "love", "war", "sea", "ghosts"), ("left", "right", "window")
# What small models have, by the options that a family knows.
SMALL = {"d": 8, "blocks": 1, "dropout": 0.0, "proxy_hidden": 16, "gate_hidden": 8, "towers": "8"}
SMALL |= {"rounds": 30, "num_leaves": 8, "min_data_in_leaf": 10, "shrinkage": 0.15}
PARITY, ALONE = 1e-5, 1e-6

FEATURES = FeatureSet(
    tasks=(Task("click"), Task("like", op=">=", value=4.0)),
    candidate_codes=(
        Category("id", known=KNOWN, slots=4),
        Category("attribute:shelf", known=len(SHELVES)),
        Category("attribute:genres", known=len(GENRES), width=3),
    ),
    candidate_numbers=(
        Number("retrieval:score"),
        Number("popularity", shift=30, scale=17),
        Number("attribute:price", shift=10, scale=5),
        Number("similarity:max", scale=0.5),
        Number("affinity:genres", shift=0.3, scale=0.2),
    ),
    request_codes=(Category("context:place", known=2, words=("home", "work")),),
    request_numbers=(Number("length", shift=5, scale=3), Number("hour", shift=12, scale=6)),
    event_fields=(0, 2),
    behaviours=("all", "like"),
    windows=WINDOWS,
)
PRICE, SIMILARITY, AFFINITY, POPULARITY = 2, 3, 4, 1


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)), dtype=np.float32)


def shop() -> FeatureTables:
    rng = np.random.default_rng(0)
    catalog = Catalog.build(
        [f"item-{n}" for n in range(ITEMS)],
        popularity=rng.permutation(ITEMS),
        attributes={
            "shelf": [*rng.choice(SHELVES, ITEMS - 1).tolist(), None],
            "genres": [rng.choice(GENRES, rng.integers(0, 4), replace=False).tolist() for _ in range(ITEMS)],
            "price": [None if rng.random() < 0.1 else float(rng.normal(10, 5)) for _ in range(ITEMS)],
        },
    )
    vectors = rng.normal(size=(ITEMS + 1, 4)).astype(np.float32)
    vectors[PAD_ROW] = 0
    rates, none = np.full((ITEMS + 1, 2), np.nan, np.float32), np.zeros(0)
    counted = Statistics(none.astype(np.int64), none.astype(np.float32), rates, rates[:, 0])
    return FeatureTables.of(FEATURES, counted, catalog, vectors)


TABLES = shop()


def request(events: int, rng: np.random.Generator) -> Request:
    history = EMPTY
    if events:
        history = History(
            rng.integers(1, ITEMS + 1, events),
            np.zeros(events, np.int64),
            rng.integers(1, 6, events).astype(np.float32),
            1.7e9 + np.cumsum(rng.integers(1, 5000, events)).astype(np.float64),
        )
    words = {"place": str(rng.choice(["home", "work", "beach"]))} if rng.random() < 0.8 else {}
    return Request(history, 1.7e9 + float(rng.integers(0, 86_400)), words=words)


def offered(count: int, seed: int, *, longest: int = LONGEST, events: int | None = None) -> list[Candidates]:
    """Lists of 8 to `longest` candidates, after some events or none."""
    rng = np.random.default_rng((seed, count))
    found = []
    for _ in range(count):
        n = int(rng.integers(min(8, longest), longest + 1))
        asked = request(int(rng.integers(0, 11)) if events is None else events, rng)
        scores = np.sort(rng.normal(size=n))[::-1].astype(np.float32)
        found.append(Candidates(asked, rng.permutation(ITEMS)[:n] + 1, scores))
    return found


def unlabelled(count: int, seed: int) -> Arrays:
    """Lists as arrays; every label is 0 so far."""
    lists = offered(count, seed)
    lengths = [len(one.rows) for one in lists]
    whole = Lists(
        ("click", "like"),
        [one.request for one in lists],
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([one.rows for one in lists]),
        np.concatenate([one.scores for one in lists]),
        np.zeros((sum(lengths), 2), np.float32),
        np.zeros(sum(lengths), np.int64),
        np.arange(count),
    )
    return Arrays.of(TABLES, whole)


def truth(arrays: Arrays) -> np.ndarray:
    """float32, shape (R, C, 2): how likely each task is."""
    numbers = np.nan_to_num(arrays.feeds["candidate_numbers"])
    window = arrays.feeds["candidate_codes"][:, :, 1] == 2 + SHELVES.index("window")
    click = 1.5 * numbers[..., PRICE] + 1.5 * window + 0.8 * numbers[..., SIMILARITY] - 1.5
    like = 1.5 * numbers[..., AFFINITY] + 0.3 * numbers[..., 0] - 1.0
    return sigmoid(np.stack([click, like], axis=2))


def labelled(count: int, seed: int) -> Arrays:
    made = unlabelled(count, seed)
    chances = truth(made)
    drawn = np.random.default_rng(seed).random(chances.shape) < chances
    return replace(made, labels=np.where(np.isnan(made.labels), np.nan, drawn).astype(np.float32))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=sorted(families("ranker")), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    """The name of each registered family."""
    return str(request.param)


@pytest.fixture(scope="module")
def train() -> Arrays:
    return labelled(240, 1)


@pytest.fixture(scope="module")
def validation() -> Arrays:
    return labelled(80, 2)


def fit(name: str, train: Arrays, validation: Arrays, **options: Any) -> tuple[Any, Any, str]:
    """A small model that has learnt, what it left behind, and what it said meanwhile."""
    family, said = families("ranker")[name], io.StringIO()
    known = {field.name for field in fields(family.Config)}
    torch.manual_seed(1)
    model = family(replace(family.Config(), **{k: v for k, v in SMALL.items() if k in known}), FEATURES)
    quick = {"learning_rate": 0.02, "batch": 16, "epochs": 4, "threads": 1}
    how = replace(RankerTraining(), **{**family.recipe, **quick, **options})
    return model, model.fit(train, validation, how, Progress(said)), said.getvalue()


@pytest.fixture(scope="module")
def learnt(name: str, train: Arrays, validation: Arrays) -> tuple[Any, Any, str]:
    return fit(name, train, validation)


@pytest.fixture(scope="module")
def model(learnt: tuple[Any, Any, str]) -> Any:
    return learnt[0]


@pytest.fixture(scope="module")
def path(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph, traced with two lists."""
    path = tmp_path_factory.mktemp("graph") / "ranker.onnx"
    model.write(path, build(TABLES, offered(2, 3, events=3), model.inputs))
    return path


@pytest.fixture(scope="module")
def ranker(model: Any, path: Path) -> OnnxRanker:
    return OnnxRanker(path, names=model.inputs, settings=Ranking(FEATURES, {"click": 1.0}), tables=TABLES)


def said_of(model: Any, arrays: Arrays) -> np.ndarray:
    return np.asarray(model.probabilities(arrays.batch(np.arange(len(arrays)))))


# Facts


def test_it_says_what_it_is(name: str, model: Any) -> None:
    family = families("ranker")[name]
    assert family.stage == "ranker"
    assert all(isinstance(fact, str) and fact for fact in (family.paper, family.status))
    assert {*family.recipe} <= {field.name for field in fields(RankerTraining)}
    assert len({*model.inputs}) == len(model.inputs)
    assert {*model.inputs} <= {*ARRAYS}
    assert any(name.startswith("candidate") for name in model.inputs)


def test_its_options_survive_as_text_and_are_nobody_elses(name: str, model: Any) -> None:
    family = families("ranker")[name]
    own = {key: str(value) for key, value in asdict(model.config).items()}
    assert configure(family.Config(), own) == (model.config, {})
    others = {field.name for options in (RankerTraining, RankerData) for field in fields(options)}
    assert not {*own} & others


# Learning


def test_it_orders_better_than_the_retriever(model: Any, learnt: tuple[Any, Any, str], validation: Arrays) -> None:
    as_retrieved = -np.arange(validation.labels.shape[1], dtype=np.float32)[None].repeat(len(validation), axis=0)
    for t in range(2):
        gains = np.nan_to_num(validation.labels[..., t])
        there = ~np.isnan(validation.labels[..., t])
        before, after = (
            np.nanmean(ndcg(np.where(there, scores, -np.inf), gains))
            for scores in (as_retrieved, said_of(model, validation)[..., t])
        )
        assert after > before + 0.05, FEATURES.tasks[t].name
    _, fitted, said = learnt
    assert fitted.facts["seconds"] >= 0
    assert not fitted.places.any(), "lists that were never shown have no places"
    assert "validation AUC" in said or "validation NDCG@10" in said


def test_one_seed_is_one_model(name: str, model: Any, train: Arrays, validation: Arrays) -> None:
    again, _, _ = fit(name, train, validation)
    assert np.array_equal(said_of(again, validation), said_of(model, validation))


def test_what_nobody_knows_is_no_label(name: str, train: Arrays, validation: Arrays) -> None:
    """Six of ten likes are hidden, with the rest as often fulfilled as before: NaN is neither 0 nor 1.

    Taken for 0, likes would be said to be less than half as many; taken for 1, twice as many.
    """
    labels = train.labels.copy()
    labels[..., 1][np.random.default_rng(5).random(labels.shape[:2]) < 0.6] = np.nan
    hidden, _, _ = fit(name, replace(train, labels=labels), validation)
    there = ~np.isnan(validation.labels[..., 1])
    said = said_of(hidden, validation)[..., 1][there]
    assert said.mean() == pytest.approx(validation.labels[..., 1][there].mean(), abs=0.15)


def test_a_task_of_one_outcome_hurts_no_other(name: str, train: Arrays, validation: Arrays) -> None:
    for outcome in (0.0, 1.0):
        labels = np.where(np.isnan(train.labels), np.nan, train.labels).astype(np.float32)
        labels[..., 1] = np.where(np.isnan(labels[..., 1]), np.nan, outcome)
        odd, _, _ = fit(name, replace(train, labels=labels), validation, epochs=2)
        said = said_of(odd, validation)
        there = ~np.isnan(validation.labels[..., 1])
        assert np.isfinite(said).all()
        assert np.abs(said[..., 1][there] - outcome).mean() < 0.2
        gains = np.nan_to_num(validation.labels[..., 0])
        assert np.nanmean(ndcg(np.where(there, said[..., 0], -np.inf), gains)) > 0.7


def test_an_order_hidden_by_places_is_found(name: str) -> None:
    """Popular items were shown on top and clicked for it. Popularity means nothing, as lists of chance show."""
    rng = np.random.default_rng(11)
    made = [unlabelled(count, seed) for count, seed in ((300, 21), (100, 22), (200, 23))]
    given = []
    for arrays in made:
        numbers, there = arrays.feeds["candidate_numbers"], ~np.isnan(arrays.labels[..., 0])
        numbers[..., 0] = np.nan  # no score of a retriever
        shown = np.where(there, numbers[..., POPULARITY] + 0.7 * rng.normal(size=there.shape), -np.inf)
        positions = np.where(there, np.argsort(np.argsort(-shown, axis=1), axis=1) + 1, 0)
        wanted = rng.random(there.shape) < truth(arrays)[..., 0]
        looked = rng.random(there.shape) < 1.0 / np.maximum(positions, 1)
        labels = np.stack([wanted & looked, wanted], axis=2)
        labels = np.where(there[..., None], labels, np.nan).astype(np.float32)
        given.append(replace(arrays, labels=labels, positions=positions))
    judged = given.pop()
    there, reached = ~np.isnan(judged.labels[..., 0]), {}
    # Clicks are all that a log has.
    shown = [replace(one, labels=np.stack([one.labels[..., 0]] * 2, axis=2)) for one in given]
    for with_places in (True, False):
        lists = [replace(one, positions=one.positions * with_places) for one in shown]
        model, fitted, _ = fit(name, *lists, epochs=5, patience=5, learning_rate=0.05)
        said = said_of(model, judged)[..., 0]
        reached[with_places] = np.nanmean(
            ndcg(np.where(there, said, -np.inf), np.nan_to_num(judged.labels[..., 1]), k=3)
        )
        if with_places:
            assert not fitted.places[:2].any()
            assert fitted.places[12, 0] < fitted.places[6, 0] < fitted.places[2, 0]
    assert reached[True] > reached[False] + 0.02, reached


# Answers


def emptied(feeds: dict[str, np.ndarray], which: str) -> dict[str, np.ndarray]:
    """The feeds with some of them void: all numbers absent, no event, or no code known."""
    out = {name: feed.copy() for name, feed in feeds.items()}
    for name, feed in out.items():
        if which == "numbers" and name.endswith("_numbers"):
            feed[:] = np.nan
        if (which == "events" and name.startswith("event")) or (which == "codes" and name.endswith("_codes")):
            feed[:] = 0
    return out


@pytest.mark.parametrize("which", ["nothing", "numbers", "events", "codes"])
def test_whatever_is_absent_it_says_probabilities(model: Any, path: Path, which: str) -> None:
    feeds = emptied(build(TABLES, offered(3, 4), model.inputs), which)
    session = open_graph(path, threads=1, device="cpu")
    for said in (model.probabilities(feeds), session.run(None, feeds)[0]):
        assert said.dtype == np.float32
        assert said.shape == (3, feeds["candidate_numbers"].shape[1], 2)
        assert ((said >= 0) & (said <= 1)).all()


@pytest.mark.parametrize("events", [0, 1, 4, 30])
@pytest.mark.parametrize(("lists", "longest"), [(1, 1), (1, 9), (2, 14), (17, 40)])
def test_the_graph_says_what_the_model_says(
    model: Any, ranker: OnnxRanker, lists: int, longest: int, events: int
) -> None:
    asked = offered(lists, 6, longest=longest, events=events)
    ours = model.probabilities(build(TABLES, asked, model.inputs))
    theirs = ranker.rank(asked)
    for own, found, one in zip(ours, theirs, asked, strict=True):
        assert found.shape == (len(one.rows), 2)
        assert np.abs(own[: len(one.rows)] - found).max() <= PARITY


def test_lists_say_the_same_in_any_company(ranker: OnnxRanker) -> None:
    """Beside longer lists and longer histories, which pad both, and in another order."""
    lists = [*offered(5, 7, longest=9), *offered(3, 8, longest=40, events=30), *offered(2, 9, events=0)]
    together, turned = ranker.rank(lists), ranker.rank(lists[::-1])[::-1]
    for one, first, second in zip(lists, together, turned, strict=True):
        (alone,) = ranker.rank([one])
        assert np.abs(alone - first).max() <= ALONE
        assert np.abs(alone - second).max() <= ALONE


def test_a_candidate_says_the_same_among_others(model: Any, ranker: OnnxRanker) -> None:
    """In another order of the list, and among rows that are no items."""
    (one,) = offered(1, 12, longest=30)
    (before,) = ranker.rank([one])
    padded = Candidates(
        one.request, np.append(one.rows, [PAD_ROW] * 5), np.append(one.scores, np.full(5, np.nan, np.float32))
    )
    (after,) = ranker.rank([padded])
    assert np.abs(after[: len(before)] - before).max() <= ALONE
    feeds = build(TABLES, [one], model.inputs)
    turn = np.random.default_rng(0).permutation(len(one.rows))
    turned = {n: feed[:, turn] if n.startswith("candidate") else feed for n, feed in feeds.items()}
    assert np.abs(model.probabilities(turned)[0] - before[turn]).max() <= PARITY


def test_places_are_nothing_that_a_server_says(model: Any, train: Arrays) -> None:
    """The same lists at other places have the same probabilities: there is no such input."""
    given: Callable[..., Any] = model.probabilities
    assert list(inspect.signature(given).parameters) == ["feeds"]
    few = np.arange(4)
    shown = replace(train, positions=np.where(np.isnan(train.labels[..., 0]), 0, 5))
    assert np.array_equal(model.probabilities(train.batch(few)), model.probabilities(shown.batch(few)))
