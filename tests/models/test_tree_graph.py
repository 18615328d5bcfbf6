"""The graph of boosted trees takes the branches that LightGBM takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import onnxruntime
import pytest

from models import tree_graph
from models.errors import ExportError
from models.tree_graph import Columns, below

ROWS = 100_000
F = 8
LEAF = 0.1  # the leaves of one tree, so far apart in logits that a probability tells which it was


def drawn(seed: int) -> np.ndarray:
    """Numbers of several kinds, some of them absent; the sixth never is, the seventh nearly always."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(ROWS, F)).astype(np.float32)
    x[:, 1] = np.round(x[:, 1] * 4) / 4
    x[:, 2] = rng.integers(0, 5, ROWS)
    x[:, 3] *= np.float32(1e-30)
    x[:, 4] = np.where(rng.random(ROWS) < 0.5, 0, x[:, 4])
    share = np.array([0.1, 0.1, 0.2, 0.05, 0.1, 0.0, 0.97, 0.3])
    x[rng.random(x.shape) < share] = np.nan
    return x


@pytest.fixture(scope="module")
def forest() -> lightgbm.Booster:
    rng, x = np.random.default_rng(7), drawn(1)
    filled = np.nan_to_num(x)
    logit = filled[:, 0] * filled[:, 1] + filled[:, 2] - 2 * np.isnan(x[:, 7]) + (filled[:, 5] > 0) - 2
    logit += (x[:, 3] > 0) + np.isnan(x[:, 6])
    labels = rng.random(ROWS) < 1 / (1 + np.exp(-logit))
    params = {"objective": "binary", "num_leaves": 25, "seed": 1, "num_threads": 1, "verbosity": -1}
    return lightgbm.train(params, lightgbm.Dataset(x, labels), 20)


@pytest.fixture(scope="module")
def trees(forest: lightgbm.Booster) -> list[Any]:
    return [tree["tree_structure"] for tree in forest.dump_model()["tree_info"]]


def thresholds(tree: Any) -> list[tuple[int, float]]:
    """The feature and threshold of each node."""
    if "split_feature" not in tree:
        return []
    own = (tree["split_feature"], tree["threshold"])
    return [own, *thresholds(tree["left_child"]), *thresholds(tree["right_child"])]


def numbered(tree: Any) -> Any:
    """The same tree, whose leaves say which they are."""
    if "split_feature" not in tree:
        return {"leaf_value": tree["leaf_index"] * LEAF}
    return tree | {side: numbered(tree[side]) for side in ("left_child", "right_child")}


def run(path: Path, **feeds: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return np.asarray(onnxruntime.InferenceSession(str(path), options).run(None, feeds)[0])


def plain(path: Path, forests: Sequence[Sequence[Any]], x: np.ndarray, bases: Sequence[float] = ()) -> np.ndarray:
    """What a graph over candidate numbers alone says of rows, shape (n, T)."""
    tree_graph.write(path, forests, bases or [0.0] * len(forests), {"candidate_numbers": Columns(F, tuple(range(F)))})
    return run(path, candidate_numbers=x[None])[0]


def test_every_row_ends_in_the_same_leaf(forest: lightgbm.Booster, trees: list[Any], tmp_path: Path) -> None:
    """Random rows with absent numbers, and rows whose numbers lie at thresholds and one float32 beside."""
    x, rng = drawn(2), np.random.default_rng(3)
    found = [pair for tree in trees for pair in thresholds(tree)]
    assert len(found) > 300
    for feature in range(F):
        own = np.array([t for f, t in found if f == feature and abs(t) < 1e30])
        if not len(own):
            continue
        near = own.astype(np.float32)
        near = np.concatenate([near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))])
        places = rng.random(ROWS) < 0.5
        x[places, feature] = rng.choice(near, int(places.sum()))
    said = plain(tmp_path / "leaves.onnx", [[numbered(tree)] for tree in trees], x)
    leaves = np.round(np.log(said.astype(np.float64) / (1 - said)) / LEAF).astype(int)
    assert (leaves == forest.predict(x, pred_leaf=True)).all()
    assert leaves.max() >= 20


