"""A ranker's run: from an event log and a retriever's bundle to a bundle of two stages.

A ranker may learn only from what its retriever has not learnt: lists are replayed for the validation part of the split,
statistics are counted in the training part, and the test part is left for both stages together. Where a log has
impressions of its own, those are taken instead, from after the training part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from models import calibration as calibrations
from models import chain, declaration, impressions, ranker_export, statistics, tasks
from models.chain import Chain
from models.errors import InvalidOption
from models.evaluate import Contexts, Seen
from models.events import EventLog
from models.histories import Histories
from models.lists import Arrays, Lists
from models.progress import Progress
from models.ranker_training import Fitted, RankerTraining
from models.registry import configure, family
from models.splits import Cases, Split, leave_one_out, temporal
from retrieval.bundle import Bundle, refuse_taken
from retrieval.calibration import Calibration
from retrieval.engine import open_ranker
from retrieval.errors import InvalidInput
from retrieval.features import FeatureTables
from retrieval.filters import NO_FILTER
from retrieval.ranking import CANDIDATES, OnnxRanker, Ranking
from retrieval.recommenders import Served, load
from retrieval.sequences import IntArray
from retrieval.tasks import Task

SplitName = Literal["loo", "temporal"]
STANDARDISED_OVER = 1000  # lists


@dataclass(frozen=True)
class RankerData:
    """What a ranker learns from, and how its answers are put together.

    Attributes:
        tasks: what is predicted; see `models.tasks`.
        goals: weight of each task unless a request says otherwise, `click=1,like=0.5`; empty weighs the first with 1.
        candidates: how many the retriever is asked for.
        lists: most lists to learn from, drawn with the seed.
        ask: under a temporal split, whether lists are replayed for every event (`all`) or each user's first (`first`).
        held_out: share of the users whose lists are kept for stopping and for calibration.
        horizon: how many of a user's next events count as what came of a list.
        source: `replayed`, or `logged` to learn from the impressions of the log.
        calibrate: whether probabilities are calibrated.
    """

    tasks: str = "click"
    goals: str = ""
    candidates: int = CANDIDATES
    lists: int = 20_000
    ask: str = "first"
    held_out: float = 0.15
    horizon: int = 1
    source: str = "replayed"
    calibrate: bool = True

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        if min(self.candidates, self.lists, self.horizon) < 1 or not 0 < self.held_out < 1:
            raise InvalidOption(
                f"candidates {self.candidates}, lists {self.lists} and horizon {self.horizon} must be at least 1, "
                f"held_out {self.held_out} between 0 and 1"
            )
        for name, known in (("ask", ("all", "first")), ("source", ("replayed", "logged"))):
            if getattr(self, name) not in known:
                raise InvalidOption(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")

    def weights(self, names: Sequence[str]) -> dict[str, float]:
        """The goals by name.

        Raises:
            InvalidOption: not `name=number` of a task.
        """
        if not self.goals:
            return {names[0]: 1.0}
        found = {}
        for part in self.goals.split(","):
            name, _, weight = part.partition("=")
            try:
                found[name.strip()] = float(weight)
            except ValueError:
                raise InvalidOption(f"goals: {part!r} is not name=number") from None
            if name.strip() not in names:
                raise InvalidOption(f"goals: {name.strip()!r} is no task; tasks are {', '.join(names)}")
        return found


@dataclass(frozen=True, eq=False)
class Replay:
    """A log in the rows of a retriever's catalog, with what is needed to replay it.

    Attributes:
        served: the retriever, loaded.
        train: what it learnt from.
        split: the whole split.
        contexts: of each user, for requests.
        is_leave_one_out: whether the split is; else it is one by time.
    """

    served: Served
    train: Histories
    split: Split
    contexts: Contexts
    is_leave_one_out: bool

    @property
    def seen(self) -> Seen:
        """What becomes of the items of a history."""
        return "filtered" if self.served.bundle.manifest.exclude_seen else "kept"

    def how(self, retriever: str, candidates: int) -> str:
        """Where lists come from, for a protocol."""
        return f"lists of {candidates} from {retriever}, seen items {self.seen}"

    def lists(self, cases: Cases, wanted: Sequence[Any], settings: RankerData, progress: Progress) -> Lists:
        """What the retriever returns for the cases, labelled by what followed."""
        served, source = self.served, cases.source
        # What the test part asks for is no label of lists that come before it, however far their horizon.
        earlier = np.ones(len(source.rows), dtype=np.bool_)
        if cases is not self.split.test:
            earlier = source.timestamps < self.split.test.times.min()
            if self.is_leave_one_out:
                earlier = ~np.isin(np.arange(len(source.rows)), self.split.test.ends)
        return impressions.replayed(
            cases,
            served.recommender.first,
            wanted,
            eligible=served.filters.eligible(NO_FILTER),
            candidates=settings.candidates,
            contexts=self.contexts,
            horizon=settings.horizon,
            labels_from=earlier,
            seen=self.seen,
            on_progress=progress.cases,
        )

    def shown(
        self, log: EventLog, wanted: Sequence[Any], settings: RankerData, seed: int, progress: Progress
    ) -> tuple[Lists, Lists]:
        """What users were shown after the training part, labelled by what they did: before the test part, and in it.

        Raises:
            InvalidInput: one of the two is empty.
        """
        catalog, event_types = self.served.catalog, self.served.bundle.manifest.event_types
        lists, account = impressions.logged(log, catalog, event_types, wanted, contexts=self.contexts)
        progress.say(str(account))
        times = np.array([request.time for request in lists.requests])
        learnt, asked = self.train.timestamps.max(), self.split.test.times.min()
        before = np.flatnonzero((times > learnt) & (times < asked))
        after = np.flatnonzero(times >= asked)
        if not len(before) or not len(after):
            raise InvalidInput(
                f"{len(before):,} lists were shown between the training part and the test part, {len(after):,} in the "
                "test part; both are needed, so bring a longer log or replay the retriever"
            )
        if len(before) > settings.lists:
            before = np.sort(np.random.default_rng(seed).choice(before, settings.lists, replace=False))
        return lists.take(before), lists.take(after)


def replay(retriever: Bundle, log: EventLog, *, split: SplitName, ask: str) -> Replay:
    """The parts of a log, for a retriever that learnt from the first of them.

    Raises:
        InvalidInput: the retriever was trained on another log, or with nothing held out in this way.
    """
    manifest = retriever.manifest
    if manifest.data.get("digest") != log.digest:
        raise InvalidInput(f"bundle {retriever.name} was trained on other data than this log; train it again")
    if split not in manifest.metrics:
        raise InvalidInput(
            f"bundle {retriever.name} was not trained with --split {split}, so it may have learnt what a ranker is "
            "to be asked; train it again with that split, or name the split that it was trained with"
        )
    histories = Histories.from_log(impressions.feedback(log), retriever.catalog, manifest.event_types)
    parts = leave_one_out(histories) if split == "loo" else temporal(histories)
    if split == "temporal" and ask == "all":
        parts = replace(parts, validation=temporal(histories, targets="all").validation)
    return Replay(load(retriever), parts.train, parts, impressions.contexts(log.users), split == "loo")


def train_ranker(
    name: str,
    log: EventLog,
    retriever: Bundle,
    out: Path,
    options: Mapping[str, str],
    *,
    split: SplitName,
    progress: Progress,
    overwrite: bool = False,
) -> tuple[Bundle, Chain]:
    """Fits a ranker on what a retriever returns, and leaves the bundle of both at `out`.

    Args:
        options: hyper-parameters, `RankerTraining` and `RankerData` by name, as text.

    Raises:
        InvalidOption: an option that nothing knows.
        InvalidInput: the retriever and the log do not fit each other.
        BundleError: `out` exists and `overwrite` is false; said before training, not after.
    """
    out = out.resolve()
    refuse_taken(out, overwrite=overwrite)
    maker = family(name)
    config, left = configure(maker.Config(), options)
    settings, left = configure(RankerData(), left)
    how, unknown = configure(replace(RankerTraining(), **maker.recipe), left)
    if unknown:
        known = sorted({*asdict(config), *asdict(settings), *asdict(how)})
        raise InvalidOption(f"--set {', '.join(unknown)}: not an option of {name}; known: {', '.join(known)}")
    source = replay(retriever, log, split=split, ask=settings.ask)
    catalog, vectors = source.served.catalog, source.served.index.vectors
    wanted = tasks.parse(settings.tasks, retriever.manifest.event_types, source.train)
    goals = settings.weights([task.name for task in wanted])
    shown: Lists | None = None
    if settings.source == "logged":
        lists, shown = source.shown(log, wanted, settings, how.seed, progress)
    else:
        cases = source.split.validation.sample(settings.lists, seed=how.seed)
        progress.say(f"replaying {len(cases):,} lists of {settings.candidates} from {retriever.name}")
        lists = source.lists(cases, wanted, settings, progress)
    learning, holding = by_user(lists.users, settings.held_out, seed=how.seed)
    counted = statistics.count(source.train, len(catalog), wanted)
    features = declaration.declare(catalog, source.train, wanted, log.users)
    sample = lists.take(learning[:STANDARDISED_OVER])
    features = declaration.standardised(features, counted, catalog, vectors, sample)
    tables = FeatureTables.of(features, counted, catalog, vectors)
    torch.manual_seed(how.seed)
    model = maker(config, features)
    train, validation = (Arrays.of(tables, lists.take(part), model.inputs) for part in (learning, holding))
    positives = {task: int(np.nansum(lists.labels[:, t])) for t, task in enumerate(lists.tasks)}
    progress.say(
        f"training {name} on {len(train):,} lists, {len(validation):,} held out; fulfilled: "
        + ", ".join(f"{task} {count:,}" for task, count in positives.items())
    )
    fitted = model.fit(train, validation, how, progress)
    maps, calibrated = calibration_of(model, fitted, validation, lists.tasks) if settings.calibrate else ({}, {})
    ranking = Ranking(features, goals, settings.candidates, maps)
    facts: dict[str, Any] = {"fit": dict(fitted.facts), "lists": len(train), "calibration": calibrated}
    if len(fitted.places) > 2:
        facts["places"] = np.round(fitted.places, 4).tolist()
    progress.say("measuring")
    asked = source.lists(source.split.test, wanted, settings, progress)
    with_options = {**asdict(config), **asdict(settings), **asdict(how)}
    ranker_export.export_ranker(
        model,
        retriever,
        out,
        name=name,
        settings=ranking,
        statistics=counted,
        samples=lists.take(holding),
        hyper_parameters=with_options,
        metrics=facts,
        overwrite=overwrite,
    )
    made = Bundle.open(out)
    ranker = opened(made)
    if shown is not None:
        table = chain.tasks_table(ranker, shown, fitted.places)
        progress.say(f"on {len(shown):,} lists that were shown in the test part:\n{table}")
    judged = chain.judge(
        source.split.test,
        asked,
        {made.path.name: ranker},
        n_items=len(catalog),
        how=source.how(retriever.name, settings.candidates),
        on_progress=progress.cases,
    )
    return made, judged


def compare_rankers(
    bundles: Sequence[Bundle], log: EventLog, *, split: SplitName, ks: Sequence[int], progress: Progress
) -> Chain:
    """Rankers over one retriever, on the test part of a log.

    Raises:
        InvalidInput: a bundle without a ranker, of another retriever, or with other tasks.
    """
    rankers: dict[str, OnnxRanker] = {}
    wanted: dict[str, Task] = {}
    for bundle in bundles:
        rankers[bundle.path.name if bundle.path.name not in rankers else bundle.name] = ranker = opened(bundle)
        for task in ranker.settings.features.tasks:
            if wanted.setdefault(task.name, task) != task:
                raise InvalidInput(
                    f"bundle {bundle.name} calls something else {task.name!r} than those before it do; only rankers of "
                    "the same tasks compare"
                )
        for what in ("retriever", "candidates"):
            if bundle.manifest.ranking[what] != bundles[0].manifest.ranking[what]:
                raise InvalidInput(
                    f"bundle {bundle.name} ranks for {what} {bundle.manifest.ranking[what]!r}, {bundles[0].name} for "
                    f"{bundles[0].manifest.ranking[what]!r}; only orders of the same lists compare"
                )
    source = replay(bundles[0], log, split=split, ask="first")
    settings = RankerData(candidates=int(bundles[0].manifest.ranking["candidates"]))
    asked = source.lists(source.split.test, tuple(wanted.values()), settings, progress)
    return chain.judge(
        source.split.test,
        asked,
        rankers,
        n_items=len(source.served.catalog),
        how=source.how(bundles[0].manifest.ranking["retriever"], settings.candidates),
        ks=ks,
        on_progress=progress.cases,
    )


def opened(bundle: Bundle, *, threads: int = 1) -> OnnxRanker:
    """The ranker of a bundle.

    Raises:
        InvalidInput: it has none.
    """
    ranker = open_ranker(bundle, threads=threads)
    if ranker is None:
        raise InvalidInput(f"bundle {bundle.name} has no ranker; train one with --retriever {bundle.path}")
    return ranker


def by_user(users: IntArray, share: float, *, seed: int) -> tuple[IntArray, IntArray]:
    """int64: lists to learn from, and those of a share of the users, drawn with the seed.

    Raises:
        InvalidInput: one of the two would be empty.
    """
    distinct = np.unique(users)
    drawn = np.random.default_rng(seed).random(len(distinct)) < share
    held = drawn[np.searchsorted(distinct, users)]
    if held.all() or not held.any():
        raise InvalidInput(f"{len(distinct)} users are too few to hold {share:.0%} of them out; bring a longer log")
    return np.flatnonzero(~held), np.flatnonzero(held)


def calibration_of(
    model: Any, fitted: Fitted, validation: Arrays, names: Sequence[str]
) -> tuple[dict[str, Calibration], dict[str, Any]]:
    """The map of each task, fitted on lists that the model did not learn from, and what it changed there."""
    said = np.full(validation.labels.shape, np.nan, dtype=np.float32)
    for start in range(0, len(validation), chain.BATCH):
        which = np.arange(start, min(start + chain.BATCH, len(validation)))
        said[which] = model.probabilities(validation.batch(which))
    places = fitted.places[validation.positions.clip(0, len(fitted.places) - 1)]
    groups = np.broadcast_to(np.arange(len(validation))[:, None], validation.labels.shape[:2])
    maps: dict[str, Calibration] = {}
    facts = {}
    for t, name in enumerate(names):
        labels = validation.labels[:, :, t]
        known = ~np.isnan(labels)
        at_place = calibrations.shifted(said[:, :, t][known], places[:, :, t][known])
        made, facts[name] = calibrations.chosen(at_place, labels[known], groups[known])
        if made is not None:
            maps[name] = made
    return maps, facts
