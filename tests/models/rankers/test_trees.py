"""Boosted trees: what they read, learn from, and stop at. What every ranker owes is in
`tests/contracts/test_rankers.py`; what the graph owes is in `tests/models/test_tree_graph.py`."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from models.errors import InvalidOption, MissingLibrary
from models.lists import Arrays
from models.progress import Progress
from models.ranker_training import RankerTraining, grade
from models.rankers.trees import STEP, Trees, TreesConfig, _base, drawn
from retrieval.features import Category, FeatureSet, Number
from retrieval.tasks import Task

FEATURES = FeatureSet(
    tasks=(Task("click"), Task("like", op=">=", value=4.0)),
    candidate_codes=(
        Category("id", known=500, slots=4),
        Category("attribute:genres", known=4, width=2),
        Category("attribute:shelf", known=5),
    ),
    candidate_numbers=(Number("popularity"), Number("retrieval:score")),
    request_codes=(Category("context:place", known=2, words=("home", "work")),),
    request_numbers=(Number("hour"),),
)
SMALL = TreesConfig(objective="binary", rounds=30, num_leaves=8, shrinkage=0.15, min_data_in_leaf=5)
HOW = RankerTraining(threads=1, patience=2)


def arrays(lists: int, seed: int = 0, candidates: int = 12) -> Arrays:
    """Clicks follow the sign of a product, and likes a shelf at home: nothing that adds up."""
    rng = np.random.default_rng(seed)
    feeds = {
        "candidate_codes": rng.integers(0, 7, (lists, candidates, 4)),
        "candidate_numbers": rng.normal(size=(lists, candidates, 2)).astype(np.float32),
        "request_codes": rng.integers(0, 4, (lists, 1)),
        "request_numbers": rng.normal(size=(lists, 1)).astype(np.float32),
    }
    product = np.prod(feeds["candidate_numbers"], axis=2)
    wanted = (feeds["candidate_codes"][:, :, 3] == 4) & (feeds["request_codes"] == 2)
    logits = np.stack([3 * np.sign(product) - 2, 4.0 * wanted - 2], axis=2)
    labels = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    return Arrays(feeds, labels, np.zeros((lists, candidates), np.int64), np.arange(lists))


def test_small_categories_of_one_column_are_read() -> None:
    model = Trees(TreesConfig(), FEATURES)
    assert model.inputs == ("candidate_numbers", "request_numbers", "candidate_codes", "request_codes")
    assert (model.columns["candidate_codes"].width, model.columns["candidate_codes"].read) == (4, (3,))
    bare = Trees(replace(TreesConfig(), max_codes=6), FEATURES)
    assert bare.inputs == ("candidate_numbers", "request_numbers", "request_codes")


def test_without_anything_of_candidates_it_is_refused() -> None:
    with pytest.raises(InvalidOption, match="a category of at most 6 codes"):
        Trees(replace(TreesConfig(), max_codes=6), replace(FEATURES, candidate_numbers=()))


def test_it_finds_products_and_words_that_go_together() -> None:
    model, said, fresh = Trees(SMALL, FEATURES), io.StringIO(), arrays(100, seed=5)
    fitted = model.fit(arrays(300), arrays(60, seed=1), HOW, Progress(said))
    found = model.probabilities(fresh.feeds)
    product = np.prod(fresh.feeds["candidate_numbers"], axis=2)
    assert found[..., 0][product > 0.2].mean() > 0.6
    assert found[..., 0][product < -0.2].mean() < 0.1
    at_home = fresh.feeds["request_codes"][:, 0] == 2
    wanted = fresh.feeds["candidate_codes"][:, :, 3] == 4
    likes = found[..., 1]
    assert likes[at_home][wanted[at_home]].mean() > 2 * likes[~at_home][wanted[~at_home]].mean()
    assert f"click: round {STEP:3d}  validation NDCG@10" in said.getvalue()
    assert 0 < fitted.facts["rounds"]["click"] <= 30
    assert fitted.facts["rows"] == 300 * 12
    assert not fitted.places.any()


def test_an_order_is_learnt_and_a_line_makes_probabilities_of_it(tmp_path: Path) -> None:
    by_order, fresh = Trees(replace(SMALL, objective="lambdarank"), FEATURES), arrays(100, seed=5)
    by_order.fit(arrays(300), arrays(60, seed=1), HOW, Progress(io.StringIO()))
    found = by_order.probabilities(fresh.feeds)
    product = np.prod(fresh.feeds["candidate_numbers"], axis=2)
    assert found[..., 0][product > 0.2].mean() > 2 * found[..., 0][product < -0.2].mean()
    # Platt's line over the held-out lists: on average what is said is what happens.
    assert abs(found[..., 0].mean() - fresh.labels[..., 0].mean()) < 0.05
    by_order.write(tmp_path / "ranker.onnx", {})
    session = onnxruntime.InferenceSession(str(tmp_path / "ranker.onnx"), providers=["CPUExecutionProvider"])
    said = session.run(None, {name: fresh.feeds[name] for name in by_order.inputs})[0]
    np.testing.assert_allclose(said, found, atol=1e-6)


def test_a_library_that_cannot_be_loaded_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_name: str) -> None:
        raise OSError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr("models.rankers.trees.importlib.import_module", gone)
    with pytest.raises(MissingLibrary, match=r"libgomp\.so\.1.*apt-get install libgomp1"):
        Trees(SMALL, FEATURES).fit(arrays(10), arrays(10), HOW, Progress(io.StringIO()))


def test_it_stops_where_the_validation_lists_say() -> None:
    """Labels of noise are learnt by heart; what is kept is the best look, and the rest is not waited for."""
    train, validation, said = arrays(60), arrays(60, seed=1), io.StringIO()
    noise = np.random.default_rng(0).random(train.labels.shape) < 0.3
    model = Trees(replace(SMALL, rounds=200), FEATURES)
    fitted = model.fit(replace(train, labels=noise.astype(np.float32)), validation, HOW, Progress(said))
    for name, rounds in fitted.facts["rounds"].items():
        lines = [line for line in said.getvalue().splitlines() if line.startswith(name)]
        figures = [float(line.split()[5]) for line in lines]
        assert len(lines) < 200 / STEP
        assert rounds == STEP * (1 + int(np.argmax(figures)))
        assert len(lines) == rounds / STEP + HOW.patience


def test_a_task_without_feedback_in_validation_takes_all_rounds() -> None:
    validation = arrays(20, seed=1)
    validation.labels[..., 1] = 0
    fitted = Trees(SMALL, FEATURES).fit(arrays(60), validation, HOW, Progress(io.StringIO()))
    assert fitted.facts["rounds"]["like"] == SMALL.rounds


def test_a_task_with_one_outcome_has_no_trees(tmp_path: Path) -> None:
    train, said = arrays(60), io.StringIO()
    train.labels[..., 1] = 0
    model = Trees(SMALL, FEATURES)
    fitted = model.fit(train, arrays(20, seed=1), HOW, Progress(said))
    assert fitted.facts["rounds"]["like"] == 0
    assert "like: only one outcome, so no trees" in said.getvalue()
    found = model.probabilities(train.feeds)[..., 1]
    np.testing.assert_allclose(found, 1 / (60 * 12 + 2), rtol=1e-5)
    model.write(tmp_path / "r.onnx", train.feeds)
    graph = onnxruntime.InferenceSession(str(tmp_path / "r.onnx"))
    np.testing.assert_allclose(graph.run(None, train.feeds)[0], model.probabilities(train.feeds), atol=1e-6)


def test_what_places_add_is_not_in_the_trees() -> None:
    """The same lists shown with the best of a useless number on top: with places, that number is useless again."""
    rng = np.random.default_rng(3)
    train, validation = arrays(600, seed=7), arrays(150, seed=8)
    for lists in (train, validation):
        order = np.argsort(-lists.feeds["candidate_numbers"][..., 0] - rng.normal(size=lists.labels.shape[:2]), axis=1)
        np.put_along_axis(lists.positions, order, np.arange(1, 13)[None].repeat(len(lists), axis=0), axis=1)
        truth = 1 / (1 + np.exp(-(2 * lists.feeds["candidate_numbers"][..., 1] - 1.0 * np.log(lists.positions))))
        lists.labels[..., 0] = rng.random(truth.shape) < truth
    slopes = {}
    for shown in (True, False):
        model = Trees(SMALL, FEATURES)
        given = [replace(each, positions=each.positions * shown) for each in (train, validation)]
        fitted = model.fit(given[0], given[1], replace(HOW, epochs=8), Progress(io.StringIO()))
        number = train.feeds["candidate_numbers"][..., 0]
        found = np.log(model.probabilities(train.feeds)[..., 0])
        slopes[shown] = np.cov(found.ravel(), number.ravel())[0, 1]
        if shown:
            assert fitted.places.shape == (13, 2)
            assert fitted.places[12, 0] < fitted.places[4, 0] < 0
    assert slopes[False] > 0.15
    assert abs(slopes[True]) < slopes[False] / 3


def test_some_of_the_candidates_without_feedback_are_drawn() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((50, 40, 2)) < 0.05).astype(np.float32)
    labels[:, 30:] = np.nan
    labels[0, 0] = [np.nan, 1]
    has = (labels > 0).any(axis=2)

    def take(negatives: int, most: int, seed: int = 0) -> np.ndarray:
        return drawn(labels, negatives, most, np.random.default_rng(seed))

    assert (take(0, 10_000) == ~np.isnan(labels).all(axis=2)).all()
    few = take(5, 10_000)
    assert (few & has).sum() == has.sum()
    assert ((few & ~has).sum(axis=1) == 5).all()
    assert not few[:, 30:].any()
    capped = take(0, 500)
    assert capped.sum() == 500
    assert capped[has].all()
    assert (capped == take(0, 500)).all()
    assert (capped != take(0, 500, seed=1)).any()
    # However few are allowed, there are as many without feedback as with it.
    assert take(0, 10).sum() == 2 * has.sum()


def test_where_the_trees_begin() -> None:
    assert _base(0.2, np.zeros(5)) == pytest.approx(np.log(0.25))
    offsets = np.array([0.0, -1.0, -3.0])
    base = _base(0.3, offsets)
    assert (1 / (1 + np.exp(-(base + offsets)))).mean() == pytest.approx(0.3)


def test_the_same_lists_in_fewer_rows_still_rank() -> None:
    model, fresh = Trees(replace(SMALL, max_rows=1200), FEATURES), arrays(100, seed=5)
    fitted = model.fit(arrays(300), arrays(60, seed=1), HOW, Progress(io.StringIO()))
    assert fitted.facts["rows"] < 300 * 12
    uniform = np.random.default_rng(0).random(fresh.labels.shape).astype(np.float32)
    assert grade(model.probabilities, fresh) > 1.1 * grade(lambda feeds: uniform[: len(feeds["request_codes"])], fresh)


@pytest.mark.parametrize(
    "options", [{"rounds": 0}, {"num_leaves": 1}, {"shrinkage": 0.0}, {"feature_fraction": 1.2}, {"max_rows": 1}]
)
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))):
        TreesConfig(**options)