def test_absent_numbers_go_where_they_went_in_training(trees: list[Any]) -> None:
    """The fixture holds all kinds of nodes; otherwise the test above would show less than it says."""

    def kinds(tree: Any) -> set[tuple[str, bool]]:
        if "split_feature" not in tree:
            return set()
        return {(tree["missing_type"], tree["default_left"])} | kinds(tree["left_child"]) | kinds(tree["right_child"])

    every = set().union(*map(kinds, trees))
    assert {("NaN", True), ("NaN", False)} <= every
    assert any(missing == "None" for missing, _ in every)
    assert any(threshold > 1e100 for tree in trees for _, threshold in thresholds(tree))


def test_probabilities_are_those_of_the_forest(forest: lightgbm.Booster, trees: list[Any], tmp_path: Path) -> None:
    x = drawn(4)
    said = plain(tmp_path / "r.onnx", [trees, trees[:3], []], x, [0.5, 0.0, -1.5])
    raw = forest.predict(x, raw_score=True)
    few = forest.predict(x, raw_score=True, num_iteration=3)
    for t, logits in enumerate((raw + 0.5, few, np.full(ROWS, -1.5))):
        assert np.abs(said[:, t] - 1 / (1 + np.exp(-logits))).max() < 1e-6


def test_inputs_are_put_side_by_side(forest: lightgbm.Booster, trees: list[Any], tmp_path: Path) -> None:
    """Columns in the order of the inputs, requests beside each of their candidates, unread columns left out."""
    inputs = {
        "candidate_numbers": Columns(3, (0, 1, 2)),
        "request_numbers": Columns(2, (0, 1)),
        "candidate_codes": Columns(4, (3, 0)),
        "request_codes": Columns(1, (0,)),
    }
    tree_graph.write(tmp_path / "r.onnx", [trees, trees[:5]], [0.0, 0.1], inputs)
    rng = np.random.default_rng(5)
    for b, c in ((1, 1), (3, 5), (2, 200)):
        feeds = {
            "candidate_numbers": rng.normal(size=(b, c, 3)).astype(np.float32),
            "request_numbers": rng.normal(size=(b, 2)).astype(np.float32),
            "candidate_codes": rng.integers(0, 3, (b, c, 4)),
            "request_codes": rng.integers(0, 3, (b, 1)),
        }
        feeds["request_numbers"][0, 0] = np.nan
        said = run(tmp_path / "r.onnx", **feeds)
        assert said.shape == (b, c, 2)
        rows = np.concatenate(
            [
                feeds["candidate_numbers"],
                np.repeat(feeds["request_numbers"][:, None], c, axis=1),
                feeds["candidate_codes"][:, :, [3, 0]],
                np.repeat(feeds["request_codes"][:, None], c, axis=1),
            ],
            axis=2,
        ).reshape(b * c, F)
        assert np.abs(said[..., 0].ravel() - forest.predict(rows)).max() < 1e-6


@pytest.mark.parametrize("threshold", [0.1, -0.1, 1.0, 2e-35, -2e-35, 1e300, -1e300, 16777217.0])
def test_a_threshold_is_rounded_down(threshold: float) -> None:
    found = np.float32(below(threshold))
    assert float(found) == below(threshold)
    assert float(found) <= threshold
    with np.errstate(over="ignore"):  # behind the largest float comes infinity
        assert float(np.nextafter(found, np.float32(np.inf))) > threshold


def test_what_lightgbm_takes_for_zero_is_on_the_side_of_zero() -> None:
    tiny = np.float32(1e-35)
    for threshold in (0.0, 1e-40, float(tiny)):
        assert np.float32(below(threshold)) == tiny
    for threshold in (-1e-40, -float(tiny)):
        assert np.float32(below(threshold)) == np.nextafter(-tiny, np.float32(-1))


@pytest.mark.parametrize("change", [{"decision_type": "==", "threshold": "1||3"}, {"missing_type": "Zero"}])
def test_a_branch_that_is_no_comparison_is_refused(trees: list[Any], change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="train it with numbers only"):
        tree_graph.write(tmp_path / "r.onnx", [[trees[0] | change]], [0.0], {"candidate_numbers": Columns(F, (0,))})
    assert not (tmp_path / "r.onnx").exists()
