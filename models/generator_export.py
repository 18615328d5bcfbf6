"""From a trained generator to a bundle of kind `generative`: graphs, semantic ids, trie, describer, manifest.

What every step of a request shares is one graph, a step is another; a model whose levels do not depend on each other is
one graph alone. A trained encoder of the same catalog may come along, to answer where the generator is late.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.errors import ExportError
from models.export import BATCH, LIST, TOLERANCE, WARMUP_HISTORIES, example, git_commit, trace
from models.generation import in_torch
from models.semantic_ids import SemanticIds
from retrieval import bundle
from retrieval.beam import Search, search
from retrieval.bundle import Bundle, Graph, Manifest
from retrieval.catalog import Catalog
from retrieval.decoder import CodedHistories, Decoder, OnnxDecoder, ParallelDecoder
from retrieval.generative import HYBRID, Generation
from retrieval.inputs import Request
from retrieval.sequences import EMPTY, FloatArray, History, IntArray
from retrieval.trie import ConstraintTrie

PREFILL, STEP, DISTRIBUTIONS = "prefill.onnx", "step.onnx", "distributions.onnx"


class _Part(torch.nn.Module):
    """One method of a model as a module of its own, since a graph is traced from `forward`."""

    def __init__(self, model: torch.nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *feeds: torch.Tensor) -> Any:
        return getattr(self.model, self.method)(*feeds)


def export_generator(
    model: Any,
    ids: SemanticIds,
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
    generation: Mapping[str, Any],
    dense: Bundle | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the bundle of a trained generator; `out` appears at the end or not at all.

    Args:
        ids: the semantic ids that it was trained on.
        samples: real, non-empty histories, for parity and for warming up.
        generation: beams and the like, for `retrieval.generative.Generation`.
        dense: a bundle of kind `encoder` over the same catalog, whose graph, vectors and index come along.

    Raises:
        ExportError: graphs and model disagree, or `dense` is of another catalog.
        BundleError: `out` exists and `overwrite` is false.
    """
    model.eval()
    table, readable = ids.table, [h for h in samples if ids.table.coded[h.rows].any()]
    if not readable:
        raise ExportError(
            "no sample history holds an item with a code, so nothing can be compared; describe more items"
        )
    trie = ConstraintTrie.build(table, priority=catalog.popularity)
    settings = {**generation, "levels": table.levels, "vocabulary": list(table.vocabulary)}
    settings |= {"text_fields": list(ids.describer.fields), "window": model.config.window}
    with bundle.writing(out, overwrite=overwrite) as directory:
        catalog.save(directory / bundle.CATALOG)
        table.save(directory / bundle.CODES)
        trie.save(directory / bundle.TRIE)
        np.save(directory / bundle.TEXT_VECTORS, ids.vectors, allow_pickle=False)
        ids.describer.save(directory / bundle.DESCRIBER)
        graphs = write_graphs(model, directory, readable)
        decoder = opened(model, directory)
        agreement = parity(model, decoder, trie, readable)
        np.save(directory / bundle.ITEM_VECTORS, ids.vectors, allow_pickle=False)
        warm = [[catalog.ids[row] for row in h.rows[-model.config.window :]] for h in readable[:WARMUP_HISTORIES]]
        (directory / bundle.WARMUP).write_text(json.dumps(warm, ensure_ascii=False))
        manifest = Manifest(
            layout=bundle.LAYOUT,
            kind="generative",
            model=name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            data=data,
            seed=seed,
            git_commit=git_commit(),
            hyper_parameters=hyper_parameters,
            window=model.config.window,
            event_types=tuple(event_types),
            exclude_seen=model.exclude_seen,
            graphs=graphs,
            index={"kind": "exact"},
            metrics={**metrics, "parity": agreement, "semantic_ids": ids.report},
            generation=settings,
        )
        bundle.seal(directory, manifest if dense is None else with_encoder(directory, manifest, catalog, dense))
    return out


