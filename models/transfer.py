"""One generator for many catalogs: trained on some, asked about another whose items it has never met.

    python -m models transfer --model recgpt --train s3rec:BEAUTY s3rec:SPORTS microlens:VIDEOS \\
        --tune windows:valid.tsv.gz --test windows:test.tsv.gz --out artifacts/transfer

Text encoder and quantiser are learnt from the training catalogs too, and only applied to the other one: zero-shot
means that nothing was fitted to anything of it. Then the same weights go on learning from the histories of `--tune`,
which are of the tested catalog and older than the test. Baselines may count those histories from the start.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import comparison, runs
from models import train as training
from models.baselines import Popular, Random, Transitions
from models.errors import CheckpointError, InvalidOption
from models.evaluate import Scorer, evaluate
from models.export import git_commit
from models.generation import TorchParallel
from models.histories import Histories, catalog_from_log, event_type_vocabulary
from models.layouts.windows import OWNER
from models.progress import Progress
from models.registry import configure, family
from models.semantic_ids import FIELDS, SemanticIdConfig, SemanticIds, assign, assign_by
from models.splits import Cases
from retrieval.beam import score_all
from retrieval.catalog import Catalog
from retrieval.codes import CodeTable
from retrieval.errors import InvalidInput
from retrieval.inputs import Request
from retrieval.sequences import PAD_ROW, FloatArray, History
from retrieval.text import describe

TEXT = "text"  # the one attribute of an item that crosses from catalog to catalog
KS = (1, 10)
HEADLINE = "ndcg@10"


@dataclass(frozen=True)
class TransferOptions:
    """What comes after training on the other catalogs.

    Attributes:
        tune_epochs: passes over the tuning histories; 0 leaves tuning out.
        tune_rate: learning rate of them.
        scratch_epochs: passes of a model that starts from nothing on the tuning histories; 0 leaves it out.
    """

    tune_epochs: int = 5
    tune_rate: float = 3e-4
    scratch_epochs: int = 0

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        if min(self.tune_epochs, self.scratch_epochs) < 0 or not self.tune_rate > 0:
            raise InvalidOption(
                f"tune_epochs {self.tune_epochs} and scratch_epochs {self.scratch_epochs} must not be negative, "
                f"tune_rate {self.tune_rate} must be above zero"
            )


@dataclass(frozen=True, eq=False)
class Domain:
    """A catalog of which only the texts are known, and what people did in it.

    Attributes:
        catalog: with the one attribute `text`.
        histories: in its rows.
        owners: int64, shape (U,): equal where several histories are of one person.
        digest: of the log.
    """

    catalog: Catalog
    histories: Histories
    owners: np.ndarray
    digest: str


def read(source: runs.Source, fields: Sequence[str], progress: Progress, *, catalog: Catalog | None = None) -> Domain:
    """A log as a domain, its items described by those of the fields that it has.

    Args:
        catalog: of another part of the same data, to be used instead of the log's own.

    Raises:
        InvalidInput: none of the fields says anything.
    """
    log = runs.read(source, progress)
    own = catalog_from_log(log)
    known = [name for name in fields if name in own.columns]
    said = [describe(own.attributes(row), known) for row in range(1, len(own) + 1)]
    if not any(said):
        raise InvalidInput(
            f"{source.layout}:{source.events[0]} describes no item by {', '.join(fields)}; bring an item table, or "
            "name its attributes by --set text_fields="
        )
    told = Catalog.build(own.ids[1:], popularity=own.popularity[1:], attributes={TEXT: [text or None for text in said]})
    histories = Histories.from_log(log, catalog or told, event_type_vocabulary(log))
    people: Sequence[str] = histories.user_ids
    if OWNER in log.events.columns:
        whose = dict(zip(log.events["user_id"].to_list(), log.events[OWNER].to_list(), strict=True))
        people = [str(whose[user]) for user in people]
    owners = np.unique(np.array(people), return_inverse=True)[1]
    return Domain(catalog or told, histories, owners.astype(np.int64), log.digest)


def joined(domains: Sequence[Domain]) -> tuple[Catalog, Histories]:
    """Several domains as one: catalogs behind each other, ids `0/...`, `1/...`, and every history in these rows."""
    ids, texts, sizes = [], [], [0]
    for at, domain in enumerate(domains):
        ids += [f"{at}/{item_id}" for item_id in domain.catalog.ids[1:]]
        texts += [domain.catalog.attributes(row).get(TEXT) for row in range(1, len(domain.catalog) + 1)]
        sizes.append(len(ids))
    rows = np.concatenate([d.histories.rows + before for d, before in zip(domains, sizes, strict=False)])
    lengths = np.concatenate([d.histories.lengths() for d in domains])
    events = len(rows)
    whole = Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rows=rows,
        event_types=np.zeros(events, np.int64),
        values=np.full(events, np.nan, np.float32),
        timestamps=np.zeros(events),
        user_ids=tuple(f"{at}/{user}" for at, d in enumerate(domains) for user in d.histories.user_ids),
        ordered_only=True,
    )
    return Catalog.build(ids, popularity=whole.counts(len(ids))[1:], attributes={TEXT: texts}), whole


def last_events(domain: Domain) -> Cases:
    """The last event of every history that has two, everything before it being known; intervals go by owner."""
    ends = domain.histories.offsets[1:][domain.histories.lengths() >= 2]
    if not len(ends):
        raise InvalidInput("no history of the tested log has two events, so there is nothing to ask; bring another log")
    cases = Cases.at(domain.histories, ends - 1, train_ends=ends - 1, words="last event of every history")
    return replace(cases, users=domain.owners[cases.users])


def without_repeats(cases: Cases) -> Cases:
    """The cases whose target is not the very item before it."""
    kept = cases.targets != cases.source.rows[cases.ends - 1]
    taken = {name: getattr(cases, name)[kept] for name in ("starts", "ends", "train_ends", "targets", "times", "users")}
    words = f"{cases.words}, {int((~kept).sum()):,} that repeat the item before left out, and that item never offered"
    return replace(cases, **taken, words=words)


class RepeatLast:
    """The items of the history, the newest first."""

    name = "repeat-last"

    def __init__(self, n_items: int) -> None:
        self._width = n_items + 1

    def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:  # noqa: ARG002
        """float32, shape (B, N + 1): how far along the history an item stands last."""
        out = np.zeros((len(histories), self._width), dtype=np.float32)
        for line, history in zip(out, histories, strict=True):
            line[history.rows] = np.arange(1, len(history) + 1)  # of equal rows the last is written last
        return out


class TextNeighbours:
    """The items whose text is nearest to that of the last item: cosine.

    Args:
        vectors: float32, shape (N + 1, Dt), of length one or zero.
    """

    name = "text-knn"

    def __init__(self, vectors: FloatArray) -> None:
        self._vectors = vectors

    def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:  # noqa: ARG002
        """float32, shape (B, N + 1)."""
        last = [history.rows[-1] if len(history) else PAD_ROW for history in histories]
        found: FloatArray = self._vectors[last] @ self._vectors.T
        return found


class ParallelScorer:
    """A generator that gives all distributions in one pass, as the exact score of every item.

    Args:
        model: the generator.
        name: how tables call it.
    """

    def __init__(self, model: Any, *, name: str) -> None:
        self._decoder, self._table = TorchParallel(model), model.tables.codes
        self.name = name

    def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:
        """float32, shape (B, N + 1): sums of log-probabilities; zero where nothing of a history has a code."""
        out = np.zeros((len(histories), len(self._table) + 1), dtype=np.float32)
        requests = [Request(history, time) for history, time in zip(histories, times, strict=True)]
        asked = [at for at, request in enumerate(requests) if self._decoder.reads(request)]
        if asked:
            memory = self._decoder.prefill([requests[at] for at in asked])
            out[asked] = score_all(self._decoder.distributions(memory), self._table)
        return out


class WithoutLast:
    """A scorer that never offers the last item of a history, where that is known not to be the answer."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self.name = scorer, scorer.name

    def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:
        """float32, shape (B, N + 1)."""
        out = np.array(self._scorer.scores(histories, times), dtype=np.float32)
        for line, history in zip(out, histories, strict=True):
            line[history.rows[-1:]] = -np.inf
        return out


