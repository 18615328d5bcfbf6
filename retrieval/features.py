"""Features: what a ranker reads of a request and its candidates, declared once and computed by one function.

A `FeatureSet` stands in the manifest and says what there is: categories as codes, numbers with their transforms, and
the events of the history by behaviour. `FeatureTables` is that declaration over one edition of a catalog. `build` makes
the arrays. Training and serving call the same `build` with the same arguments, and no number in it depends on what else
is in the batch, so they cannot drift apart.

Six arrays, of which a ranker's graph takes those that it names; M, F and S count columns:

    candidate_codes    int64    (B, C, Mc)    0 absent, then slots of hashed words, then words of the vocabulary
    candidate_numbers  float32  (B, C, Fc)    NaN absent
    request_codes      int64    (B, Mr)
    request_numbers    float32  (B, Fr)
    event_codes        int64    (B, L, S)     columns of `candidate_codes`, of the items of the history
    event_behaviours   int64    (B, L)        which behaviour an event stands for, from 1; 0 is padding

C is that of the longest list of the batch and L that of the longest history: lists are padded behind, events before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.feature_set import ALL, REACH, Category, FeatureSet, Number, spelt
from retrieval.feature_sources import DECAY, FOLLOWED, PAIRS, RECENT, REQUESTS, Batch
from retrieval.feature_tables import FeatureTables
from retrieval.inputs import Request
from retrieval.sequences import PAD_ROW, FloatArray, IntArray, window

__all__ = [
    "ALL",
    "ARRAYS",
    "DECAY",
    "FOLLOWED",
    "REACH",
    "RECENT",
    "Candidates",
    "Category",
    "FeatureSet",
    "FeatureTables",
    "Number",
    "build",
    "spelt",
]

ARRAYS = (
    "candidate_codes",
    "candidate_numbers",
    "request_codes",
    "request_numbers",
    "event_codes",
    "event_behaviours",
)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What is to be ranked for one request.

    Attributes:
        request: for whom.
        rows: int64, shape (n,), distinct, best first. PAD_ROW stands for an unknown item.
        scores: float32, shape (n,), of the retriever; NaN or -inf where it has none.
    """

    request: Request
    rows: IntArray
    scores: FloatArray


def build(
    tables: FeatureTables, candidates: Sequence[Candidates], names: Sequence[str] = ARRAYS
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a batch; see the module.

    Args:
        tables: of the catalog that the rows are of.
        candidates: B lists; C is the length of the longest, what is missing is PAD_ROW with absent numbers.
        names: the arrays that are wanted.
    """
    requests = [_seen(one.request) for one in candidates]
    lengths = [len(one.rows) for one in candidates]
    rows = np.full((len(candidates), max(lengths, default=0)), PAD_ROW, dtype=np.int64)
    for own, one in zip(rows, candidates, strict=True):
        own[: len(one.rows)] = one.rows
    out: dict[str, npt.NDArray[Any]] = {}
    if "candidate_codes" in names:
        out["candidate_codes"] = tables.codes[rows]
    if "candidate_numbers" in names:
        scores = np.full(rows.shape, np.nan)
        for own, one in zip(scores, candidates, strict=True):
            own[: len(one.scores)] = one.scores
        recent = window([one.history.rows for one in requests], length=RECENT, fill=PAD_ROW, dtype=np.int64)
        batch = Batch(tables.features, tables.lookups, requests, lengths, rows, scores, recent)
        out["candidate_numbers"] = _candidate_numbers(tables, batch)
    if "request_codes" in names:
        out["request_codes"] = _request_codes(tables, requests)
    if "request_numbers" in names:
        out["request_numbers"] = _request_numbers(tables.features, requests)
    if "event_codes" in names or "event_behaviours" in names:
        events, behaviours = _events(tables.features, requests)
        made = {"event_codes": tables.event_codes[events], "event_behaviours": behaviours}
        out |= {name: array for name, array in made.items() if name in names}
    return out


def _seen(request: Request) -> Request:
    """The request with no more of its history than a store remembers too."""
    return request if len(request.history) <= REACH else replace(request, history=request.history.newest(REACH))


def _candidate_numbers(tables: FeatureTables, batch: Batch) -> FloatArray:
    """float32, shape (B, C, F)."""
    out = np.empty((*batch.rows.shape, len(tables.features.candidate_numbers)), dtype=np.float32)
    out[:, :, tables.number_columns] = tables.numbers[batch.rows]
    for (kind, column), wanted in tables.pairs.items():
        made = PAIRS[kind].compute(batch, column)
        for f, part, number in wanted:
            out[:, :, f] = number.of(made[part])
    out[batch.rows == PAD_ROW] = np.nan
    return out


def _request_codes(tables: FeatureTables, requests: Sequence[Request]) -> IntArray:
    """int64, shape (B, M)."""
    fields = [
        (category, category.source.partition(":")[2], codes)
        for category, codes in zip(tables.features.request_codes, tables.context, strict=True)
    ]
    out = np.zeros((len(requests), len(fields)), dtype=np.int64)
    for own, request in zip(out, requests, strict=True):
        for at, (category, name, codes) in enumerate(fields):
            word = request.words.get(name)
            if word is None and name in request.context:
                word = f"{request.context[name]:.15g}"  # 25 and "25" are the same word
            if word is not None:
                own[at] = codes.get(word) or category.hashed(word)
    return out


def _request_numbers(features: FeatureSet, requests: Sequence[Request]) -> FloatArray:
    """float32, shape (B, F)."""
    out = np.empty((len(requests), len(features.request_numbers)), dtype=np.float32)
    for f, number in enumerate(features.request_numbers):
        kind, _, argument = number.source.partition(":")
        out[:, f] = number.of([REQUESTS[kind](request, features, argument) for request in requests])
    return out


def _events(features: FeatureSet, requests: Sequence[Request]) -> tuple[IntArray, IntArray]:
    """int64, shapes (B, L): rows and behaviours of the newest events of each behaviour; L is at least 1."""
    rows: list[IntArray] = []
    kinds: list[IntArray] = []
    for request in requests:
        history = request.history
        parts = []
        for behaviour, length in zip(features.behaviours, features.windows, strict=True):
            task = features.task(behaviour)
            own = history.rows if task is None else history.rows[task.holds(history)]
            parts.append(own[-length:])
        rows.append(np.concatenate(parts))
        kinds.append(np.repeat(np.arange(1, len(parts) + 1), [len(part) for part in parts]))
    longest = max(1, max((len(own) for own in rows), default=1))
    return (
        window(rows, length=longest, fill=PAD_ROW, dtype=np.int64),
        window(kinds, length=longest, fill=0, dtype=np.int64),
    )