def with_encoder(directory: Path, manifest: Manifest, catalog: Catalog, dense: Bundle) -> Manifest:
    """The manifest of a generator beside which an encoder answers, whose files are copied into `directory`.

    Raises:
        ExportError: see `check_encoder`.
    """
    check_encoder(dense, catalog)
    graph = dense.manifest.graphs["encoder"]
    for file in (bundle.ITEM_VECTORS, bundle.INDEX, graph.file):
        if file in dense.manifest.files:
            shutil.copyfile(dense.path / file, directory / file)
    return replace(
        manifest,
        window=dense.manifest.window,  # the generator's own stands in `generation`
        graphs={**manifest.graphs, "encoder": graph},
        index={**dense.manifest.index, "from": dense.name},
    )


def check_encoder(dense: Bundle, catalog: Catalog) -> None:
    """Refuses a bundle that cannot answer for a generator of this catalog.

    Raises:
        ExportError: it is no encoder, or of another catalog.
    """
    if dense.manifest.kind != "encoder":
        raise ExportError(f"bundle {dense.name} is of kind {dense.manifest.kind!r}; an encoder was expected")
    if dense.catalog.ids != catalog.ids:
        raise ExportError(
            f"bundle {dense.name} has another catalog than the generator; train both on the same events and items"
        )


def join(
    generator: Bundle, out: Path, *, dense: Bundle | None, generation: Mapping[str, Any], overwrite: bool = False
) -> Path:
    """A generator's bundle again, with an encoder beside it or searched in another way; nothing is trained.

    Args:
        generator: of kind `generative`.
        out: where to.
        dense: the encoder to fall back on; None keeps what the generator has.
        generation: what changes in how it is searched.

    Raises:
        ExportError: the bundles do not fit each other.
        BundleError: `out` exists and `overwrite` is false, or the search cannot be so.
    """
    if generator.manifest.kind != "generative":
        raise ExportError(f"bundle {generator.name} is of kind {generator.manifest.kind!r}; a generator was expected")
    settings = {**generator.manifest.generation, **generation}
    if Generation.parse(settings).candidates == HYBRID and dense is None and "encoder" not in generator.manifest.graphs:
        raise ExportError("hybrid candidates come from an encoder too, and there is none; name one with --dense")
    with bundle.writing(out, overwrite=overwrite) as directory:
        for file in generator.manifest.files:
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(generator.path / file, directory / file)
        manifest = replace(generator.manifest, generation=settings)
        if dense is not None:
            (directory / bundle.INDEX).unlink(missing_ok=True)
            manifest = with_encoder(directory, manifest, generator.catalog, dense)
        bundle.seal(directory, manifest)
    return out


def write_graphs(model: Any, directory: Path, samples: Sequence[History]) -> dict[str, Graph]:
    """Writes the graphs of a generator, every dimension that depends on the requests dynamic."""
    feeds, shapes = example(model, samples)
    names = tuple(model.inputs)
    if not model.memory_names:
        trace(
            _Part(model, "distributions"), feeds, shapes, directory / DISTRIBUTIONS, inputs=names, outputs=["log_probs"]
        )
        return {"distributions": Graph(DISTRIBUTIONS, names, "(B, L, V)")}
    trace(_Part(model, "prefill"), feeds, shapes, directory / PREFILL, inputs=names, outputs=model.memory_names)
    with torch.inference_mode():
        memory = model.prefill(*feeds)
        shorter = model.prefill(
            *(feed[:, 1:] if 1 in shape else feed for feed, shape in zip(feeds, shapes, strict=True))
        )
    # A memory holds one line per item, or one per code.
    levels = model.tables.codes.levels
    batch, length = torch.export.Dim("B"), torch.export.Dim("L", max=model.config.window * levels)
    grows: tuple[dict[int, Any], ...] = tuple(
        {0: batch} | {at: length for at, (a, b) in enumerate(zip(long.shape, short.shape, strict=True)) if a != b}
        for long, short in zip(memory, shorter, strict=True)
    )
    # Four beams, and two codes written: sizes that are none of the others, so that none is taken for another.
    prefix = torch.zeros(len(feeds[0]), 4, min(3, levels), dtype=torch.int64)
    written = {2: torch.export.Dim("T", max=levels)} if levels > 1 else {}
    trace(
        _Part(model, "step"),
        (prefix, *(part.clone() for part in memory)),
        ({0: batch, 1: torch.export.Dim("M")} | written, *grows),
        directory / STEP,
        inputs=("prefix", *model.memory_names),
        outputs=["log_probs"],
    )
    return {
        "prefill": Graph(PREFILL, names, ", ".join(model.memory_names)),
        "step": Graph(STEP, ("prefix", *model.memory_names), "(B, M, V)"),
    }


