"""From a trained model to a bundle: graph, vectors, catalog, index, warm-up, manifest.

The graph computes the newest slot only. Before the bundle gets its name, the graph is run by onnxruntime beside the
model in torch, at windows of 1, 2 and L and on every sample history, and must agree; the manifest says how nearly.
"""

import inspect
import json
import logging
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from models import metrics as measures
from models.errors import ExportError
from models.scoring import tensors
from retrieval import bundle, index
from retrieval.bundle import Graph, Manifest
from retrieval.catalog import Catalog
from retrieval.encoder import OnnxEncoder
from retrieval.inputs import Request
from retrieval.sequences import FloatArray, History, IntArray

OPSET = 20
GRAPH = "encoder.onnx"
TOLERANCE = 1e-4  # largest difference of a query coordinate, relative to the largest coordinate of its query
WARMUP_HISTORIES = 32
BATCH = 64  # histories that are compared at a time
LIST = 20  # length of the lists that are compared
EXACT_BELOW = (
    50_000  # items: up to here one exact search costs less than a millisecond, see `python -m loadtests stages`
)


def export(
    model: Any,
    catalog: Catalog,
    *,
    name: str,
    out: Path,
    samples: Sequence[History],
    data: Mapping[str, Any],
    event_types: Sequence[str],
    hyper_parameters: Mapping[str, Any],
    seed: int,
    metrics: Mapping[str, Any],
    exclude_seen: bool = True,
    target_recall: float = 0.98,
    exact_below: int = EXACT_BELOW,
    overwrite: bool = False,
) -> Path:
    """Writes the bundle of a trained encoder; `out` appears at the end or not at all.

    Args:
        samples: real, non-empty histories: for parity, for choosing the index and for warming up.
        exact_below: catalog size from which an approximate index is tried.

    Raises:
        ExportError: graph and model disagree.
        BundleError: `out` exists and `overwrite` is false.
    """
    model.eval()
    vectors = model.item_vectors().detach().numpy().astype(np.float32).copy()
    vectors[0] = 0.0
    with bundle.writing(out, overwrite=overwrite) as directory:
        catalog.save(directory / bundle.CATALOG)
        np.save(directory / bundle.ITEM_VECTORS, vectors, allow_pickle=False)
        write_graph(model, directory / GRAPH, samples)
        encoder = OnnxEncoder(directory / GRAPH, names=model.inputs, length=model.config.window)
        queries, agreement = parity(model, encoder, vectors, samples)
        chosen, facts = index.choose_index(
            vectors, sample_queries=queries, target_recall=target_recall, exact_below=exact_below, seed=seed
        )
        if facts["kind"] != "exact":
            index.save_index(chosen, directory / bundle.INDEX)
        write_warmup(model, encoder, catalog, samples[:WARMUP_HISTORIES], directory)
        bundle.seal(
            directory,
            Manifest(
                layout=bundle.LAYOUT,
                kind="encoder",
                model=name,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                data=data,
                seed=seed,
                git_commit=git_commit(),
                hyper_parameters=hyper_parameters,
                window=model.config.window,
                event_types=tuple(event_types),
                exclude_seen=exclude_seen,
                graphs={"encoder": Graph(GRAPH, tuple(model.inputs), "(B, D)" if queries.ndim == 2 else "(B, Q, D)")},
                index=facts,
                metrics={**metrics, "parity": agreement},
            ),
        )
    return out


def write_warmup(
    model: Any, encoder: OnnxEncoder, catalog: Catalog, samples: Sequence[History], directory: Path
) -> None:
    """Writes the histories that a service replays, and what the model made of them by their items alone.

    Raises:
        ExportError: graph and model disagree.
    """
    windows = [h.rows[-model.config.window :] for h in samples]
    ours, _ = _compared(model, encoder, [History.of_rows(rows) for rows in windows])
    np.save(directory / bundle.WARMUP_QUERIES, ours, allow_pickle=False)
    warm = [[catalog.ids[row] for row in rows] for rows in windows]
    (directory / bundle.WARMUP).write_text(json.dumps(warm, ensure_ascii=False))


def write_graph(model: Any, path: Path, samples: Sequence[History]) -> None:
    """Writes the ONNX graph of `model.forward`, with dynamic batch and length."""
    feeds, shapes = example(model, samples)
    trace(model, feeds, shapes, path, inputs=model.inputs, outputs=("query",))


def example(model: Any, samples: Sequence[History]) -> tuple[tuple[torch.Tensor, ...], tuple[dict[int, Any], ...]]:
    """Inputs to trace a graph with, and which of their dimensions are the batch and the length."""
    requests = [Request(h) for h in samples[:2]] * (1 if len(samples) > 1 else 2)  # two: a batch of one is a constant
    length = min(max(max(len(r.history) for r in requests), 3), model.config.window)
    feeds = tensors(model, requests, length=length)
    by_batch = {0: torch.export.Dim("B")}
    # A window of one event has but one length, and the exporter takes no dimension of one size.
    by_length = by_batch | ({1: torch.export.Dim("L", max=model.config.window)} if model.config.window > 1 else {})
    return feeds, tuple(by_length if feed.ndim > 1 and feed.shape[1] == length else by_batch for feed in feeds)


