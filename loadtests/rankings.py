"""What the ranking stage costs: its parts, against the number of candidates, and above the floor; for several rankers.

Candidates are found once, by the bundle's own first stage, for requests made up from its warm-up histories and its
popular items. Everything behind them is timed on one core, all rankers in turns, round by round, the next batch of the
requests every time. All milliseconds are per request:

    features  the arrays that the graph reads, `retrieval.features.build`
    graph     onnxruntime
    order     calibration, goals and the new order: the ranking stage with a graph that has spoken before
    rank      the ranking stage as it is served
    rules     caps, promotion and diversity, for a list of k
    whole     rank and rules
    floor     no ranker, no rules: the first k of the candidates as they were found

Parts are laps of a walk: features, graph, order and rules; then rank and rules. One part called over and over would
find its code and numbers in the caches, and so it was a quarter faster than the same part among the others. `split` is
the share of rank that features, graph and order make up: about all of it, or the split is not to be believed.

No list is longer than its candidates. Notes have the lines through rank against the number of candidates:
microseconds for each one more, milliseconds however many there are, and r2, the share of the variance that the line
explains. Every round has lines of its own.

Where others use the core too, `--clock cpu` counts what this process computes and not how long it waits for its turn.
"""

import argparse
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loadtests import objectives, report
from loadtests.generators import running_on
from loadtests.report import Report, spread
from loadtests.target import LoadError
from retrieval.bundle import RANKER, Bundle
from retrieval.catalog import Catalog, Tags, Words
from retrieval.encoder import open_graph
from retrieval.errors import SequiturError
from retrieval.features import Candidates, FeatureSet, build
from retrieval.filters import Filter
from retrieval.inputs import Request
from retrieval.queries import NO_STAGES, Answer, Query, Stage
from retrieval.ranking import Ranker, Ranking
from retrieval.recommenders import load
from retrieval.rules import Cap, Promotion, Rules
from retrieval.sequences import EMPTY, PAD_ROW, FloatArray, History
from retrieval.two_stage import TwoStage

JUDGED = 200  # candidates
ALONE_MS, BATCHED_MS = 3.0, 1.5  # objectives of the ranking stage at `JUDGED` candidates
SIZES = (10, 25, 50, 100, JUDGED, 400)
BATCHES = (1, 2, 8, 16, 64)
LINES = (1, 16)  # batches that are measured at every size
REQUESTS = max(BATCHES)
CAPPED, PROMOTED, SHARE, DIVERSITY = 4, 50, 0.2, 0.3  # at most k / 4 of a word, 50 items, which get a fifth of places
HOUR_S = 3_600
PARTS = ("features", "graph", "order", "rank", "rules", "whole", "floor")
SPLIT = PARTS[:3]
RANGED = ("rank", "whole", "floor")  # with their extremes in the table; the document has those of all
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Figures = dict[str, dict[str, Any]]
Walk = tuple[tuple[str, Callable[[], Any]], ...]  # parts, one after the other


class Found:
    """A first stage that has found everything before."""

    name = "found"

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = answers

    def reads(self, _request: Request, /) -> bool:
        """Anything."""
        return True

    def recommend(self, _queries: Sequence[Query], _stage: Stage = NO_STAGES) -> list[Answer]:
        """What was found, whoever asks."""
        return list(self._answers)


class Overheard:
    """A ranker that keeps what it was asked."""

    def __init__(self, ranker: Ranker) -> None:
        self._ranker, self.settings = ranker, ranker.settings
        self.asked: list[Candidates] = []

    def rank(self, candidates: Sequence[Candidates], /) -> list[FloatArray]:
        """What the ranker says."""
        self.asked = list(candidates)
        return self._ranker.rank(candidates)


class Spoken:
    """A ranker whose graph has spoken before; calibration is left.

    Args:
        settings: those of the ranker.
        said: float32, shape (B, C, T), for lists that are all as long.
    """

    def __init__(self, settings: Ranking, said: FloatArray) -> None:
        self.settings, self._said = settings, said

    def rank(self, candidates: Sequence[Candidates], /) -> list[FloatArray]:
        """The same, whoever asks."""
        return [self.settings.calibrated(own) for own, _ in zip(self._said, candidates, strict=True)]