@dataclass(frozen=True, eq=False)
class Transferred:
    """What was measured.

    Attributes:
        whole: on every case.
        changed: on the cases whose target is another item than the one before.
        data_digest: of the tested log.
        facts: how the codes suit the tested catalog, and how long training took.
    """

    whole: comparison.Comparison
    changed: comparison.Comparison
    data_digest: str
    facts: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {"all": self.whole.to_json(), "without_repeats": self.changed.to_json(), **self.facts}

    def __str__(self) -> str:
        return f"{self.whole}\n\n{self.changed}"

    def append(self, path: Path, *, command: str) -> None:
        """Adds both tables to a results file."""
        for title, table in (("transfer", self.whole), ("transfer, without repeats", self.changed)):
            comparison.append_results(
                path,
                table,
                title=title,
                date=datetime.now(UTC).date().isoformat(),
                command=command,
                commit=git_commit(),
                data_digest=self.data_digest,
            )


def transfer(
    name: str,
    train: Sequence[runs.Source],
    tune: runs.Source,
    test: runs.Source,
    out: Path,
    options: Mapping[str, str],
    *,
    progress: Progress,
    resume: bool = False,
) -> Transferred:
    """Trains a generator on some catalogs and measures it on another, before and after it learnt from that one.

    Everything learnt stays in `out`: semantic ids with their describer, and by part of the work (`training`, `tuning`,
    `scratch`) a checkpoint and the weights.

    Args:
        train: logs of the catalogs that are learnt from.
        tune: histories of the tested catalog that may be learnt from.
        test: histories whose last event is asked for.
        options: of the model, of the semantic ids, of the training and of `TransferOptions`, as text.
        resume: go on with what stands in `out`.

    Raises:
        InvalidOption: an option that nobody knows, or a model that does not give all distributions in one pass.
        CheckpointError: `out` holds something and `resume` is false.
    """
    maker = family(name)
    if maker.stage != "generator" or maker.memory_names:
        raise InvalidOption(f"transfer needs a generator that gives all distributions in one pass; {name} is none")
    config, left = configure(maker.Config(), options)
    coding, left = configure(replace(SemanticIdConfig(), **maker.semantic), left)
    after, left = configure(TransferOptions(), left)
    settings, unknown = configure(replace(training.TrainConfig(), **maker.recipe), left)
    if unknown:
        known = sorted({*asdict(config), *asdict(coding), *asdict(after), *asdict(settings)})
        raise InvalidOption(f"--set {', '.join(unknown)}: not an option of transfer; known: {', '.join(known)}")
    if out.exists() and any(out.iterdir()) and not resume:
        raise CheckpointError(f"{out} holds another run; go on with it by --resume, or name another directory")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(settings.threads)

    fields = tuple(field.strip() for field in coding.text_fields.split(",") if field.strip()) or FIELDS
    sources = [read(source, fields, progress) for source in train]
    asked = read(test, fields, progress)
    older = read(tune, fields, progress, catalog=asked.catalog)
    catalog, histories = joined(sources)
    options_used = {**asdict(config), **asdict(coding), **asdict(settings)}
    resumable = {k: v for k, v in options_used.items() if k not in ("epochs", "threads", "patience")}
    identity = {"model": name, "options": resumable, "data": [source.digest for source in sources]}
    progress.say(f"{len(catalog):,} items of {len(sources)} catalogs, {len(histories.rows):,} events; {options_used}")
    made_from = {"options": asdict(coding), "seed": settings.seed, "data": identity["data"]}
    ids = _semantic_ids(out, catalog, replace(coding, text_fields=TEXT), made_from, settings.seed, progress)
    other = assign_by(asked.catalog, ids.describer)
    progress.say(f"semantic ids of the training catalogs: {ids.report}\nof the tested one: {other.report}")

    def learnt(model: Any, part: Histories, where: str, **changes: Any) -> training.Position:
        directory = out / where
        return training.train(
            model,
            part,
            config=replace(settings, **changes),
            judge=None,
            directory=directory,
            identity={**identity, "part": where, **{k: v for k, v in changes.items() if k != "epochs"}},
            progress=progress,
            resume=resume and (directory / training.CHECKPOINT).exists(),
        )

    torch.manual_seed(settings.seed)
    model = maker(config, ids)
    sizes = [1 + len(sources[0].catalog), *(len(source.catalog) for source in sources[1:])]  # row 0 goes with the first
    untrained = model.over(other)  # what the architecture alone says, which learning has to beat
    model.groups.copy_(torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)))
    position = learnt(model, histories, "training")
    moved = model.over(other)
    n_items = len(asked.catalog)
    counted: list[Scorer] = [
        Random(n_items),
        Popular(older.histories, n_items),
        RepeatLast(n_items),
        TextNeighbours(other.vectors),
        Transitions(older.histories, n_items),
    ]
    scorers: list[Scorer] = [
        ParallelScorer(untrained, name=f"{name} untrained"),
        ParallelScorer(moved, name=f"{name} zero-shot"),
        ParallelScorer(moved.over(_silent(other)), name=f"{name} zero-shot, no text input"),
        ParallelScorer(moved.over(_shuffled(other, settings.seed)), name=f"{name} zero-shot, shuffled codes"),
    ]
    if after.tune_epochs:
        tuned = moved.over(other)
        learnt(tuned, older.histories, "tuning", epochs=after.tune_epochs, learning_rate=after.tune_rate)
        scorers.append(ParallelScorer(tuned, name=f"{name} tuned"))
    if after.scratch_epochs:
        torch.manual_seed(settings.seed)
        fresh = maker(config, other)
        learnt(fresh, older.histories, "scratch", epochs=after.scratch_epochs)
        scorers.append(ParallelScorer(fresh, name=f"{name} from nothing"))
    everyone = [*counted, *scorers]
    baselines = {scorer.name for scorer in counted}

    def compared(cases: Cases, judged: Sequence[Scorer]) -> comparison.Comparison:
        reports = [
            evaluate(scorer, cases, n_items=n_items, ks=KS, seen="kept", on_progress=progress.cases)
            for scorer in judged
        ]
        return comparison.beside(reports, baselines, headline=HEADLINE, seed=settings.seed)

    cases = last_events(asked)
    return Transferred(
        compared(cases, everyone),
        compared(without_repeats(cases), [WithoutLast(scorer) for scorer in everyone]),
        asked.digest,
        {
            "options": {**options_used, **asdict(after)},
            "training_minutes": round(position.seconds / 60, 2),
            "epochs": position.epoch,
            "codes_of_training": dict(ids.report),
            "codes_of_test": dict(other.report),
            "shared_codes": float(np.isin(other.table.codes[other.table.coded], ids.table.codes).mean()),
        },
    )


