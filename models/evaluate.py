"""How good a scorer is, in words that say what was asked of it.

The catalog is ranked whole unless a number of negatives is given; figures of the two kinds cannot be compared, nor can
figures with seen items removed and with seen items kept, so every report carries its protocol in a sentence.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from models import metrics
from models.metrics import MISS
from models.splits import Cases
from retrieval import recommenders
from retrieval.bundle import Bundle
from retrieval.encoder import OnnxEncoder, SequenceEncoder
from retrieval.errors import InvalidInput
from retrieval.filters import NO_FILTER, Eligible
from retrieval.inputs import Request, Tables
from retrieval.queries import Query, Recommender
from retrieval.sequences import PAD_ROW, BoolArray, FloatArray, History, IntArray

BATCH = 64  # scores of ten thousand items then stay in a core's cache while they are ranked
Seen = Literal["filtered", "kept"]
OnProgress = Callable[[int, int], None]
Contexts = Mapping[str, tuple[Mapping[str, str], Mapping[str, float]]]  # by user id: words and numbers


class Scorer(Protocol):
    """Anything that can say how likely each item is to come next: a baseline, a torch model, a bundle.

    Attributes:
        name: how tables call it.
    """

    name: str

    def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:
        """float32, shape (B, N + 1): higher is likelier. Row PAD_ROW is not looked at; NaN is refused."""
        ...


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """Ready for `json.dumps`."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True, eq=False)
class Report:
    """What was measured, on what, and how.

    Attributes:
        name: of the scorer.
        protocol: one sentence: the split, what was ranked, and what became of seen items.
        n_cases, n_users, n_items: how many were asked, of whom, over how large a catalog.
        measures: `recall@10`, `ndcg@10`, `mrr@10`, ... with intervals over users.
        coverage: `coverage@10`, ...: share of the catalog in anybody's list; empty under sampled negatives.
        seen_targets: cases whose target the user had already; with seen items filtered they are misses.
        seconds: spent on scoring and ranking.
        ranks: int64, shape (C,). Kept so that two reports on the same cases can be compared in pairs.
        users: int64, shape (C,).
    """

    name: str
    protocol: str
    n_cases: int
    n_users: int
    n_items: int
    measures: Mapping[str, Measure]
    coverage: Mapping[str, float]
    seen_targets: int
    seconds: float
    ranks: IntArray = field(repr=False)
    users: IntArray = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the arrays, ready for `json.dumps`."""
        return {
            "name": self.name,
            "protocol": self.protocol,
            "cases": self.n_cases,
            "users": self.n_users,
            "items": self.n_items,
            "metrics": {name: measure.to_json() for name, measure in self.measures.items()},
            "coverage": dict(self.coverage),
            "seen_targets": self.seen_targets,
            "seconds": round(self.seconds, 2),
        }

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.protocol}",
            f"{self.n_cases:,} cases of {self.n_users:,} users, {self.n_items:,} items, {self.seconds:.1f} s",
        ]
        width = max(len(name) for name in [*self.measures, *self.coverage])
        lines += [f"  {name:<{width}}  {measure}" for name, measure in self.measures.items()]
        lines += [f"  {name:<{width}}  {value:.4f}" for name, value in self.coverage.items()]
        if self.seen_targets:
            lines.append(f"  {self.seen_targets:,} targets had been seen by their user before")
        return "\n".join(lines)


def evaluate(
    scorer: Scorer,
    cases: Cases,
    *,
    n_items: int,
    ks: Sequence[int] = (10, 20),
    seen: Seen = "filtered",
    negatives: int | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Report:
    """The report of a scorer on cases.

    Every catalog row is ranked, available or not: what is in stock today says nothing about what a model learnt.

    Args:
        scorer: what is judged.
        cases: from a split.
        n_items: catalog size N.
        ks: list lengths.
        seen: whether the items of a case's history are taken out of the ranking. Without effect on sampled negatives.
        negatives: None ranks the whole catalog. A number ranks the target among that many items drawn uniformly, with
            replacement, outside the user's training events, as papers before 2020 did.
        seed: of the drawn negatives and of the intervals.
        on_progress: called with cases done and cases in all.

    Raises:
        InvalidInput: no case, a k below 1, a score that is NaN, or a user without a single negative to draw.

    Source:
        Krichene and Rendle (2020), "On Sampled Metrics for Item Recommendation", on why the two kinds disagree.
    """
    _check(cases, ks)
    began = time.perf_counter()
    rng = np.random.default_rng(seed)
    found = np.empty(len(cases), dtype=np.int64)
    shown = {k: np.zeros(n_items + 1, dtype=np.bool_) for k in ks}
    already = 0
    # Cases of like length share a batch, so that an encoder pads little.
    order = np.argsort(cases.ends - cases.starts, kind="stable")
    for start in range(0, len(cases), BATCH):
        part = order[start : start + BATCH]
        histories = [cases.history(case) for case in part.tolist()]
        targets = cases.targets[part]
        # A copy, since a scorer may hand out what it keeps.
        scores = np.array(scorer.scores(histories, cases.times[part].tolist()), dtype=np.float32)
        if scores.shape != (len(part), n_items + 1):
            raise InvalidInput(f"{scorer.name} gave scores of {scores.shape}, {(len(part), n_items + 1)} expected")
        had = _marked([h.rows for h in histories], n_items)
        missed = had[np.arange(len(targets)), targets]
        already += int(missed.sum())
        if negatives is not None:
            known = cases.train_ends[part] - cases.starts[part]
            trained = _marked([h.rows[:n] for h, n in zip(histories, known.tolist(), strict=True)], n_items)
            places = _ranks_among(scores, targets, _draw(trained, negatives, rng))
        else:
            if seen == "filtered":
                scores[had] = -np.inf
            places = metrics.ranks(scores, targets)
            if seen == "filtered":
                places[missed] = MISS
            best = metrics.top(scores, max(ks))
            for k in ks:
                shown[k][best[:, :k].ravel()] = True
        found[part] = places
        if on_progress is not None:
            on_progress(start + len(part), len(cases))
    what = f"{n_items:,} items ranked whole, seen items {seen}"
    if negatives is not None:
        what = f"target among {negatives} uniform negatives outside the user's training events, seed {seed}"
    return report(
        scorer.name,
        found,
        cases,
        protocol=f"{cases.words}; {what}",
        n_items=n_items,
        ks=ks,
        coverage={} if negatives is not None else {f"coverage@{k}": metrics.coverage(shown[k]) for k in ks},
        seen_targets=already,
        seconds=time.perf_counter() - began,
        seed=seed,
    )


def evaluate_served(
    bundle: Bundle,
    cases: Cases,
    *,
    ks: Sequence[int] = (10, 20),
    seen: Seen = "filtered",
    seed: int = 0,
    threads: int = 1,
    contexts: Contexts | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """The report of a bundle through the recommender that serves: index, beams, availability and fallbacks included.

    Args:
        bundle: what is judged.
        cases, ks, seen, seed, on_progress: as in `evaluate`.
        threads: cores that a batch may use.
        contexts: what requests say of each user, for a ranker.
    """
    served = recommenders.load(bundle, threads=threads)
    how = f"{bundle.manifest.index.get('kind', 'exact')} index"
    if bundle.manifest.kind == "generative":
        how = f"{bundle.manifest.generation['beams']} beams"
    if served.ranker is not None:
        how += f", {served.ranker.settings.candidates} candidates ranked"
    return evaluate_lists(
        served.recommender,
        cases,
        name=bundle.manifest.model,
        how=f"as served by {bundle.name} ({how})",
        eligible=served.filters.eligible(NO_FILTER),
        ks=ks,
        seen=seen,
        seed=seed,
        contexts=contexts,
        on_progress=on_progress,
    )


def evaluate_lists(
    recommender: Recommender,
    cases: Cases,
    *,
    name: str,
    how: str,
    eligible: Eligible,
    ks: Sequence[int] = (10, 20),
    seen: Seen = "filtered",
    seed: int = 0,
    contexts: Contexts | None = None,
    on_progress: OnProgress | None = None,
) -> Report:
    """The report of a recommender by the lists that it gives.

    A target that is not in the list of the longest k is a miss, whatever kept it out.

    Args:
        recommender: what is judged.
        cases, ks, seen, seed, on_progress: as in `evaluate`.
        name: how tables call it.
        how: where the lists come from, for the protocol.
        eligible: the rows that may be returned.
        contexts: what requests say of each user, by user id: words and numbers.
    """
    _check(cases, ks)
    known = contexts or {}
    nothing = np.zeros(0, np.int64)
    n_items, k = len(eligible.mask) - 1, max(ks)
    began = time.perf_counter()
    found = np.full(len(cases), MISS, dtype=np.int64)
    shown = {length: np.zeros(n_items + 1, dtype=np.bool_) for length in ks}
    already = 0
    for start in range(0, len(cases), BATCH):
        histories = cases.histories(start, start + BATCH)
        queries = []
        for case, history in enumerate(histories, start=start):
            words, numbers = known.get(cases.source.user_ids[cases.users[case]], ({}, {}))
            request = Request(history, float(cases.times[case]), numbers, words)
            queries.append(Query(request, k, eligible, history.rows if seen == "filtered" else nothing))
        for case, (query, answer) in enumerate(zip(queries, recommender.recommend(queries), strict=True), start=start):
            already += int(cases.targets[case] in query.request.history.rows)
            place = np.flatnonzero(answer.rows == cases.targets[case])
            if len(place):
                found[case] = place[0] + 1
            for length in ks:
                shown[length][answer.rows[:length]] = True
        if on_progress is not None:
            on_progress(start + len(histories), len(cases))
    return report(
        name,
        found,
        cases,
        protocol=f"{cases.words}; lists of {k} {how}, seen items {seen}",
        n_items=n_items,
        ks=ks,
        coverage={f"coverage@{length}": metrics.coverage(shown[length]) for length in ks},
        seen_targets=already,
        seconds=time.perf_counter() - began,
        seed=seed,
    )


def report(
    name: str,
    ranks: IntArray,
    cases: Cases,
    *,
    protocol: str,
    n_items: int,
    ks: Sequence[int],
    coverage: Mapping[str, float],
    seen_targets: int,
    seconds: float,
    seed: int,
) -> Report:
    """The report that these ranks make."""
    values = metrics.per_case(ranks, ks)
    table = np.stack(list(values.values()), axis=1)
    ends = metrics.intervals(table, cases.users, seed=seed)
    measures = {
        name: Measure(float(mean), float(low), float(high))
        for name, mean, (low, high) in zip(values, table.mean(axis=0), ends, strict=True)
    }
    users = len(np.unique(cases.users))
    if cases.source.dropped:
        protocol += f"; {cases.source.dropped:,} events of items outside the catalog left out"
    return Report(
        name, protocol, len(cases), users, n_items, measures, coverage, seen_targets, seconds, ranks, cases.users
    )


class EncoderScorer:
    """A serving encoder and its item vectors as a scorer: the graph of a bundle, judged without an index.

    Args:
        encoder: what makes query embeddings.
        vectors: float32, shape (N + 1, D).
        name: how tables call it.
    """

    def __init__(self, encoder: SequenceEncoder, vectors: FloatArray, *, name: str) -> None:
        self._encoder, self._vectors, self.name = encoder, vectors, name

    @classmethod
    def of(cls, bundle: Bundle, *, threads: int = 1) -> "EncoderScorer":
        """The encoder graph of a bundle."""
        graph = bundle.manifest.graphs["encoder"]
        encoder = OnnxEncoder(
            bundle.path / graph.file,
            names=graph.inputs,
            length=bundle.manifest.window,
            tables=Tables({recommenders.ITEM_TABLE: bundle.item_vectors}),
            threads=threads,
        )
        return cls(encoder, bundle.item_vectors, name=bundle.manifest.model)

    def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:
        """See `Scorer.scores`; zero for histories without events, of several queries the best counts."""
        out = np.zeros((len(histories), len(self._vectors)), dtype=np.float32)
        asked = [b for b, history in enumerate(histories) if len(history)]
        if asked:
            query = self._encoder.encode([Request(histories[b], times[b]) for b in asked])
            found = query @ self._vectors.T
            out[asked] = found if query.ndim == 2 else found.max(axis=1)
        return out


def _check(cases: Cases, ks: Sequence[int]) -> None:
    if not len(cases):
        raise InvalidInput("there is no case to evaluate; the split left nobody to ask about")
    if not ks or min(ks) < 1:
        raise InvalidInput(f"list lengths {list(ks)} must be at least one number of 1 or more")


def _marked(rows: Sequence[IntArray], n_items: int) -> BoolArray:
    """bool, shape (B, N + 1): which items each line names."""
    out = np.zeros((len(rows), n_items + 1), dtype=np.bool_)
    lines = np.repeat(np.arange(len(rows)), [len(r) for r in rows])
    out[lines, np.concatenate(rows)] = True
    return out


def _draw(excluded: BoolArray, n: int, rng: np.random.Generator) -> IntArray:
    """int64, shape (B, n): rows drawn uniformly, with replacement, outside the excluded ones and PAD_ROW."""
    excluded[:, PAD_ROW] = True
    if excluded.all(axis=1).any():
        raise InvalidInput("a user has every item of the catalog in training, so no negative can be drawn; rank whole")
    drawn = rng.integers(PAD_ROW + 1, excluded.shape[1], (len(excluded), n))
    lines = np.arange(len(excluded))[:, None]
    while (bad := excluded[lines, drawn]).any():
        drawn[bad] = rng.integers(PAD_ROW + 1, excluded.shape[1], int(bad.sum()))
    return drawn


def _ranks_among(scores: FloatArray, targets: IntArray, drawn: IntArray) -> IntArray:
    """int64, shape (B,): the target's place among the drawn rows, ties by row; drawing the target costs it nothing."""
    lines = np.arange(len(targets))[:, None]
    others, own = scores[lines, drawn], scores[lines, targets[:, None]]
    if np.isnan(others).any() or np.isnan(own).any():
        raise InvalidInput("a score is NaN, so nothing can be ranked; the training run diverged or an input was NaN")
    better = (others > own) | ((others == own) & (drawn < targets[:, None]))
    return np.asarray(1 + better.sum(axis=1), dtype=np.int64)