def histories(
    bundle: Bundle, features: FeatureSet, rng: np.random.Generator, *, length: int, last: float
) -> list[History]:
    """`REQUESTS` histories of `length` events until `last`, no item twice: those of the warm-up are the newest part of
    the first ones, the rest is drawn by popularity. Types are of the vocabulary, values around what tasks ask for."""
    catalog, names = bundle.catalog, len(bundle.manifest.event_types)
    weights = catalog.popularity[1:] + 1  # new items count none, and somebody has to be the first
    asked_for = [task.value for task in features.tasks if task.op is not None]
    out = []
    for newest in itertools.islice(itertools.chain(bundle.warmup, itertools.repeat(())), REQUESTS):
        own = catalog.rows(dict.fromkeys(newest))
        drawn = 1 + rng.choice(len(catalog), length, replace=False, p=weights / weights.sum())
        rows = np.concatenate([drawn[~np.isin(drawn, own)], own[own != PAD_ROW]])[-length:]
        types = rng.integers(1, names + 1, len(rows)) if names else np.zeros(len(rows), np.int64)
        values = np.full(len(rows), np.nan)
        if asked_for:
            values = rng.choice(asked_for, len(rows)) + rng.integers(-1, 2, len(rows))
        times = last - HOUR_S * np.arange(len(rows), dtype=np.float64)[::-1]
        out.append(History(rows, types, values.astype(np.float32), times))
    return out


def requests(bundle: Bundle, features: FeatureSet, *, length: int) -> list[Request]:
    """`REQUESTS` requests, an hour apart, each with words and numbers for every context that the ranker reads."""
    rng, last = np.random.default_rng(0), float(bundle.manifest.data.get("last", 0))
    contexts = [(name, one) for one in features.request_codes if (name := _context(one.source))]
    numbers = [(name, one) for one in features.request_numbers if (name := _context(one.source))]
    return [
        Request(
            history,
            time=last + HOUR_S * (at + 1),
            context={name: number.shift + number.scale * rng.standard_normal() for name, number in numbers},
            words={name: str(rng.choice(one.words or ("unlisted",))) for name, one in contexts},
        )
        for at, history in enumerate(histories(bundle, features, rng, length=length, last=last))
    ]


def _context(source: str) -> str:
    """What a caller calls it; empty where it is no context."""
    kind, _, name = source.partition(":")
    return name if kind == "context" else ""