def trace(
    module: torch.nn.Module,
    feeds: tuple[torch.Tensor, ...],
    shapes: tuple[dict[int, Any], ...],
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Writes the ONNX graph of a module's `forward`.

    Args:
        module: in evaluation mode.
        feeds: an example of its inputs, every dynamic dimension of at least two.
        shapes: the dynamic dimensions of each.
        path: where to.
        inputs, outputs: names; a colon becomes an underscore.

    Raises:
        ExportError: the exporter gave up.
    """
    # The exporter warns of its own internals, and of a package that nobody here uses.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            feeds,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(shapes,) if _takes_any(module) else shapes,
            input_names=[name.replace(":", "_") for name in inputs],
            output_names=list(outputs),
            optimize=True,
            verbose=False,
        )
    if program is None:
        raise ExportError("the exporter returned no graph")
    graph = program.model_proto
    # Where a node came from in our source is of no use to a server, and holds paths of the machine that trained.
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del graph.metadata_props[:]
    for value in [*graph.graph.value_info, *graph.graph.input, *graph.graph.output, *graph.graph.initializer]:
        del value.metadata_props[:]
    del graph.graph.metadata_props[:]
    onnx.checker.check_model(graph)
    onnx.save(graph, str(path))


def parity(
    model: Any, encoder: OnnxEncoder, vectors: FloatArray, samples: Sequence[History]
) -> tuple[FloatArray, dict[str, Any]]:
    """How nearly the graph computes what the model computes.

    Checked at batches of one with windows of 1, 2 and L, and over all samples in batches of many.

    Args:
        vectors: float32, shape (N + 1, D).
        samples: S non-empty histories.

    Returns:
        the graph's queries, float32 of shape (S, D) or (S, Q, D), and `manifest["metrics"]["parity"]`: how many
        histories, the largest difference of a query coordinate, and the share of histories whose best 20 items, those
        of the history left out, are the same in the same order.

    Raises:
        ExportError: a difference is above the tolerance, or not a number.
    """
    window = model.config.window
    longest = max(samples, key=len)
    edges = [longest.newest(1), longest.newest(2), History.of_rows(np.resize(longest.rows, window))]
    for history in edges:
        _compared(model, encoder, [history])
    queries, largest, same = [], 0.0, 0
    for start in range(0, len(samples), BATCH):
        histories = samples[start : start + BATCH]
        ours, theirs = _compared(model, encoder, histories)
        queries.append(theirs)
        largest = max(largest, float(np.abs(ours - theirs).max()))
        lists = [_best(query, vectors, histories) for query in (ours, theirs)]
        same += int((lists[0] == lists[1]).all(axis=1).sum())
    return np.concatenate(queries), {
        "histories": len(samples),
        "largest_difference": largest,
        f"identical_top{LIST}": same / len(samples),
    }


def _takes_any(module: torch.nn.Module) -> bool:
    """Whether `forward` takes `*feeds`, whose shapes the exporter wants in a tuple of their own."""
    return any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(module.forward).parameters.values())


def _compared(model: Any, encoder: OnnxEncoder, histories: Sequence[History]) -> tuple[FloatArray, FloatArray]:
    """The queries of the model and of the graph for one batch, which do not differ by more than the tolerance."""
    requests = [Request(h) for h in histories]
    length = min(max(map(len, histories)), model.config.window)
    with torch.inference_mode():
        ours = np.asarray(model(*tensors(model, requests, length=length)).numpy(), dtype=np.float32)
    theirs = encoder.encode(requests)
    worst = float((np.abs(ours - theirs) / np.abs(ours).max(axis=-1, keepdims=True)).max())
    if not worst <= TOLERANCE:
        raise ExportError(
            f"torch and onnxruntime differ by {worst:.2e} of the query's size in a batch of {len(histories)} histories "
            f"of at most {length} events; {TOLERANCE:.0e} is allowed, so the graph does not compute what was trained"
        )
    return ours, theirs


def _best(queries: FloatArray, vectors: FloatArray, histories: Sequence[History]) -> IntArray:
    """int64, shape (B, LIST): the best rows of each query, those of its history left out."""
    scores = queries @ vectors.T
    scores = scores if scores.ndim == 2 else scores.max(axis=1)
    for line, history in zip(scores, histories, strict=True):
        line[history.rows] = -np.inf
    return measures.top(scores, LIST)


def git_commit() -> str:
    """The commit of the code that runs; `-dirty` behind it where files other than results differ, `unknown` outside."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", ".", ":!*RESULTS.md") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
