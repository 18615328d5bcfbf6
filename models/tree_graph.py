"""Boosted trees as an ONNX graph that takes the same branches.

A tree asks `x <= threshold` with a threshold of 64 bits of numbers of 32. The largest float32 that is not above the
threshold parts them in the same way. What an absent number (NaN) does is said at each node: it goes to the left or to
the right. The graph holds every column twice, with absent as minus and as plus infinity, and a node reads the one that
leads where it should. The runtime's own test for NaN at each node would cost an eighth more.

    candidates (B, C, .) and requests (B, .) -> columns (B * C, 2 F) -> trees of each task -> sigmoid -> (B, C, T)

Rows are parted at `<=` alone; trees that part words of a category as a set are refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.errors import ExportError
from models.export import OPSET

TREE_OPSET = 3  # of ai.onnx.ml: the first whose trees may be as large as ours, and every runtime has it
IR = 10  # what torch writes beside OPSET

_ZERO = float(np.float32(1e-35))  # LightGBM takes all numbers up to this size for 0 when it predicts

Tree = Mapping[str, Any]  # `tree_structure` of LightGBM's `dump_model`


@dataclass(frozen=True)
class Columns:
    """What trees read of an input.

    Attributes:
        width: how many columns the input has.
        read: those that are read, in order.
    """

    width: int
    read: tuple[int, ...]


def write(path: Path, forests: Sequence[Sequence[Tree]], bases: Sequence[float], inputs: Mapping[str, Columns]) -> None:
    """Writes the graph `inputs` -> `probabilities` float32 (B, C, T) with dynamic B and C.

    Args:
        path: where to.
        forests: the trees of each of T tasks; features count the columns that are read, over all inputs in order.
        bases: what is added to the sum of each task's trees.
        inputs: by name as in `retrieval.features`; at least one of candidates.

    Raises:
        ExportError: a tree has a branch that is not `<=`.
    """
    graph = _Graph()
    parts, values = [], []
    lead = next(name for name in inputs if name.startswith("candidate"))
    graph.add("Shape", [lead], "places", start=0, end=2)  # B, C
    one = graph.constant([1], np.int64)
    graph.add("Gather", ["places", graph.constant([1], np.int64)], "count")
    graph.add("Concat", [one, "count", one], "spread", axis=0)
    for name, columns in inputs.items():
        codes, offered = name.endswith("_codes"), name.startswith("candidate")
        kind = TensorProto.INT64 if codes else TensorProto.FLOAT
        values.append(
            helper.make_tensor_value_info(name, kind, ["B", "C", columns.width] if offered else ["B", columns.width])
        )
        part = name
        if columns.read != tuple(range(columns.width)):
            part = graph.add("Gather", [part, graph.constant(columns.read, np.int64)], axis=-1)
        if codes:
            part = graph.add("Cast", [part], to=TensorProto.FLOAT)
        if not offered:
            part = graph.add("Expand", [graph.add("Unsqueeze", [part, one]), "spread"])
        parts.append(part)
    width = sum(len(columns.read) for columns in inputs.values())
    together = graph.add("Concat", parts, axis=2) if len(parts) > 1 else parts[0]
    rows = graph.add("Reshape", [together, graph.constant([-1, width], np.int64)])
    absent = graph.add("IsNaN", [rows])
    sides = [graph.add("Where", [absent, graph.constant(end, np.float32), rows]) for end in (-np.inf, np.inf)]
    both = graph.add("Concat", sides, axis=1)
    # A node for each task: one with several targets adds up more slowly.
    sums = [
        graph.add(
            "TreeEnsembleRegressor",
            [both],
            domain="ai.onnx.ml",
            n_targets=1,
            base_values=[base],
            **_arrays(trees, width),
        )
        for trees, base in zip(forests, bases, strict=True)
    ]
    graph.add("Concat", ["places", graph.constant([len(sums)], np.int64)], "shape", axis=0)
    logits = graph.add("Reshape", [graph.add("Concat", sums, axis=1), "shape"])
    graph.add("Sigmoid", [logits], "probabilities")
    out = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["B", "C", len(sums)])
    made = helper.make_graph(graph.nodes, "trees", values, [out], graph.constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", TREE_OPSET)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=IR)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def below(threshold: float) -> float:
    """The largest float32 that LightGBM sends to the left of a threshold, which is not above it but beside 0."""
    if abs(threshold) <= _ZERO:
        return _ZERO if threshold >= 0 else float(np.nextafter(np.float32(-_ZERO), np.float32(-np.inf)))
    with np.errstate(over="ignore"):  # LightGBM's largest threshold, 1e300, becomes infinity and then the largest float
        near = np.float32(threshold)
    return float(np.nextafter(near, np.float32(-np.inf))) if float(near) > threshold else float(near)


def _arrays(trees: Sequence[Tree], width: int) -> dict[str, list[Any]]:
    """The attributes of a `TreeEnsembleRegressor` over columns with absent as -inf, then with absent as +inf."""
    names = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
    out: dict[str, list[Any]] = {f"nodes_{name}": [] for name in names}
    out |= {f"target_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")}
    # A graph without a tree is none, so that a task without one gets a leaf of nothing.
    for at, tree in enumerate(trees or [{"leaf_value": 0.0}]):
        waiting = [(tree, -1, "")]
        number = 0
        first = len(out["nodes_modes"])
        while waiting:
            node, parent, side = waiting.pop()
            if side:
                out[f"nodes_{side}nodeids"][first + parent] = number
            is_leaf = "split_feature" not in node
            values: tuple[Any, ...] = (0, "LEAF", 0.0) if is_leaf else _branch(node, width)
            for name, value in zip(names, (at, number, *values, 0, 0), strict=True):
                out[f"nodes_{name}"].append(value)
            if is_leaf:
                for name, value in zip(
                    ("treeids", "nodeids", "ids", "weights"), (at, number, 0, node["leaf_value"]), strict=True
                ):
                    out[f"target_{name}"].append(value)
            else:
                waiting += [(node["right_child"], number, "false"), (node["left_child"], number, "true")]
            number += 1
    return out


def _branch(node: Tree, width: int) -> tuple[int, str, float]:
    """Feature, mode and threshold of a node."""
    threshold, missing = float(node["threshold"]) if node["decision_type"] == "<=" else np.nan, node["missing_type"]
    if np.isnan(threshold) or missing not in ("None", "NaN"):
        raise ExportError(
            f"a tree parts by {node['decision_type']!r} with missing {missing!r}; train it with numbers only"
        )
    # Where nothing was absent in training, LightGBM takes absent numbers for 0.
    left = node["default_left"] if missing == "NaN" else threshold >= 0
    return int(node["split_feature"]) + (0 if left else width), "BRANCH_LEQ", below(threshold)


class _Graph:
    """Nodes and constants as they come, with names for those that need none."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: Sequence[str], name: str | None = None, /, **attributes: Any) -> str:
        """The name of a node's output."""
        output = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any) -> str:
        """The name of a constant."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name
