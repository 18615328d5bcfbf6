"""The toy bundle with a ranker, made with NumPy and onnx.helper: two tasks by known weights, so known answers.

`click` grows with the retriever's score and with popularity, `like` with the price alone: the toy's popular items are
cheap, so the two goals pull in opposite directions. `probabilities` says the same in NumPy, to judge by.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import toy
from onnx import TensorProto, helper, numpy_helper

from retrieval import bundle
from retrieval.bundle import RANKER, STATISTICS, Bundle, Graph
from retrieval.features import FeatureSet, Number
from retrieval.ranking import Ranking
from retrieval.statistics import Statistics
from retrieval.tasks import Task

TASKS = ("click", "like")
GOALS = {"click": 1.0, "like": 0.5}
CANDIDATES = 8  # fewer than the toy has items: lists of up to this length are chosen from as many
WEIGHTS = np.array([[1, 0], [1, 0], [0, 4]], dtype=np.float32)  # of score, popularity / 20 and price / 20
BIAS = np.array([-1, -2], dtype=np.float32)


def ranking(**changes: Any) -> Ranking:
    """The toy's ranking; `changes` replace its fields."""
    features = FeatureSet(
        tasks=(Task("click", event_type=2), Task("like", op=">=", value=4.0)),
        candidate_numbers=(
            Number("retrieval:score"),
            Number("popularity", scale=toy.N),
            Number("attribute:price", scale=toy.N),
        ),
    )
    return Ranking(**{"features": features, "goals": GOALS, "candidates": CANDIDATES, **changes})


def probabilities(rows: Sequence[int], scores: Sequence[float]) -> np.ndarray:
    """float64, shape (n, 2): what the graph says of rows that a retriever gave these scores, NaN for none."""
    n = np.array(rows, dtype=np.float64)
    given = np.array(scores, dtype=np.float64)
    numbers = np.stack([np.where(np.isfinite(given), given, 0), (toy.N + 1 - n) / toy.N, n / toy.N], axis=1)
    return 1 / (1 + np.exp(-(numbers @ WEIGHTS + BIAS)))


def statistics() -> Statistics:
    """Nothing was counted."""
    return Statistics(
        np.zeros(0, np.int64),
        np.zeros(0, np.float32),
        np.full((toy.N + 1, len(TASKS)), np.nan, np.float32),
        np.full(toy.N + 1, np.nan, np.float32),
    )


def graph(path: Path) -> None:
    """Writes `candidate_numbers` float32 (B, C, 3) -> `probabilities` float32 (B, C, 2); absent numbers count as 0."""
    constants = {"weights": WEIGHTS, "bias": BIAS, "zero": np.zeros(1, np.float32)}
    nodes = [
        helper.make_node("IsNaN", ["candidate_numbers"], ["absent"]),
        helper.make_node("Where", ["absent", "zero", "candidate_numbers"], ["numbers"]),
        helper.make_node("MatMul", ["numbers", "weights"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
    ]
    made = helper.make_graph(
        nodes,
        "toy-ranker",
        [helper.make_tensor_value_info("candidate_numbers", TensorProto.FLOAT, ["B", "C", 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["B", "C", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def write(path: Path, *, base: Callable[..., Path] = toy.write, **changes: Any) -> Path:
    """Writes the bundle at `path` and returns it.

    Args:
        path: where.
        base: writes the bundle that the ranker is added to: `toy.write` or `toy_generative.toy_generative`.
        changes: replace fields of the manifest; `ranking` only those of `Ranking` that it names.
    """
    settings = ranking(**changes.pop("ranking", {}))
    before = Bundle.open(base(path, **changes)).manifest
    graph(path / "ranker.onnx")
    statistics().save(path / STATISTICS)
    graphs = {**before.graphs, RANKER: Graph("ranker.onnx", ("candidate_numbers",), "probabilities (B, C, T)")}
    bundle.seal(path, replace(before, graphs=graphs, ranking=settings.to_json()))
    return path
