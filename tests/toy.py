"""A bundle of twenty items, made with NumPy and onnx.helper in milliseconds: no torch, no download, known answers.

Items `i01` to `i20` sit on a circle; the query is the sum of the newest events' vectors, later ones weighing more, so
the neighbours of the last item come first. Every third item is red, the others blue; prices are 1 to 20; `i20` is
unavailable; popularity falls from `i01` on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from retrieval import bundle
from retrieval.bundle import Graph, Manifest
from retrieval.catalog import Catalog

N = 20
WINDOW = 10
ITEM_IDS = [f"i{n:02d}" for n in range(1, N + 1)]


def catalog() -> Catalog:
    """The twenty items."""
    return Catalog.build(
        ITEM_IDS,
        popularity=np.arange(N, 0, -1),
        available=[item != "i20" for item in ITEM_IDS],
        attributes={
            "title": [f"Item {n}" for n in range(1, N + 1)],
            "categories": [["red", "all"] if n % 3 == 0 else ["blue", "all"] for n in range(1, N + 1)],
            "price": [float(n) for n in range(1, N + 1)],
        },
    )


def vectors() -> np.ndarray:
    """float32, shape (21, 4): points on a circle, with a little of their own in the last coordinate."""
    angle = 2 * np.pi * np.arange(1, N + 1) / N
    points = np.stack([np.cos(angle), np.sin(angle), np.full(N, 0.1), 0.001 * np.arange(1, N + 1)], axis=1)
    return np.concatenate([np.zeros((1, 4)), points]).astype(np.float32)


def graph(path: Path, table: np.ndarray) -> None:
    """Writes a graph `item_rows` int64 (B, L) -> `query` float32 (B, D): a decayed sum of the items' vectors."""
    decay = (0.5 ** np.arange(WINDOW - 1, -1, -1)).astype(np.float32)[:, None]  # (L, 1), the newest last
    constants = {
        "table": table,
        "decay": decay,
        "axis": np.array([1], np.int64),
        "one": np.array([1], np.int64),
        "end": np.array([WINDOW], np.int64),
        "zero": np.array([0], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "item_rows"], ["embedded"]),
        helper.make_node("Shape", ["item_rows"], ["shape"]),
        helper.make_node("Slice", ["shape", "one", "two", "zero"], ["length"]),
        helper.make_node("Sub", ["end", "length"], ["start"]),
        helper.make_node("Slice", ["decay", "start", "end", "zero"], ["weights"]),
        helper.make_node("Mul", ["embedded", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "axis"], ["query"], keepdims=0),
    ]
    constants["two"] = np.array([2], np.int64)
    made = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("item_rows", TensorProto.INT64, ["B", "L"])],
        [helper.make_tensor_value_info("query", TensorProto.FLOAT, ["B", table.shape[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def manifest(**changes: Any) -> Manifest:
    """The toy's manifest, before it is sealed."""
    fields: Mapping[str, Any] = {
        "layout": bundle.LAYOUT,
        "kind": "encoder",
        "model": "toy",
        "created": "2026-01-01T00:00:00Z",
        "data": {"layout": "toy", "digest": "0" * 64, "events": 100, "users": 10, "items": N, "first": 0, "last": 99},
        "seed": 0,
        "git_commit": "unknown",
        "hyper_parameters": {"d": 4},
        "window": WINDOW,
        "event_types": ("view", "click", "purchase"),
        "exclude_seen": True,
        "graphs": {"encoder": Graph("encoder.onnx", ("item_rows",), "(B, D)")},
        "index": {"kind": "exact"},
        "metrics": {"loo": {"recall@10": 0.5}},
    }
    return Manifest(**{**fields, **changes})


def write(path: Path, **changes: Any) -> Path:
    """Writes the toy bundle at `path` and returns it; `changes` replace manifest fields."""
    with bundle.writing(path) as directory:
        catalog().save(directory / bundle.CATALOG)
        np.save(directory / bundle.ITEM_VECTORS, vectors(), allow_pickle=False)
        graph(directory / "encoder.onnx", vectors())
        (directory / bundle.WARMUP).write_text('[["i01"], ["i02", "i03"]]')
        bundle.seal(directory, manifest(**changes))
    return path