def opened(model: Any, directory: Path) -> Decoder:
    """The graphs of a model, run by onnxruntime."""
    table = model.tables.codes
    histories = CodedHistories(model.inputs, model.config.window, model.tables, trained=len(table))
    if not model.memory_names:
        return ParallelDecoder(directory / DISTRIBUTIONS, histories=histories, vocabulary=table.vocabulary)
    return OnnxDecoder(directory / PREFILL, directory / STEP, histories=histories, vocabulary=table.vocabulary)


def parity(model: Any, decoder: Decoder, trie: ConstraintTrie, samples: Sequence[History]) -> dict[str, Any]:
    """How nearly the graphs write what the model writes.

    Both search the same histories, in batches of mixed lengths and alone; then both are asked for every step of the
    items that the model found.

    Returns:
        `manifest["metrics"]["parity"]`: how many histories, the largest difference of a log-probability, and the share
        of histories whose best 20 items are the same in the same order.

    Raises:
        ExportError: a log-probability differs by more than the tolerance of its size, or is no number.
    """
    ours, largest, same = in_torch(model), 0.0, 0
    live = trie.live(np.arange(len(model.tables.codes) + 1) > 0)
    batches = [samples[start : start + BATCH] for start in range(0, len(samples), BATCH)]
    longest = max(samples, key=len)
    edges = [h for h in (longest.newest(1), longest.newest(2), longest) if ours.reads(Request(h))]
    for place, histories in enumerate([*batches, *([h] for h in edges)]):
        requests = [Request(h) for h in histories]
        searches = [Search(LIST, LIST, live, EMPTY.rows) for _ in histories]
        memories = [side.prefill(requests) for side in (ours, decoder)]
        lists = [search(side, memory, trie, searches) for side, memory in zip((ours, decoder), memories, strict=True)]
        if not all(found.finished for found in lists[0]):
            raise ExportError("the model gives no numbers for real histories, so its training diverged; train it again")
        codes = np.stack([_codes(model, found.rows) for found in lists[0]])
        for level in range(trie.levels):
            prefix = codes[:, :, :level] if level else codes[:, :1, :0]
            a, b = (side.step(memory, prefix) for side, memory in zip((ours, decoder), memories, strict=True))
            largest = max(largest, _worst(a, b))
        if place < len(batches):
            same += sum(np.array_equal(a.rows, b.rows) for a, b in zip(*lists, strict=True))
    return {
        "histories": len(samples),
        "largest_difference": largest,
        f"identical_top{LIST}": same / len(samples),
    }


def _codes(model: Any, rows: IntArray) -> IntArray:
    """int64, shape (LIST, L): the codes of the rows, the last one again where there are fewer."""
    padded = np.resize(rows, LIST) if len(rows) < LIST else rows
    codes: IntArray = model.tables.codes.codes[padded].astype(np.int64)
    return codes


def _worst(ours: FloatArray, theirs: FloatArray) -> float:
    """The largest difference of two log-probabilities; what one calls impossible, the other must call so too."""
    with np.errstate(invalid="ignore"):  # -inf less -inf, where both say so
        difference = np.where(ours == theirs, 0.0, np.abs(ours - theirs))
    size = np.maximum(1.0, np.abs(np.where(np.isfinite(ours), ours, 1.0)))
    worst = float(difference.max())
    if not (difference <= TOLERANCE * size).all():  # NaN is not
        raise ExportError(
            f"torch and onnxruntime differ by {worst:.2e} in a log-probability; {TOLERANCE:.0e} of its size is "
            "allowed, so the graphs do not compute what was trained"
        )
    return worst
