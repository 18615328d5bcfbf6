"""Soundness: whether a loaded bundle computes what it was exported to compute, on the histories that it brings.

Digests say that the files are whole. Here the graphs are run: one request alone against the same among others, the
encoder against what the trained model gave for the same histories, and the index against scoring every item.
"""

from collections.abc import Sequence

import numpy as np

from retrieval.bundle import WARMUP_QUERIES
from retrieval.errors import BundleForeign
from retrieval.filters import NO_FILTER
from retrieval.index import ExactIndex
from retrieval.inputs import Request
from retrieval.queries import Answer, Query
from retrieval.recommenders import Served
from retrieval.sequences import EMPTY, FloatArray, History

TOLERANCE = 1e-3  # relative to the largest number compared; a graph is exported within 1e-4, on another processor
RECALL_TOLERANCE = 0.05  # below the manifest's target: it was measured on more histories than a bundle brings
LIST = 20
BATCH = 32  # requests that travel together


def check(served: Served) -> None:
    """All of the checks below.

    Raises:
        BundleForeign: one of them failed; the message says which, and by how much.
    """
    histories = warmup_histories(served)
    check_references(served)
    check_batches(served, histories)
    check_recall(served, histories)


def warmup_histories(served: Served) -> list[History]:
    """The sample histories of a bundle in its own rows, as far as the models read them; the first item where none."""
    catalog, window = served.catalog, served.bundle.manifest.window
    rows = [catalog.rows(history[-window:]) for history in served.bundle.warmup]
    return [History.of_rows(own[own > 0]) for own in rows if (own > 0).any()] or [History.of_rows([1])]


def check_references(served: Served) -> None:
    """The encoder against the embeddings that the trained model gave, where the bundle brings them.

    Raises:
        BundleForeign: they differ by more than `TOLERANCE`, or are not those of the warm-up histories.
    """
    references, encoder = served.bundle.warmup_queries, served.engine.encoder
    if references is None or encoder is None:
        return
    requests = [Request(History.of_rows(served.catalog.rows(history))) for history in served.bundle.warmup]
    if len(requests) != len(references):
        raise BundleForeign(
            f"{WARMUP_QUERIES} holds {len(references)} embeddings for {len(requests)} histories; export again"
        )
    for start in range(0, len(requests), BATCH):
        theirs = references[start : start + BATCH]
        ours = encoder.encode(requests[start : start + BATCH])
        if ours.shape != theirs.shape:
            raise BundleForeign(f"the encoder gives {ours.shape}, {WARMUP_QUERIES} has {theirs.shape}; export again")
        _within(ours, theirs, "the encoder differs from the model that was trained")


def check_batches(served: Served, histories: Sequence[History]) -> None:
    """Each request alone against the same one among others.

    Scores are compared place by place: what scores alike may change places where a batch rounds otherwise.

    Raises:
        BundleForeign: a list is longer in company, or scores differ by more than `TOLERANCE`.
    """
    eligible = served.filters.eligible(NO_FILTER)
    for start in range(0, len(histories), BATCH):
        queries = [Query(Request(one), LIST, eligible, EMPTY.rows) for one in histories[start : start + BATCH]]
        together = served.recommender.recommend(queries)
        for query, crowd in zip(queries, together, strict=True):
            alone: Answer = served.recommender.recommend([query])[0]
            if len(alone) != len(crowd) or alone.source != crowd.source:
                raise BundleForeign(
                    f"a request alone gets {len(alone)} items ({alone.source}), among others {len(crowd)} "
                    f"({crowd.source}); the graph does not treat them independently, export it again"
                )
            if len(alone):
                _within(crowd.scores, alone.scores, "scores depend on who else is in the batch")


def check_recall(served: Served, histories: Sequence[History]) -> None:
    """The index against scoring every item, on the embeddings of the warm-up histories.

    Raises:
        BundleForeign: it finds fewer than the manifest's target, less `RECALL_TOLERANCE`.
    """
    facts = served.bundle.manifest.index
    target, encoder = facts.get("target_recall"), served.engine.encoder
    if served.index.name == ExactIndex.name or encoder is None or not isinstance(target, int | float):
        return
    eligible = served.filters.eligible(NO_FILTER)
    k = np.full(len(histories), min(int(facts.get("k", LIST)), eligible.count))
    queries = np.concatenate(
        [encoder.encode([Request(h) for h in histories[at : at + BATCH]]) for at in range(0, len(histories), BATCH)]
    )
    nobody = [EMPTY.rows] * len(histories)
    found = served.index.search(queries, k, eligible, nobody)
    best = ExactIndex(served.index.vectors).search(queries, k, eligible, nobody)
    hits = [np.isin(rows, ours).mean() for (rows, _), (ours, _) in zip(best, found, strict=True)]
    recall = float(np.mean(hits))
    if recall < target - RECALL_TOLERANCE:
        raise BundleForeign(
            f"the index finds {recall:.3f} of the best {k[0]} items for {len(histories)} histories, the manifest "
            f"promises {target:g}; it was made for other vectors, export the bundle again"
        )


def _within(ours: FloatArray, theirs: FloatArray, what: str) -> None:
    scale = float(np.abs(theirs).max())
    worst = float(np.abs(ours - theirs).max()) / (scale or 1.0)
    if not worst <= TOLERANCE:
        raise BundleForeign(
            f"{what}: by {worst:.2e} of the largest number, {TOLERANCE:.0e} is allowed; export it again"
        )
