"""What a beam's width buys: quality, proofs, agreement with scoring every item, and time, on held-out histories."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from models import metrics
from models.evaluate import BATCH, Measure, OnProgress
from models.metrics import MISS
from models.splits import Cases
from retrieval.bundle import Bundle
from retrieval.errors import InvalidInput
from retrieval.filters import NO_FILTER
from retrieval.inputs import Request
from retrieval.queries import Answer, Query, Retriever
from retrieval.recommenders import load
from retrieval.sequences import IntArray

ALONE = 4  # histories of a wave when every item is scored: each holds a prefix per node of the trie


@dataclass(frozen=True, eq=False)
class Width:
    """One width.

    Attributes:
        beams: M; the number of coded items where everything is scored.
        cases: how many were asked.
        recall, ndcg: at K, with seen items left out.
        certified: share of lists that the search itself proved to be exact.
        identical: share of lists that are those of scoring every item, of the cases for which that was done.
        found: mean share of those lists' items that the beam found.
        milliseconds: per history, in batches.
    """

    beams: int
    cases: int
    recall: Measure
    ndcg: Measure
    certified: float
    identical: float
    found: float
    milliseconds: float

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {
            "beams": self.beams,
            "cases": self.cases,
            "recall": self.recall.to_json(),
            "ndcg": self.ndcg.to_json(),
            "certified": self.certified,
            "identical": self.identical,
            "found": self.found,
            "milliseconds": round(self.milliseconds, 3),
        }


@dataclass(frozen=True, eq=False)
class Study:
    """Widths beside each other, the last one being all items.

    Attributes:
        k: length of the lists.
        lines: one per width.
    """

    k: int
    lines: Sequence[Width]

    def __str__(self) -> str:
        """A Markdown table."""
        head = ["beams", "cases", f"recall@{self.k}", f"ndcg@{self.k}", "certified", "identical", "found", "ms"]
        body = [
            [
                f"{line.beams:,}",
                f"{line.cases:,}",
                str(line.recall),
                str(line.ndcg),
                f"{line.certified:.3f}",
                f"{line.identical:.3f}",
                f"{line.found:.3f}",
                f"{line.milliseconds:.2f}",
            ]
            for line in self.lines
        ]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *body])


def study(
    bundle: Bundle,
    cases: Cases,
    *,
    widths: Sequence[int],
    k: int = 10,
    exhaustive: int = 200,
    seed: int = 0,
    threads: int = 1,
    on_progress: OnProgress | None = None,
) -> Study:
    """The lists of a generative bundle at several widths, and, for some cases, of scoring every item.

    Args:
        bundle: of kind `generative`.
        cases: what is asked.
        widths: of the beam; a width below `k` searches as wide as `k`.
        k: length of the lists.
        exhaustive: cases, drawn with `seed`, for which all items are scored.
        threads: cores that a batch may use.

    Raises:
        InvalidInput: the bundle does not generate, or there is no case.
    """
    served = load(bundle, threads=threads)
    generator = served.generative
    if generator is None or served.codes is None:
        raise InvalidInput(f"bundle {bundle.name} holds no generator, so it has no beams; evaluate it instead")
    if not len(cases):
        raise InvalidInput("there is no case to evaluate; the split left nobody to ask about")
    everything = int(served.codes.coded.sum())
    sample = cases.sample(exhaustive, seed=seed)
    eligible = served.filters.eligible(NO_FILTER)
    steps = len(sample) + len(cases) * len(widths)
    done = 0

    def asked(part: Cases, beams: int, batch: int) -> tuple[list[Answer], float]:
        nonlocal done
        answers: list[Answer] = []
        began = time.perf_counter()
        for start in range(0, len(part), batch):
            queries = [
                Query(Request(history), k, eligible, history.rows, beams=beams)
                for history in part.histories(start, start + batch)
            ]
            answers += _answered(generator, queries)
            done += len(queries)
            if on_progress is not None:
                on_progress(done, steps)
        return answers, (time.perf_counter() - began) / len(part) * 1000

    truth, slow = asked(sample, everything, ALONE)
    place = {int(key): at for at, key in enumerate(sample.ends)}
    lines = []
    for beams in widths:
        answers, fast = asked(cases, beams, BATCH)
        pairs = [(answers[c].rows, truth[place[end]].rows) for c, end in enumerate(cases.ends.tolist()) if end in place]
        lines.append(_line(beams, cases, answers, pairs, k, fast, seed))
    lines.append(_line(everything, sample, truth, [(t.rows, t.rows) for t in truth], k, slow, seed))
    return Study(k, lines)


def _answered(generator: Retriever, queries: Sequence[Query]) -> list[Answer]:
    """The generator's lists; nothing for a history that it cannot read."""
    readable = [query for query in queries if generator.reads(query.request)]
    found = iter(generator.recommend(readable))
    nothing = Answer.of(np.zeros(0, np.int64), np.zeros(0, np.float32), "generated")
    return [next(found) if generator.reads(query.request) else nothing for query in queries]


def _line(
    beams: int,
    cases: Cases,
    answers: Sequence[Answer],
    pairs: Sequence[tuple[IntArray, IntArray]],
    k: int,
    milliseconds: float,
    seed: int,
) -> Width:
    ranks = np.full(len(cases), MISS, dtype=np.int64)
    for case, answer in enumerate(answers):
        at = np.flatnonzero(answer.rows == cases.targets[case])
        if len(at):
            ranks[case] = at[0] + 1
    values = metrics.per_case(ranks, (k,))
    chosen = [f"recall@{k}", f"ndcg@{k}"]
    ends = metrics.intervals(np.stack([values[name] for name in chosen], axis=1), cases.users, seed=seed)
    recall, ndcg = (
        Measure(float(values[name].mean()), float(low), float(high))
        for name, (low, high) in zip(chosen, ends, strict=True)
    )
    return Width(
        beams=beams,
        cases=len(cases),
        recall=recall,
        ndcg=ndcg,
        certified=float(np.mean([bool(answer.exact) for answer in answers])),
        identical=float(np.mean([np.array_equal(a, b) for a, b in pairs])),
        found=float(np.mean([len(np.intersect1d(a, b)) / max(len(b), 1) for a, b in pairs])),
        milliseconds=milliseconds,
    )
