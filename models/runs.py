"""A run: from an event log on disk to a measured bundle, and a bundle's quality on a log.

What the commands of `python -m models` do, as functions: read, split, train, measure, export.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from models import comparison, generator_export
from models import train as training
from models.errors import CheckpointError, InvalidOption
from models.evaluate import EncoderScorer, Report, evaluate, evaluate_served
from models.events import EventLog, read_log
from models.export import EXACT_BELOW, export, git_commit
from models.generation import judged
from models.histories import Histories, catalog_from_log, event_type_vocabulary, with_popularity
from models.impressions import contexts, feedback
from models.intake import OnBadRow
from models.progress import Progress
from models.registry import configure, family
from models.scoring import TorchScorer
from models.semantic_ids import SemanticIdConfig, SemanticIds, assign
from models.splits import Cases, Split, leave_one_out, temporal
from retrieval.bundle import RANKER, Bundle, refuse_taken
from retrieval.catalog import Catalog
from retrieval.errors import InvalidInput
from retrieval.generative import GENERATED, HYBRID
from retrieval.sequences import History

VALIDATE_CASES = 10_000  # drawn once, seeded; the whole of every public benchmark of this size is used
VALIDATE_GENERATED = 3_000  # a beam search costs a hundred times what a product with all item vectors does
VALIDATE_BEAMS = 20
SAMPLE_HISTORIES = 1000
CASE_EVENTS = 1000  # the longest history that a request may carry

SplitName = Literal["loo", "temporal"]


@dataclass(frozen=True)
class Source:
    """Where events come from, as the command line says it."""

    layout: str
    events: Sequence[Path]
    items: Path | None = None
    on_bad_row: OnBadRow = "fail"
    core: int = 0


@dataclass(frozen=True)
class SearchOptions:
    """How the bundle of a generator is searched, unless a request says otherwise.

    Attributes:
        beams: prefixes that are kept.
        widen: doublings of the width that are tried while a list is not proven exact and there is time.
        exact_below: with no more items left than this, all of them are scored.
        candidates: `generated`, or `hybrid` to merge what the encoder retrieves.
    """

    beams: int = 50
    widen: int = 0
    exact_below: int = 200
    candidates: str = GENERATED

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        if self.beams < 1 or min(self.widen, self.exact_below) < 0:
            raise InvalidOption(
                f"beams {self.beams} must be at least 1, widen {self.widen} and exact_below {self.exact_below} "
                "not negative"
            )
        if self.candidates not in (GENERATED, HYBRID):
            raise InvalidOption(f"candidates {self.candidates!r} is none of {GENERATED}, {HYBRID}")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A log in rows, split.

    Attributes:
        log: as read.
        catalog: with the popularity of the training part.
        event_types: vocabulary.
        train: the training part.
        validation, test: cases; None where no user has enough events.
    """

    log: EventLog
    catalog: Catalog
    event_types: tuple[str, ...]
    train: Histories
    validation: Cases | None
    test: Cases | None

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of its data."""
        report = self.log.report
        return {
            "layout": report.layout,
            "digest": self.log.digest,
            "events": report.rows_kept,
            "users": report.users,
            "items": len(self.catalog),
            "first": report.first_time_s,
            "last": report.last_time_s,
            "order_only": self.log.ordered_only,
        }


def read(source: Source, progress: Progress, *, impressions: bool = False) -> EventLog:
    """The event log, with what was read and left out said aloud.

    Args:
        impressions: whether what users were shown stays in it, beside what they did.
    """
    log = read_log(
        source.layout,
        list(source.events) if len(source.events) > 1 else source.events[0],
        source.items,
        on_bad_row=source.on_bad_row,
        core=source.core,
        on_progress=progress.rows,
    )
    progress.say(str(log.report))
    return log if impressions else feedback(log)


def prepare(log: EventLog, *, split: SplitName = "loo") -> Prepared:
    """The log in rows, split; a log too short to hold anything out is all training."""
    catalog, types = catalog_from_log(log), event_type_vocabulary(log)
    histories = Histories.from_log(log, catalog, types)
    parts = held_out(histories, split)
    train = parts.train if parts else histories
    return Prepared(
        log,
        with_popularity(catalog, train),
        types,
        train,
        parts.validation if parts and len(parts.validation) else None,
        parts.test if parts and len(parts.test) else None,
    )


def held_out(histories: Histories, split: SplitName) -> Split | None:
    """The split of that name; None where leave-one-out finds no user with three events."""
    if split == "temporal":
        return temporal(histories)
    try:
        return leave_one_out(histories)
    except InvalidInput:
        return None


def train(
    name: str,
    source: Source,
    out: Path,
    options: Mapping[str, str],
    *,
    progress: Progress,
    split: SplitName = "loo",
    resume: bool = False,
    overwrite: bool = False,
    target_recall: float = 0.98,
    exact_below: int = EXACT_BELOW,
    dense: Path | None = None,
) -> tuple[Bundle, Report | None]:
    """Trains a model and leaves its bundle at `out`, its test quality in the manifest.

    The checkpoint lives beside, in `OUT.training`, and goes when the bundle stands.

    Args:
        options: hyper-parameters and training options by name, as text.
        dense: for a generator, the bundle of an encoder of the same catalog that answers where the generator is late.

    Raises:
        InvalidOption: an option that neither the model nor the training knows.
        BundleError: `out` exists and `overwrite` is false; said before training, not after.
        CheckpointError: an unfinished run is there, and neither `resume` nor `overwrite` says what to do with it; or
            `resume` finds none, or one of other options or data.
    """
    out = out.resolve()
    refuse_taken(out, overwrite=overwrite)
    directory = workbench(out)
    if (directory / training.CHECKPOINT).exists() and not (resume or overwrite):
        raise CheckpointError(
            f"{directory} holds an unfinished run; go on with it by --resume, or start afresh with --overwrite"
        )
    maker = family(name)
    generates = maker.stage == "generator"
    if dense is not None and not generates:
        raise InvalidOption(f"--dense goes with a generator; {name} is an encoder itself")
    config, left = configure(maker.Config(), options)
    coding: SemanticIdConfig | None = None
    if generates:
        coding, left = configure(replace(SemanticIdConfig(), **maker.semantic), left)
    search, left = configure(SearchOptions(), left) if generates else (SearchOptions(), left)
    settings, unknown = configure(replace(training.TrainConfig(), **maker.recipe), left)
    hyper = {**asdict(config), **(asdict(coding) if coding else {}), **asdict(settings)}
    if unknown:
        known = sorted({*hyper, *(asdict(search) if generates else {})})
        raise InvalidOption(
            f"--set {', '.join(unknown)}: not an option of {name} or its training; known: {', '.join(known)}"
        )
    if search.candidates == HYBRID and dense is None:
        raise InvalidOption("candidates=hybrid takes an encoder's items too; name its bundle with --dense")
    fallback = None if dense is None else Bundle.open(dense)
    prepared = prepare(read(source, progress), split=split)
    if fallback is not None:
        generator_export.check_encoder(fallback, prepared.catalog)  # now, and not after hours
    if directory.exists() and not resume:
        shutil.rmtree(directory)
    ids = None if coding is None else _semantic_ids(directory, prepared.catalog, coding, settings.seed, progress)
    torch.manual_seed(settings.seed)
    model = maker(config, len(prepared.catalog) if ids is None else ids)
    progress.say(
        f"training {name} with seed {settings.seed}: " + ", ".join(f"{key}={value}" for key, value in hyper.items())
    )
    judge = None
    if prepared.validation is None:
        progress.say("no user has enough events to hold one out: every epoch is run, and nothing is measured")
    else:
        cases = prepared.validation.sample(VALIDATE_GENERATED if generates else VALIDATE_CASES, seed=settings.seed)
        judge = partial(_ndcg, cases, len(prepared.catalog))
    position = training.train(
        model,
        prepared.train,
        config=settings,
        judge=judge,
        directory=directory,
        identity={
            "model": name,
            "options": {k: v for k, v in hyper.items() if k not in ("epochs", "patience", "threads")},
            "data": prepared.log.digest,
            "split": split,
        },
        progress=progress,
        resume=resume,
    )
    report = None
    metrics: dict[str, Any] = {"training_minutes": round(position.seconds / 60, 2)}
    if prepared.test is not None:
        if generates:
            report = judged(
                model, prepared.test, name=name, beams=search.beams, ks=(10, 20), on_progress=progress.cases
            )
        else:
            scorer = TorchScorer(model, name=name)
            report = evaluate(scorer, prepared.test, n_items=len(prepared.catalog), on_progress=progress.cases)
        metrics[split] = {k: m.value for k, m in report.measures.items()} | {"protocol": report.protocol}
    progress.say("exporting")
    facts: dict[str, Any] = {
        "name": name,
        "out": out,
        "samples": samples(prepared),
        "data": prepared.facts,
        "event_types": prepared.event_types,
        "hyper_parameters": hyper | {"epochs_run": position.epoch, "best_epoch": position.best_epoch},
        "seed": settings.seed,
        "metrics": metrics,
        "overwrite": overwrite,
    }
    if ids is not None:
        generator_export.export_generator(
            model, ids, prepared.catalog, generation=asdict(search), dense=fallback, **facts
        )
    else:
        export(
            model,
            prepared.catalog,
            exclude_seen=maker.exclude_seen,
            target_recall=target_recall,
            exact_below=exact_below,
            **facts,
        )
    shutil.rmtree(directory)
    bundle = Bundle.open(out)
    agreement = bundle.manifest.metrics["parity"]
    what = "log-probability" if generates else "query coordinate"
    progress.say(
        f"ONNX against torch over {agreement['histories']:,} histories: largest difference of a {what} "
        f"{agreement['largest_difference']:.1e}, {agreement['identical_top20']:.2%} of the top-20 lists identical"
    )
    return bundle, report


def join(
    generator: Path, out: Path, *, dense: Path | None, options: Mapping[str, str], overwrite: bool = False
) -> Bundle:
    """A generator's bundle again with an encoder beside it, or searched in another way; see `generator_export.join`.

    Raises:
        InvalidOption: an option that says nothing of the search.
    """
    own = Bundle.open(generator)
    known = {name: value for name, value in own.manifest.generation.items() if name in asdict(SearchOptions())}
    search, unknown = configure(SearchOptions(**known), options)
    if unknown:
        raise InvalidOption(f"--set {', '.join(unknown)}: not an option of the search; known: {', '.join(known)}")
    other = None if dense is None else Bundle.open(dense)
    generator_export.join(own, out.resolve(), dense=other, generation=asdict(search), overwrite=overwrite)
    return Bundle.open(out.resolve())


def _semantic_ids(
    directory: Path, catalog: Catalog, config: SemanticIdConfig, seed: int, progress: Progress
) -> SemanticIds:
    """The codes of a run: those that it began with where it is resumed, for weights mean nothing under others."""
    store = directory / "semantic_ids"
    if store.is_dir():
        return SemanticIds.load(store)
    progress.say(f"semantic ids: text by {config.text}, codes by {config.quantiser}")
    ids = assign(catalog, config, seed=seed, progress=progress)
    progress.say(f"semantic ids: {ids.report}")
    beside = store.with_suffix(".partial")
    ids.save(beside)
    beside.rename(store)
    return ids


def workbench(out: Path) -> Path:
    """Where the run that makes the bundle at `out` keeps its checkpoint."""
    return out.with_name(out.name + ".training")


def _ndcg(cases: Cases, n_items: int, model: Any) -> float:
    if model.stage == "generator":
        return float(judged(model, cases, name="candidate", beams=VALIDATE_BEAMS).measures["ndcg@10"].value)
    report = evaluate(TorchScorer(model, name="candidate"), cases, n_items=n_items, ks=(10,))
    return float(report.measures["ndcg@10"].value)


def samples(prepared: Prepared) -> list[History]:
    """Real histories, spread over the users: the ones that a service will be asked about."""
    if prepared.test is not None:
        drawn = prepared.test.sample(SAMPLE_HISTORIES, seed=0)
        return drawn.histories(0, len(drawn))
    users = [u for u in range(len(prepared.train)) if len(prepared.train[u])]
    return [prepared.train[u] for u in users[:: max(1, len(users) // SAMPLE_HISTORIES)]]


def cases_for(bundle: Bundle, log: EventLog, *, split: SplitName) -> Cases:
    """The test cases of a log, in the rows of a bundle's catalog.

    Raises:
        InvalidInput: nothing can be held out.
    """
    histories = Histories.from_log(log, bundle.catalog, bundle.manifest.event_types)
    parts = held_out(histories, split)
    if parts is None:
        raise InvalidInput(
            "no user of this log has three events, so leave-one-out holds nothing out; bring a longer log"
        )
    return parts.test


def write_cases(bundle: Bundle, log: EventLog, out: Path, *, split: SplitName, limit: int, seed: int) -> int:
    """Writes test cases in item ids, to be asked over HTTP: one JSON line `{"history": [...], "target": id}` each.

    Args:
        out: a file; histories stand in it oldest first, cut to the newest that a request may carry.
        limit: at most this many cases, drawn with `seed`.

    Returns:
        How many there are.
    """
    cases, ids = cases_for(bundle, log, split=split).sample(limit, seed=seed), bundle.catalog.ids
    with out.open("w") as file:
        for history, target in zip(cases.histories(0, len(cases)), cases.targets.tolist(), strict=True):
            known = [ids[row] for row in history.newest(CASE_EVENTS).rows.tolist()]
            file.write(json.dumps({"history": known, "target": ids[target]}, ensure_ascii=False) + "\n")
    return len(cases)


def judge_bundle(
    bundle: Bundle,
    log: EventLog,
    *,
    split: SplitName,
    ks: Sequence[int],
    seen: Literal["filtered", "kept"] = "filtered",
    negatives: int | None = None,
    served: bool = False,
    seed: int = 0,
    progress: Progress,
) -> Report:
    """The quality of a bundle on a log: by its graph over the whole catalog, or through the recommender that serves."""
    cases = cases_for(bundle, log, split=split)
    if _lists_alone(bundle) and negatives is not None:
        raise InvalidInput("a generator or a ranker makes lists and scores no drawn negatives; leave out --negatives")
    if served or _lists_alone(bundle):
        known = contexts(log.users)
        return evaluate_served(bundle, cases, ks=ks, seen=seen, contexts=known, on_progress=progress.cases)
    return evaluate(
        EncoderScorer.of(bundle),
        cases,
        n_items=len(bundle.catalog),
        ks=ks,
        seen=seen,
        negatives=negatives,
        seed=seed,
        on_progress=progress.cases,
    )


def _lists_alone(bundle: Bundle) -> bool:
    """Whether a bundle answers with lists, and has no one graph that scores every item."""
    return bundle.manifest.kind == "generative" or RANKER in bundle.manifest.graphs


def compare(
    names: Sequence[str],
    bundles: Sequence[Path],
    source: Source,
    options: Mapping[str, str],
    *,
    workspace: Path,
    split: SplitName,
    ks: Sequence[int],
    progress: Progress,
) -> Compared:
    """Models and bundles beside every baseline, on the test cases of one log.

    Args:
        names: models to train for this; their bundles stay in `workspace`, and one that stands there is used again.
        bundles: trained on the same log before.
        options: for every model that is trained.

    Raises:
        InvalidInput: a bundle was trained on other data, or nothing can be held out.
    """
    prepared = prepare(read(source, progress), split=split)
    if prepared.test is None:
        raise InvalidInput(
            "no user of this log has three events, so there is nothing to compare on; bring a longer log"
        )
    opened = [Bundle.open(path) for path in bundles]
    for name in names:
        out = workspace / name
        if not out.exists():
            unfinished = (workbench(out) / training.CHECKPOINT).exists()
            train(name, source, out, options, split=split, progress=progress, resume=unfinished)
        opened.append(Bundle.open(out))
    scorers, lists, remarks = [], [], {}
    for bundle in opened:
        if bundle.manifest.data["digest"] != prepared.log.digest:
            raise InvalidInput(f"bundle {bundle.name} was trained on other data than this log; train it again")
        remarks[bundle.path.name] = f"{bundle.manifest.metrics.get('training_minutes', '?')} min to train"
        if _lists_alone(bundle):
            known = contexts(prepared.log.users)
            listed = evaluate_served(bundle, prepared.test, ks=ks, contexts=known, on_progress=progress.cases)
            lists.append(replace(listed, name=bundle.path.name))
            if bundle.manifest.generation:
                remarks[bundle.path.name] += f", {bundle.manifest.generation['beams']} beams"
            if bundle.manifest.ranking:
                remarks[bundle.path.name] += f", {bundle.manifest.ranking['candidates']} candidates ranked"
            continue
        scorer = EncoderScorer.of(bundle)
        scorer.name = bundle.path.name
        scorers.append(scorer)
    table = comparison.compare(
        scorers,
        prepared.train,
        prepared.test,
        n_items=len(prepared.catalog),
        ks=ks,
        lists=lists,
        remarks=remarks,
        on_progress=progress.cases,
    )
    return Compared(table, prepared.log.digest, f"{source.layout}, {source.events[0].name}")


@dataclass(frozen=True, eq=False)
class Compared:
    """A comparison with what is needed to run it again."""

    table: comparison.Comparison
    data_digest: str
    title: str

    def append(self, path: Path, *, command: str) -> None:
        """Adds the table to a results file."""
        comparison.append_results(
            path,
            self.table,
            title=self.title,
            date=datetime.now(UTC).date().isoformat(),
            command=command,
            commit=git_commit(),
            data_digest=self.data_digest,
        )
