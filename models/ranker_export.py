"""From a retriever's bundle and a fitted ranker to a bundle of two stages."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import ExportError
from models.export import git_commit
from models.lists import Lists
from retrieval import bundle
from retrieval.bundle import RANKER, Bundle, Graph
from retrieval.features import FeatureTables, build
from retrieval.ranking import OnnxRanker, Ranking
from retrieval.statistics import Statistics

GRAPH = "ranker.onnx"
TOLERANCE = 1e-4  # largest difference of a probability
COMPARED = 100  # lists


def export_ranker(
    model: Any,
    retriever: Bundle,
    out: Path,
    *,
    name: str,
    settings: Ranking,
    statistics: Statistics,
    samples: Lists,
    hyper_parameters: Mapping[str, Any],
    metrics: Mapping[str, Any],
    overwrite: bool = False,
) -> Path:
    """Writes the retriever's bundle again with a ranker in it; `out` appears at the end or not at all.

    Args:
        model: a fitted ranker.
        settings: features, goals, candidates and calibration.
        samples: real lists, for parity.
        hyper_parameters, metrics: of the ranker; they stand beside the retriever's under `ranking`.

    Raises:
        ExportError: graph and model disagree.
        BundleError: `out` exists and `overwrite` is false.
    """
    manifest = retriever.manifest
    tables = FeatureTables.of(settings.features, statistics, retriever.catalog, retriever.item_vectors)
    with bundle.writing(out, overwrite=overwrite) as directory:
        for file in manifest.files:
            if file in (GRAPH, bundle.STATISTICS):
                continue  # of another ranker, which this one replaces
            (directory / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(retriever.path / file, directory / file)
        statistics.save(directory / bundle.STATISTICS)
        # Two lists, for a batch of one is a constant to a tracer; the two that hold most events between them.
        longest = np.argsort([-len(request.history) for request in samples.requests], kind="stable")[:2]
        model.write(directory / GRAPH, build(tables, samples.candidates(longest.tolist()), model.inputs))
        agreement = parity(model, directory / GRAPH, settings, tables, samples)
        made = replace(
            manifest,
            model=f"{manifest.model.partition('+')[0]}+{name}",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            git_commit=git_commit(),
            graphs={**manifest.graphs, RANKER: Graph(GRAPH, tuple(model.inputs), "(B, C, T)")},
            hyper_parameters={**manifest.hyper_parameters, "ranking": dict(hyper_parameters)},
            metrics={**manifest.metrics, "ranking": {**metrics, "parity": agreement}},
            ranking={**settings.to_json(), "model": name, "retriever": retriever.name},
        )
        bundle.seal(directory, made)
    return out


def parity(model: Any, path: Path, settings: Ranking, tables: FeatureTables, samples: Lists) -> dict[str, Any]:
    """How nearly the graph says what the model says, before calibration: lists alone, and many together.

    Raises:
        ExportError: a probability differs by more than the tolerance, or is no number.
    """
    graph = OnnxRanker(path, names=model.inputs, settings=replace(settings, calibration={}), tables=tables)
    which = list(range(min(COMPARED, len(samples))))
    batches = [[r] for r in which[:10]] + [which]
    worst = 0.0
    for batch in batches:
        lists = samples.candidates(batch)
        said = model.probabilities(build(tables, lists, model.inputs))
        for own, found in zip(said, graph.rank(lists), strict=True):
            worst = max(worst, float(np.abs(own[: len(found)] - found).max(initial=0.0)))
            if not np.isfinite(found).all():
                raise ExportError("the ranker's graph says something that is no number; the training run diverged")
    if worst > TOLERANCE:
        raise ExportError(
            f"the ranker and its graph differ by {worst:.2e} in a probability; {TOLERANCE:.0e} is allowed, so the "
            "graph does not compute what was trained"
        )
    return {"lists": len(which), "largest_difference": worst}