def _semantic_ids(
    out: Path, catalog: Catalog, config: SemanticIdConfig, made_from: Mapping[str, Any], seed: int, progress: Progress
) -> SemanticIds:
    """The semantic ids of the training catalogs, kept in `out`: reading fifty thousand texts takes minutes."""
    folder, label = out / "semantic_ids", out / "semantic_ids.json"
    if label.exists():
        before = json.loads(label.read_text())
        if before != json.loads(json.dumps(made_from)):
            raise CheckpointError(f"{out} holds a run of other options or data ({before}); name another one")
        return SemanticIds.load(folder)
    ids = assign(catalog, config, seed=seed, progress=progress)
    ids.save(folder)
    label.write_text(json.dumps(made_from))
    return ids


def _silent(ids: SemanticIds) -> SemanticIds:
    """The same codes with nothing said of any item beside them."""
    return replace(ids, vectors=np.zeros_like(ids.vectors))


def _shuffled(ids: SemanticIds, seed: int) -> SemanticIds:
    """The same codes, dealt out to other items."""
    codes, coded = ids.table.codes.copy(), np.flatnonzero(ids.table.coded)
    codes[coded] = codes[np.random.default_rng(seed).permutation(coded)]
    return replace(ids, table=CodeTable(codes, ids.table.vocabulary))