def placement(catalog: Catalog, k: int) -> Rules:
    """Rules as placements have them, such that lists can keep to them.

    Capped is the column with the fewest words, for titles are words too; of these those that at most half of the items
    carry. There may be none.
    """
    words: dict[str, tuple[str, ...]] = {}
    for name, column in catalog.columns.items():
        if isinstance(column, Words | Tags):
            counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.vocabulary))
            rare = counts <= len(catalog) / 2
            words[name] = tuple(word for word, is_rare in zip(column.vocabulary, rare, strict=True) if is_rare)
    capped = min((name for name in words if words[name]), key=lambda name: len(words[name]), default=None)
    promoted = np.random.default_rng(0).permutation(np.flatnonzero(catalog.available))[:PROMOTED]
    return Rules(
        caps=() if capped is None else (Cap(max(1, k // CAPPED), capped, words[capped]),),
        promotion=Promotion(SHARE, tuple(catalog.ids[row] for row in promoted.tolist())),
        diversity=DIVERSITY,
    )


class Subject:
    """One bundle, and the walks that are timed on it.

    Args:
        bundle: with a ranker.
        k: items of a list.
        history: events of a request, at most half of the catalog.

    Attributes:
        reach: the most candidates that every request has.
        at: candidates at which all batches are measured, `JUDGED` where there are as many.

    Raises:
        LoadError: no ranker, or nothing to rank.
    """

    def __init__(self, bundle: Bundle, *, k: int, history: int) -> None:
        served = load(bundle)
        ranker = served.engine.ranker
        if ranker is None:
            raise LoadError(
                f"{bundle.name} has no ranker, so there is no ranking stage to measure; add one with `python -m models "
                f"train --model RANKER --retriever {bundle.path.name}` and give the bundle that this writes"
            )
        self.bundle, self.k, graph = bundle, k, bundle.manifest.graphs[RANKER]
        self._ranker, self._arranger, self._inputs = ranker, served.recommender.arranger, graph.inputs
        self._session = open_graph(bundle.path / graph.file, threads=1, device="cpu")
        self.features = ranker.settings.features
        everything = served.filters.eligible(Filter())
        asked = requests(bundle, self.features, length=min(history, len(bundle.catalog) // 2))
        self._queries = [
            Query(one, max(SIZES), everything, one.history.rows if bundle.manifest.exclude_seen else EMPTY.rows)
            for one in asked
        ]
        self._found = served.recommender.first.recommend(self._queries)
        self.reach = min(len(answer) for answer in self._found)
        if not self.reach:
            raise LoadError(f"{bundle.name} finds nothing for one of the requests; are its items available?")
        self.at = min(JUDGED, self.reach)
        self.rules = placement(bundle.catalog, k)

    @property
    def sizes(self) -> list[int]:
        """Numbers of candidates, as far as the catalog has."""
        return sorted({*(size for size in SIZES if size <= self.reach), self.at})

    @property
    def cases(self) -> list[tuple[int, int]]:
        """Batches and numbers of candidates."""
        return [(b, self.at) for b in BATCHES] + [(b, c) for b in LINES for c in self.sizes if c != self.at]

    def walks(self, b: int, c: int) -> dict[str, list[Walk]]:
        """By name, for each b of the requests the same walk.

        Raises:
            LoadError: the stage ranks not all of them, or its parts do not make the same lists as the whole.
        """
        batches = [self._batch(slice(start, start + b), c) for start in range(0, REQUESTS, b)]
        return {name: [batch[name] for batch in batches] for name in batches[0]}

    def _batch(self, own: slice, c: int) -> dict[str, Walk]:
        queries = [replace(query, k=min(self.k, c)) for query in self._queries[own]]
        all_of_them = [replace(query, k=c) for query in queries]  # a ranker leaves alone what nobody asked for
        found = [answer.taken(np.arange(c)) for answer in self._found[own]]
        ruled = [replace(query, rules=self.rules) for query in queries]
        first, overheard = Found(found), Overheard(self._ranker)
        ranked = TwoStage(first, overheard, self._arranger).order(all_of_them, found)
        for answer in ranked:
            if answer.ranked != c:
                why = answer.ranker_error or "the first stage found nothing but what is popular"
                raise LoadError(
                    f"{self.bundle.name} ranks {answer.ranked} of {c} candidates, so nothing is timed: {why}"
                )
        tables = self._ranker.tables
        feeds = build(tables, overheard.asked, self._inputs)
        said = self._session.run(None, feeds)[0]
        whole = TwoStage(first, self._ranker, self._arranger)
        spoken = TwoStage(first, Spoken(self._ranker.settings, said), self._arranger)
        if any(
            a.rows.tolist() != b.rows.tolist() for a, b in zip(ranked, spoken.order(all_of_them, found), strict=True)
        ):
            raise LoadError(f"the parts of {self.bundle.name} make other lists than the whole; nothing was measured")
        rules = partial(whole.arrange, ruled, ranked)
        return {
            "split": (
                ("features", partial(build, tables, overheard.asked, self._inputs)),
                ("graph", partial(self._session.run, None, feeds)),
                ("order", partial(spoken.order, all_of_them, found)),
                ("again", rules),
            ),
            "whole": (("rank", partial(whole.order, all_of_them, found)), ("rules", rules)),
            "floor": (("cut", partial(TwoStage(first, None, self._arranger).recommend, queries)),),
        }


def laps(name: str, walk: Walk, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of each part, and of the walk by its name."""
    taken = {}
    begun = started = clock()
    for part, step in walk:
        step()
        ended = clock()
        taken[part], started = ended - started, ended
    return {**taken, name: started - begun}


def in_turns(
    walks: Mapping[tuple[str, str], Sequence[Walk]], *, rounds: int, seconds: float, clock: Callable[[], float]
) -> dict[tuple[str, str], list[float]]:
    """Median milliseconds, round by round, all walks in turn within each.

    Args:
        walks: by case and name; of each the next one every time.
        rounds: how many.
        seconds: about how long one has its turn; three times at least.
        clock: seconds.

    Returns:
        by case and part; a walk is a part too.
    """
    turns: dict[tuple[str, str], Iterator[Walk]] = {}
    counts: dict[tuple[str, str], int] = {}
    for (one, name), every in walks.items():
        for walk in every:  # each has been warm before it counts
            once = laps(name, walk, clock)[name]
        turns[one, name], counts[one, name] = itertools.cycle(every), max(3, int(seconds / max(once, 1e-6)))
    medians: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for (one, name), count in counts.items():
            taken = [laps(name, next(turns[one, name]), clock) for _ in range(count)]
            for part in taken[0]:
                median = float(np.median([own[part] for own in taken])) * 1000
                medians.setdefault((one, part), []).append(median)
    return medians


def case(b: int, c: int) -> str:
    """What a row is called."""
    return f"B={b}, C={c}"


def line(sizes: Sequence[int], ms: Sequence[float]) -> dict[str, float]:
    """Least squares: microseconds for each candidate more, milliseconds without any, and how linear it is; NaN where
    there are too few sizes to say."""
    if len(sizes) < 2:
        return {"us_per_candidate": np.nan, "fixed_ms": np.nan, "r2": np.nan}
    slope, fixed = np.polyfit(sizes, ms, 1)
    missed = np.square(np.asarray(ms) - (slope * np.asarray(sizes) + fixed)).sum()
    all_ = np.square(np.asarray(ms) - np.mean(ms)).sum()
    r2 = 1 - missed / all_ if len(sizes) > 2 and all_ > 0 else np.nan
    return {"us_per_candidate": 1000 * float(slope), "fixed_ms": float(fixed), "r2": float(r2)}


def measure(subjects: dict[str, Subject], *, rounds: int, seconds: float, clock: str = "wall") -> Figures:
    """By subject and case, the milliseconds per request of every part; and the lines through them."""
    walks: dict[tuple[str, str], list[Walk]] = {}
    # What is to be compared has its turns one after the other.
    for b, c in dict.fromkeys(one for subject in subjects.values() for one in subject.cases):
        for label, subject in subjects.items():
            if (b, c) in subject.cases:
                walks |= {(f"{label}/{case(b, c)}", name): own for name, own in subject.walks(b, c).items()}
    medians = in_turns(walks, rounds=rounds, seconds=seconds, clock=CLOCKS[clock])
    figures: Figures = {}
    for label, subject in subjects.items():
        own: dict[str, Any] = {}
        each = {
            (b, c, part): np.array(medians[f"{label}/{case(b, c)}", part]) / b
            for b, c in subject.cases
            for part in PARTS
        }
        for b, c in subject.cases:
            own[case(b, c)] = {f"{part}_ms": spread(each[b, c, part].tolist()) for part in PARTS}
            explained = sum(each[b, c, part] for part in SPLIT) / each[b, c, "rank"]
            own[case(b, c)]["split"] = spread(explained.tolist())
        for b in LINES:
            lines = [line(subject.sizes, [each[b, c, "rank"][turn] for c in subject.sizes]) for turn in range(rounds)]
            own[f"line, B={b}"] = report.spreads(lines)
        figures[label] = own
    return figures


def table(figures: Figures) -> list[list[str]]:
    """The results for people."""
    rows = [["ms per request", *(f"{part} [low high]" if part in RANGED else part for part in PARTS), "split"]]
    for label, cases in figures.items():
        for name, values in cases.items():
            if "split" not in values:
                continue
            cells = [
                report.shown(values[f"{part}_ms"], 3) if part in RANGED else f"{values[f'{part}_ms']['median']:.3f}"
                for part in PARTS
            ]
            rows.append([f"{label}, {name}", *cells, f"{values['split']['median']:.0%}"])
    return rows


def judged(label: str, subject: Subject, cases: dict[str, Any]) -> list[str]:
    """Whether the objectives are met, in sentences; the worst round counts, as it does wherever one is required."""
    if subject.at < JUDGED:
        return [
            f"{label}: its lists reach {subject.reach} candidates; objectives, which are for {JUDGED}, are not judged"
        ]
    out = []
    for b in BATCHES:
        limit = ALONE_MS if b == 1 else BATCHED_MS
        taken = cases[case(b, JUDGED)]["rank_ms"]
        how = "alone" if b == 1 else f"in batches of {b}"
        verdict = "met" if taken["high"] <= limit else "missed"
        out.append(
            f"{label}: rank stage, {JUDGED} candidates {how} <= {limit:g} ms: {verdict}, {report.shown(taken, 3)}"
        )
    return out


def said(subjects: dict[str, Subject], figures: Figures) -> list[str]:
    """What a reader has to know."""
    notes = []
    for label, subject in subjects.items():
        rules, features = subject.rules, subject.features
        caps = (
            ", ".join(
                f"at most {cap.most} of each of {len(cap.values)} words of {cap.attribute!r}" for cap in rules.caps
            )
            or "no cap"
        )
        notes.append(
            f"{label}: {subject.bundle.name}, {len(subject.bundle.catalog)} items, {len(features.tasks)} tasks; "
            f"rules: {caps}, {SHARE:.0%} of places for {len(rules.promotion.item_ids if rules.promotion else ())} "
            f"promoted items, diversity {rules.diversity:g}"
        )
        for b in LINES:
            found = figures[label][f"line, B={b}"]
            notes.append(
                f"{label}, B={b}: {report.shown(found['us_per_candidate'], 2)} us for each candidate more and "
                f"{report.shown(found['fixed_ms'], 3)} ms however many, r2 {report.shown(found['r2'], 4)}"
            )
        notes += judged(label, subject, figures[label])
    return notes


def opened(paths: Sequence[Path]) -> dict[str, Bundle]:
    """The bundles by what to call them: their model, with the bundle's name where that is not enough.

    Raises:
        LoadError: one of them stands there twice.
    """
    bundles = [Bundle.open(path) for path in paths]
    models = Counter(one.manifest.model for one in bundles)
    out: dict[str, Bundle] = {}
    for one in bundles:
        label = one.manifest.model if models[one.manifest.model] == 1 else f"{one.manifest.model} {one.name}"
        if label in out:
            raise LoadError(f"{one.name} is given twice; give each bundle once")
        out[label] = one
    return out


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests rankings", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, action="append", required=True, help="with a ranker; may be repeated")
    parser.add_argument("--k", type=int, default=20, help="items of a list")
    parser.add_argument("--history", type=int, default=100, help="events of every request")
    parser.add_argument("--core", type=int, help="which core to run on; left out: the last one of this machine")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="time that passes, or that this process computes"
    )
    parser.add_argument("--rounds", type=int, default=9, help="repetitions of every timing, in turns")
    parser.add_argument("--quick", action="store_true", help="few calls: shows that it works")
    objectives.add_requirements(parser)
    report.add_record(parser)
    given = parser.parse_args(arguments)
    for name in ("k", "history", "rounds"):
        if getattr(given, name) < 1:
            raise LoadError(f"--{name} {getattr(given, name)} measures nothing; it must be at least 1")
    if given.record:
        report.refuse_dirty()
    machine = report.Machine.here()
    core = max(os.sched_getaffinity(0)) if given.core is None else given.core
    try:
        with running_on(core):
            bundles = opened(given.bundle)
            subjects = {label: Subject(one, k=given.k, history=given.history) for label, one in bundles.items()}
            figures = measure(subjects, rounds=given.rounds, seconds=0.0005 if given.quick else 0.03, clock=given.clock)
    except SequiturError as error:
        raise LoadError(str(error)) from error
    conditions = {
        "requests": REQUESTS,
        **{name: getattr(given, name) for name in ("k", "history", "rounds", "clock", "quick")},
    }
    about = {
        "name": ", ".join(bundles),
        "bundle": ", ".join(one.name for one in bundles.values()),
        "digest": ", ".join(one.digest for one in bundles.values()),
    }
    notes = said(subjects, figures)
    report.emit(Report("rankings", conditions, about, figures, table(figures), machine, notes), record=given.record)
    return objectives.judge(figures, given.require)
