"""A bundle of kind `generative` over the toy's twenty items, made with NumPy and onnx.helper: no torch, known answers.

Each item's text (title and categories) is hashed, quantised into two codes of four words, and numbered by a third of
eight. `i18` has no code, as if nothing had been known of its text. What the graphs say depends on the history, newest
events most, and on the codes written so far; `log_probs` says the same in NumPy, to judge by.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import toy
from onnx import TensorProto, helper, numpy_helper

from retrieval import bundle
from retrieval.bundle import Graph
from retrieval.codes import NO_CODE, CodeTable
from retrieval.describer import Describer
from retrieval.quantisers import ResidualCodebooks
from retrieval.text import HashedText
from retrieval.trie import ConstraintTrie

D = 6
VOCABULARY = (4, 4, 8)
LEVELS, WIDEST = len(VOCABULARY), max(VOCABULARY)
UNCODED = 18
_rng = np.random.default_rng(20)
_read = _rng.normal(size=(LEVELS, WIDEST + 1, D)).astype(np.float32)  # [:, 0] stands for -1
_read[:, 0] = 0
_written = _rng.normal(size=(LEVELS, WIDEST, D)).astype(np.float32)  # column 0 of a prefix, then its codes
_head = _rng.normal(size=(LEVELS, D, WIDEST)).astype(np.float32)
_bias = np.where(np.arange(WIDEST) < np.array(VOCABULARY)[:, None], 0, -1e9).astype(np.float32)
_decay = (0.5 ** np.arange(toy.WINDOW - 1, -1, -1)).astype(np.float32)[:, None]  # (L, 1), the newest last


def describer() -> Describer:
    """What makes semantic ids of titles and categories."""
    rng = np.random.default_rng(5)
    text = HashedText(np.arange(512, dtype=np.int32), rng.normal(size=(512, D)).astype(np.float32))
    books = np.stack([rng.normal(size=(4, D)) / 2, rng.normal(size=(4, D)) / 3]).astype(np.float32)
    quantiser = ResidualCodebooks(books, np.zeros(D, np.float32), np.ones(D, np.float32))
    return Describer(text, quantiser, ("title", "categories"), dedup=WIDEST)


def texts() -> np.ndarray:
    """float32, shape (21, 6): what the semantic ids are made from."""
    known = [toy.catalog().attributes(row) for row in range(1, toy.N + 1)]
    vectors = np.concatenate([np.zeros((1, D), np.float32), describer().vectors_for(known)])
    vectors[UNCODED] = 0
    return vectors


def codes() -> CodeTable:
    """The items' semantic ids."""
    table = np.concatenate([np.full((1, LEVELS), NO_CODE), describer().codes_of(texts()[1:])])
    return CodeTable(table, VOCABULARY)


def log_probs(history: Sequence[int], prefix: Sequence[int]) -> np.ndarray:
    """float64, shape (V,): what the step graph says after a history of rows and some codes."""
    events, newest = _events(history)
    level = len(prefix)
    hidden = events.sum(axis=0) + newest + sum(_written[j][code] for j, code in enumerate([0, *prefix]))
    return _log_softmax(np.tanh(hidden) @ _head[level] + _bias[level])[: VOCABULARY[level]]


def distributions(history: Sequence[int]) -> list[np.ndarray]:
    """L arrays, float64, shape (V,): what the graph of the parallel bundle says after a history."""
    hidden = np.tanh(sum(_events(history)[0]))
    return [_log_softmax(hidden @ _head[level] + _bias[level])[:v] for level, v in enumerate(VOCABULARY)]


def scores(history: Sequence[int], *, parallel: bool = False) -> np.ndarray:
    """float64, shape (21,): what every item scores; -inf without a code."""
    out = np.full(toy.N + 1, -np.inf)
    for row, own in enumerate(codes().codes.tolist()):
        if own[0] != NO_CODE:
            said = distributions(history) if parallel else [log_probs(history, own[:at]) for at in range(LEVELS)]
            out[row] = sum(float(level[code]) for level, code in zip(said, own, strict=True))
    return out


def toy_generative(path: Path, *, parallel: bool = False, dense: bool = True, **changes: Any) -> Path:
    """Writes the bundle at `path` and returns it.

    Args:
        parallel: one graph for all levels, instead of one for histories and one for steps.
        dense: with the toy's encoder and vectors; without, its vectors are those of the texts.
        changes: replace manifest fields; `generation` replaces only what it names.
    """
    table, catalog = codes(), toy.catalog()
    graphs = {"encoder": Graph("encoder.onnx", ("item_rows",), "(B, D)")} if dense else {}
    with bundle.writing(path) as directory:
        catalog.save(directory / bundle.CATALOG)
        table.save(directory / bundle.CODES)
        ConstraintTrie.build(table, priority=catalog.popularity).save(directory / bundle.TRIE)
        describer().save(directory / bundle.DESCRIBER)
        np.save(directory / bundle.ITEM_VECTORS, toy.vectors() if dense else texts(), allow_pickle=False)
        np.save(directory / bundle.TEXT_VECTORS, texts(), allow_pickle=False)
        (directory / bundle.WARMUP).write_text('[["i01"], ["i02", "i03"]]')
        if dense:
            toy.graph(directory / "encoder.onnx", toy.vectors())
        if parallel:
            parallel_graph(directory / "distributions.onnx")
            graphs["distributions"] = Graph("distributions.onnx", ("item_codes",), "(R, L, V)")
        else:
            prefill_graph(directory / "prefill.onnx")
            step_graph(directory / "step.onnx")
            graphs["prefill"] = Graph("prefill.onnx", ("item_codes",), "events (R, n, D), newest (R, D)")
            graphs["step"] = Graph("step.onnx", ("prefix",), "(R, M, V)")
        generation = {
            "levels": LEVELS,
            "vocabulary": list(VOCABULARY),
            "beams": 8,
            "widen": 1,
            "exact_below": 0,
            "candidates": "generated",
            "text_fields": ["title", "categories"],
        }
        fields = {"kind": "generative", "model": "toy-generator", "graphs": graphs, **changes}
        fields["generation"] = {**generation, **changes.get("generation", {})}
        bundle.seal(directory, toy.manifest(**fields))
    return path


