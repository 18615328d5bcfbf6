"""What the rivals of a comparison serve, made from a bundle: parts for the plain service, and a hollow one for ours.

A hollow bundle has the catalogue of its model and an encoder that does nothing, over vectors of one number. A service
on it does everything else, so that what it takes is the floor.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.target import LoadError
from retrieval import bundle as bundles
from retrieval.bundle import Bundle, Graph
from retrieval.catalog import Catalog
from retrieval.errors import SequiturError

HOLLOW_GRAPH = "encoder.onnx"


def plain_items(catalog: Catalog) -> dict[str, Any]:
    """What the plain service has to know of items."""
    return {
        "ids": catalog.ids,
        "available": catalog.available.tolist(),
        "popularity": catalog.popularity.tolist(),
    }


def opened(path: Path) -> Bundle:
    """A bundle that a plain service can serve, too.

    Raises:
        LoadError: there is none, or it ranks, or its encoder reads more than items.
    """
    try:
        bundle = Bundle.open(path)
    except SequiturError as error:
        raise LoadError(str(error)) from error
    graph = bundle.manifest.graphs.get("encoder")
    if graph is None or graph.inputs != ("item_rows",) or "ranker" in bundle.manifest.graphs:
        raise LoadError(f"{path} does more than encode item ids, which a plain service does not; give another bundle")
    return bundle


def plain_command(bundle: Bundle, folder: Path, *, threads: int) -> list[str]:
    """Arguments of `loadtests.plain` for a bundle; what it needs besides is written into `folder`."""
    items = folder / "items.json"
    items.write_text(json.dumps(plain_items(bundle.catalog)))
    path = bundle.path.resolve()
    return [
        *("--graph", str(path / bundle.manifest.graphs["encoder"].file)),
        *("--vectors", str(path / bundles.ITEM_VECTORS)),
        *("--items", str(items)),
        *("--window", str(bundle.manifest.window), "--threads", str(threads)),
    ]


def hollow(bundle: Bundle, path: Path) -> Path:
    """Writes the hollow bundle, and returns where.

    Raises:
        LoadError: the library that writes graphs is not installed.
    """
    try:
        from onnx import TensorProto, helper, numpy_helper, save_model
    except ImportError as error:
        raise LoadError("a hollow bundle is written with onnx, from the training extra: pip install onnx") from error
    constants = {"start": 0, "end": 1, "width": 1}
    made = helper.make_graph(
        [
            helper.make_node("Shape", ["item_rows"], ["shape"]),
            helper.make_node("Slice", ["shape", "start", "end"], ["batch"]),
            helper.make_node("Concat", ["batch", "width"], ["of"], axis=0),
            helper.make_node(
                "ConstantOfShape", ["of"], ["query"], value=numpy_helper.from_array(np.ones(1, np.float32))
            ),
        ],
        "hollow",
        [helper.make_tensor_value_info("item_rows", TensorProto.INT64, ["B", "L"])],
        [helper.make_tensor_value_info("query", TensorProto.FLOAT, ["B", 1])],
        [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in constants.items()],
    )
    catalog = bundle.catalog
    vectors = np.linspace(1, 0.5, len(catalog) + 1, dtype=np.float32)[:, None]
    vectors[0] = 0
    manifest = replace(
        bundle.manifest,
        model="hollow",
        graphs={"encoder": Graph(HOLLOW_GRAPH, ("item_rows",), "(B, D)")},
        index={"kind": "exact"},
        metrics={},
        files={},
    )
    with bundles.writing(path) as directory:
        catalog.save(directory / bundles.CATALOG)
        np.save(directory / bundles.ITEM_VECTORS, vectors, allow_pickle=False)
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        save_model(model, str(directory / HOLLOW_GRAPH))
        (directory / bundles.WARMUP).write_text(json.dumps(bundle.warmup[:20]))
        bundles.seal(directory, manifest)
    return path