def prefill_graph(path: Path) -> None:
    """Writes `item_codes` int64 (B, n, L) -> `events` float32 (B, n, D) and `newest` float32 (B, D)."""
    nodes = [*_weighted_events(), helper.make_node("Gather", ["embedded", "last"], ["newest"], axis=1)]
    _save(path, nodes, {"item_codes": ["B", "n", LEVELS]}, {"events": ["B", "n", D], "newest": ["B", D]})


def step_graph(path: Path) -> None:
    """Writes `prefix` int64 (R, M, T + 1), `events`, `newest` -> `log_probs` float32 (R, M, V)."""
    nodes = [
        helper.make_node("Shape", ["prefix"], ["shape"]),
        helper.make_node("Gather", ["shape", "two"], ["columns"]),  # T + 1
        helper.make_node("Sub", ["columns", "one"], ["level"]),
        helper.make_node("Range", ["zero", "columns", "one"], ["places"]),
        helper.make_node("Mul", ["places", "widest"], ["offsets"]),
        helper.make_node("Add", ["prefix", "offsets"], ["at"]),
        helper.make_node("Gather", ["written", "at"], ["said"]),
        helper.make_node("ReduceSum", ["said", "axis2"], ["so_far"], keepdims=0),  # (R, M, D)
        helper.make_node("ReduceSum", ["events", "axis1"], ["past"], keepdims=0),
        helper.make_node("Add", ["past", "newest"], ["state"]),
        helper.make_node("Unsqueeze", ["state", "axis1"], ["states"]),
        helper.make_node("Add", ["states", "so_far"], ["sum"]),
        helper.make_node("Tanh", ["sum"], ["hidden"]),
        helper.make_node("Gather", ["head", "level"], ["own_head"]),
        helper.make_node("Gather", ["bias", "level"], ["own_bias"]),
        helper.make_node("MatMul", ["hidden", "own_head"], ["product"]),
        helper.make_node("Add", ["product", "own_bias"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["log_probs"], axis=-1),
    ]
    inputs = {"prefix": ["R", "M", "T"], "events": ["R", "n", D], "newest": ["R", D]}
    _save(path, nodes, inputs, {"log_probs": ["R", "M", WIDEST]})


def parallel_graph(path: Path) -> None:
    """Writes `item_codes` int64 (B, n, L) -> `log_probs` float32 (B, L, V)."""
    nodes = [
        *_weighted_events(),
        helper.make_node("ReduceSum", ["events", "axis1"], ["past"], keepdims=0),
        helper.make_node("Tanh", ["past"], ["hidden"]),
        helper.make_node("Unsqueeze", ["hidden", "axes"], ["states"]),  # (B, 1, 1, D) @ (L, D, V)
        helper.make_node("MatMul", ["states", "head"], ["products"]),  # (B, L, 1, V)
        helper.make_node("Squeeze", ["products", "axis2"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["log_probs"], axis=-1),
    ]
    _save(path, nodes, {"item_codes": ["B", "n", LEVELS]}, {"log_probs": ["B", LEVELS, WIDEST]})


def _events(history: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """float64, shape (n, D): weighted embeddings of the newest coded items; and the newest one's, unweighted."""
    rows = [row for row in history if row != UNCODED][-toy.WINDOW :]
    embedded = sum(_read[level][codes().codes[rows, level] + 1].astype(np.float64) for level in range(LEVELS))
    return embedded * _decay[-len(rows) :], embedded[-1]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def _weighted_events() -> list[onnx.NodeProto]:
    return [
        helper.make_node("Add", ["item_codes", "code_offsets"], ["rows"]),  # level by level, -1 the first row of each
        helper.make_node("Gather", ["read", "rows"], ["levels"]),
        helper.make_node("ReduceSum", ["levels", "axis2"], ["embedded"], keepdims=0),
        helper.make_node("Shape", ["item_codes"], ["given"], start=1, end=2),
        helper.make_node("Sub", ["window", "given"], ["start"]),
        helper.make_node("Slice", ["decay", "start", "window", "first"], ["weights"]),
        helper.make_node("Mul", ["embedded", "weights"], ["events"]),
    ]


def _save(path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    constants = {
        "read": _read.reshape(-1, D),
        "written": _written.reshape(-1, D),
        "head": _head,
        "bias": _bias,
        "decay": _decay,
        "code_offsets": np.arange(LEVELS, dtype=np.int64) * (WIDEST + 1) + 1,
        "window": np.array([toy.WINDOW], np.int64),
        "first": np.array([0], np.int64),
        "axis1": np.array([1], np.int64),
        "axis2": np.array([2], np.int64),
        "axes": np.array([1, 2], np.int64),
        "last": np.array(-1, np.int64),
        "zero": np.array(0, np.int64),
        "one": np.array(1, np.int64),
        "two": np.array(2, np.int64),
        "widest": np.array(WIDEST, np.int64),
    }
    used = {name for node in nodes for name in node.input}
    whole = {"item_codes", "prefix"}
    made = helper.make_graph(
        nodes,
        "toy-generator",
        [
            helper.make_tensor_value_info(name, TensorProto.INT64 if name in whole else TensorProto.FLOAT, shape)
            for name, shape in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
