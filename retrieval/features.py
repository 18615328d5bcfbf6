"""Features: what a ranker reads of a request and its candidates, declared once and computed by one function.

A `FeatureSet` stands in the manifest and says what there is: categories as codes, numbers with their transforms, and
the events of the history by behaviour. `FeatureTables` is that declaration over one edition of a catalog: everything
that depends on an item alone is looked up in it. `build` makes the arrays. Training and serving call the same `build`
with the same arguments, and no number in it depends on what else is in the batch, so they cannot drift apart.

Six arrays, of which a ranker's graph takes those that it names; M, F and S count columns:

    candidate_codes    int64    (B, C, Mc)    0 absent, then slots of hashed words, then words of the vocabulary
    candidate_numbers  float32  (B, C, Fc)    NaN absent
    request_codes      int64    (B, Mr)
    request_numbers    float32  (B, Fr)
    event_codes        int64    (B, L, S)     columns of `candidate_codes`, of the items of the history
    event_behaviours   int64    (B, L)        which behaviour an event stands for, from 1; 0 is padding

A new source of numbers is one function here, in `_PAIRS` or `_REQUESTS`.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.catalog import Catalog, Numbers, Tags, Words
from retrieval.errors import BundleForeign, BundleTorn, InvalidInput
from retrieval.inputs import Request
from retrieval.sequences import PAD_ROW, FloatArray, IntArray, window
from retrieval.statistics import Statistics
from retrieval.tasks import Task

RECENT = 10  # newest events that a candidate is held against
FOLLOWED = 5  # newest events whose followers are looked up
DECAY = 0.6  # weight of an event relative to the one after it, as followers were counted
AFFINITY_WORDS = 1024  # words of a column are folded to this many where an affinity is counted
CLIP = 8.0  # transformed numbers stay within
TRANSFORMS = ("none", "log1p")
ALL = "all"  # the behaviour of every event

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


@dataclass(frozen=True, slots=True)
class Category:
    """A categorical field: one column of codes, or several of an item with several words.

    Attributes:
        source: `id`, `attribute:NAME` or, of a request, `context:NAME`.
        known: words of the vocabulary: all items, the words of the column, or `words`.
        slots: codes for words outside the vocabulary, which are hashed.
        width: columns.
        words: the vocabulary of a context; of items the catalog holds it.
    """

    source: str
    known: int
    slots: int = 1
    width: int = 1
    words: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many codes there are, 0 (absent) included."""
        return 1 + self.slots + self.known

    def hashed(self, word: str) -> int:
        """The code of a word outside the vocabulary."""
        return 1 + zlib.crc32(word.encode()) % self.slots


@dataclass(frozen=True, slots=True)
class Number:
    """A numeric field.

    Attributes:
        source: `popularity`, `attribute:NAME`, `rate:TASK`, `value` (of an item); a key of `_PAIRS` (of a candidate in
            its request); or a key of `_REQUESTS`.
        transform: of `TRANSFORMS`.
        shift, scale: then x becomes (x - shift) / scale, within +-`CLIP`.
    """

    source: str
    transform: str = "none"
    shift: float = 0.0
    scale: float = 1.0

    def of(self, values: npt.NDArray[Any]) -> FloatArray:
        """float32, the same shape: transformed; NaN stays NaN."""
        x = np.asarray(values, dtype=np.float64)
        if self.transform == "log1p":
            x = np.log1p(np.maximum(x, 0.0))
        return np.clip((x - self.shift) / self.scale, -CLIP, CLIP).astype(np.float32)


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """What a ranker reads.

    Attributes:
        tasks: what is predicted; conditions on events, and the behaviours that `behaviours` names.
        candidate_codes, request_codes: categorical fields.
        candidate_numbers, request_numbers: numeric fields.
        event_fields: positions in `candidate_codes` of the fields that events carry.
        behaviours: `all` or names of tasks; code b is `behaviours[b - 1]`.
        windows: for each behaviour, how many of its newest events are read.
    """

    tasks: tuple[Task, ...]
    candidate_codes: tuple[Category, ...] = ()
    candidate_numbers: tuple[Number, ...] = ()
    request_codes: tuple[Category, ...] = ()
    request_numbers: tuple[Number, ...] = ()
    event_fields: tuple[int, ...] = ()
    behaviours: tuple[str, ...] = (ALL,)
    windows: tuple[int, ...] = (50,)

    def __post_init__(self) -> None:
        """Raises `InvalidInput` where the declaration contradicts itself."""
        names = [task.name for task in self.tasks]
        for number in (*self.candidate_numbers, *self.request_numbers):
            if number.transform not in TRANSFORMS or not number.scale > 0:
                raise InvalidInput(f"feature {number.source!r}: transform {number.transform!r}, scale {number.scale}")
        if not names or len({*names}) != len(names):
            raise InvalidInput(f"tasks {names} must be at least one, each of another name")
        if len(self.behaviours) != len(self.windows) or not {*self.behaviours} <= {ALL, *names}:
            raise InvalidInput(
                f"behaviours {self.behaviours} with windows {self.windows}: one window each, of a task or {ALL}"
            )

    @property
    def code_columns(self) -> tuple[int, ...]:
        """For each column of `candidate_codes`, the position of its field."""
        return tuple(at for at, category in enumerate(self.candidate_codes) for _ in range(category.width))

    @property
    def event_columns(self) -> tuple[int, ...]:
        """For each column of `event_codes`, its column in `candidate_codes`."""
        columns = self.code_columns
        return tuple(n for at in self.event_fields for n, field_ in enumerate(columns) if field_ == at)

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        return {**asdict(self), "tasks": [task.to_json() for task in self.tasks]}

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "FeatureSet":
        """From a manifest.

        Raises:
            BundleTorn: a field is missing or unknown.
        """
        try:
            return cls(
                tasks=tuple(Task.parse(task) for task in raw["tasks"]),
                candidate_codes=_categories(raw["candidate_codes"]),
                candidate_numbers=tuple(Number(**number) for number in raw["candidate_numbers"]),
                request_codes=_categories(raw["request_codes"]),
                request_numbers=tuple(Number(**number) for number in raw["request_numbers"]),
                event_fields=tuple(raw["event_fields"]),
                behaviours=tuple(raw["behaviours"]),
                windows=tuple(raw["windows"]),
            )
        except (KeyError, TypeError, InvalidInput) as error:
            raise BundleTorn(f"the manifest's features cannot be read ({error}); export the bundle again") from error


def _categories(raw: Sequence[Mapping[str, Any]]) -> tuple[Category, ...]:
    return tuple(Category(**{**one, "words": tuple(one.get("words", ()))}) for one in raw)


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTables:
    """A feature set over one edition of a catalog.

    Attributes:
        features: the declaration.
        statistics: what was counted in training.
        codes: int64, shape (N + 1, Mc): the items' codes.
        numbers: by source, float32 of shape (N + 1,): transformed numbers of items.
        raw: by column name, float64 of shape (N + 1,): numbers of items as they are, for `closeness`.
        words: by column name, int64 of shape (N + 1, W): the items' words folded to `AFFINITY_WORDS`, 0 absent.
        directions: float32, shape (N + 1, D): item vectors of length one, zero where there is none.
        context: for each field of `request_codes`, word -> code.
    """

    features: FeatureSet
    statistics: Statistics
    codes: IntArray
    numbers: Mapping[str, FloatArray]
    raw: Mapping[str, npt.NDArray[np.float64]]
    words: Mapping[str, IntArray]
    directions: FloatArray
    context: tuple[Mapping[str, int], ...] = field(default=())

    @classmethod
    def of(cls, features: FeatureSet, statistics: Statistics, catalog: Catalog, vectors: FloatArray) -> "FeatureTables":
        """The tables of a catalog.

        Args:
            vectors: float32, shape (N + 1, D), of the retriever.

        Raises:
            BundleForeign: the features name what this version or this catalog does not have.
        """
        columns = [_codes(category, catalog) for category in features.candidate_codes]
        codes = np.concatenate(columns, axis=1) if columns else np.zeros((len(catalog) + 1, 0), np.int64)
        lengths = np.sqrt(np.vecdot(vectors, vectors))[:, None]
        numbers: dict[str, FloatArray] = {}
        raw: dict[str, npt.NDArray[np.float64]] = {}
        words: dict[str, IntArray] = {}
        for number in features.candidate_numbers:
            kind, _, name = number.source.partition(":")
            if kind in _PAIRS:
                if kind == "closeness":
                    raw[name] = _numbers(name, catalog)
                if kind == "affinity":
                    words[name] = _words(name, catalog)
                continue
            numbers[number.source] = number.of(_of_items(kind, name, catalog, features, statistics))
        for number in features.request_numbers:
            if number.source.partition(":")[0] not in _REQUESTS:
                raise BundleForeign(_unknown(number.source, _REQUESTS))
        return cls(
            features,
            statistics,
            np.ascontiguousarray(codes),
            numbers,
            raw,
            words,
            np.ascontiguousarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32),
            tuple(
                {word: 1 + category.slots + at for at, word in enumerate(category.words)}
                for category in features.request_codes
            ),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """What the sources of numbers read.

    Attributes:
        rows: int64, shape (B, C), PAD_ROW where a list is shorter.
        recent: int64, shape (B, `RECENT`): rows of the newest events, the newest last, PAD_ROW before the first.
    """

    tables: FeatureTables
    candidates: Sequence[Candidates]
    rows: IntArray
    recent: IntArray


def build(
    tables: FeatureTables, candidates: Sequence[Candidates], names: Sequence[str] = ARRAYS
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a batch; see the module.

    Args:
        tables: of the catalog that the rows are of.
        candidates: B lists; C is the length of the longest, what is missing is PAD_ROW with absent numbers.
        names: the arrays that are wanted.
    """
    features, n = tables.features, max((len(one.rows) for one in candidates), default=0)
    rows = np.zeros((len(candidates), n), dtype=np.int64)
    for b, one in enumerate(candidates):
        rows[b, : len(one.rows)] = one.rows
    out: dict[str, npt.NDArray[Any]] = {}
    if "candidate_codes" in names:
        out["candidate_codes"] = tables.codes[rows]
    if "candidate_numbers" in names:
        recent = window([one.request.history.rows for one in candidates], length=RECENT, fill=PAD_ROW, dtype=np.int64)
        out["candidate_numbers"] = _candidate_numbers(_Batch(tables, candidates, rows, recent))
    if "request_codes" in names:
        out["request_codes"] = np.array(
            [
                [_context_code(tables, at, one.request) for at in range(len(features.request_codes))]
                for one in candidates
            ],
            dtype=np.int64,
        ).reshape(len(candidates), len(features.request_codes))
    if "request_numbers" in names:
        out["request_numbers"] = np.empty((len(candidates), len(features.request_numbers)), dtype=np.float32)
        for f, number in enumerate(features.request_numbers):
            kind, _, argument = number.source.partition(":")
            values = [_REQUESTS[kind](one.request, features, argument) for one in candidates]
            out["request_numbers"][:, f] = number.of(np.array(values))
    if "event_codes" in names or "event_behaviours" in names:
        events, behaviours = _events(features, candidates)
        out["event_codes"] = tables.codes[events][:, :, list(features.event_columns)]
        out["event_behaviours"] = behaviours
    return out


def _events(features: FeatureSet, candidates: Sequence[Candidates]) -> tuple[IntArray, IntArray]:
    """int64, shapes (B, L): rows and behaviours of the newest events of each behaviour; L is at least 1."""
    named = {task.name: task for task in features.tasks}
    rows: list[IntArray] = []
    kinds: list[IntArray] = []
    for one in candidates:
        history, parts, codes = one.request.history, [], []
        for code, (behaviour, length) in enumerate(zip(features.behaviours, features.windows, strict=True), start=1):
            own = history.rows if behaviour == ALL else history.rows[named[behaviour].holds(history)]
            own = own[max(0, len(own) - length) :]
            parts.append(own)
            codes.append(np.full(len(own), code, dtype=np.int64))
        rows.append(np.concatenate(parts))
        kinds.append(np.concatenate(codes))
    longest = max(1, max((len(own) for own in rows), default=1))
    return (
        window(rows, length=longest, fill=PAD_ROW, dtype=np.int64),
        window(kinds, length=longest, fill=0, dtype=np.int64),
    )


def _context_code(tables: FeatureTables, at: int, request: Request) -> int:
    category = tables.features.request_codes[at]
    name = category.source.partition(":")[2]
    word = request.words.get(name)
    if word is None:
        if name not in request.context:
            return 0
        word = f"{request.context[name]:g}"
    return tables.context[at].get(word) or category.hashed(word)


# Codes and numbers of items


def _codes(category: Category, catalog: Catalog) -> IntArray:
    """int64, shape (N + 1, width)."""
    kind, _, name = category.source.partition(":")
    out = np.zeros((len(catalog) + 1, category.width), dtype=np.int64)
    if kind == "id":
        known = min(category.known, len(catalog))
        out[1 : known + 1, 0] = category.slots + np.arange(1, known + 1)
        for row in range(known + 1, len(catalog) + 1):
            out[row, 0] = category.hashed(catalog.ids[row])
        return out
    if kind != "attribute":
        raise BundleForeign(_unknown(category.source, ("id", "attribute:NAME")))
    column = catalog.columns.get(name)
    if isinstance(column, Words):
        return _coded(category, column.vocabulary)[column.codes][:, None]
    if isinstance(column, Tags):
        return _tagged(column, _coded(category, column.vocabulary), category.width)
    raise BundleForeign(f"feature {category.source!r} wants words, which this catalog does not have under that name")


def _coded(category: Category, vocabulary: Sequence[str]) -> IntArray:
    """int64, shape (words + 1,): the code of each word; the last entry is that of no word."""
    codes = [1 + category.slots + at if at < category.known else category.hashed(w) for at, w in enumerate(vocabulary)]
    return np.array([*codes, 0], dtype=np.int64)


def _tagged(column: Tags, codes: IntArray, width: int) -> IntArray:
    """int64, shape (N + 1, width): the codes of each item's first words."""
    lengths = np.diff(column.offsets)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(rows)) - column.offsets[rows]
    kept = places < width
    out = np.zeros((len(lengths), width), dtype=np.int64)
    out[rows[kept], places[kept]] = codes[column.codes[kept]]
    return out


def _words(name: str, catalog: Catalog) -> IntArray:
    """int64, shape (N + 1, W): words of a column folded to 1 .. `AFFINITY_WORDS`."""
    match catalog.columns.get(name):
        case Words(codes, _):
            return np.where(codes < 0, 0, 1 + codes.astype(np.int64) % AFFINITY_WORDS)[:, None]
        case Tags() as column:
            folded = 1 + np.arange(len(column.vocabulary), dtype=np.int64) % AFFINITY_WORDS
            return _tagged(column, folded, max(1, int(np.diff(column.offsets).max())))
    raise BundleForeign(f"feature 'affinity:{name}' wants words, which this catalog does not have under that name")


def _numbers(name: str, catalog: Catalog) -> npt.NDArray[np.float64]:
    column = catalog.columns.get(name)
    if not isinstance(column, Numbers):
        raise BundleForeign(f"feature {name!r} wants numbers, which this catalog does not have under that name")
    return column.values


def _of_items(kind: str, name: str, catalog: Catalog, features: FeatureSet, statistics: Statistics) -> npt.NDArray[Any]:
    """shape (N + 1,): a number of each item; NaN at PAD_ROW and where there is none."""
    if kind == "popularity":
        return np.where(np.arange(len(catalog) + 1) == PAD_ROW, np.nan, catalog.popularity)
    if kind == "attribute":
        return _numbers(name, catalog)
    out = np.full(len(catalog) + 1, np.nan)
    if kind == "value":
        out[: len(statistics.values)] = statistics.values
        return out
    if kind == "rate":
        at = [task.name for task in features.tasks].index(name)
        out[: len(statistics.rates)] = statistics.rates[:, at]
        return out
    known = ("popularity", "attribute:NAME", "value", "rate:TASK", *_PAIRS)
    raise BundleForeign(_unknown(f"{kind}:{name}".rstrip(":"), known))


# Numbers of a candidate in its request. Every reduction runs over a fixed number of entries or over one request alone,
# so that a number is the same to the last bit whatever else is in the batch.


def _candidate_numbers(batch: _Batch) -> FloatArray:
    """float32, shape (B, C, F)."""
    tables = batch.tables
    numbers = tables.features.candidate_numbers
    out = np.empty((*batch.rows.shape, len(numbers)), dtype=np.float32)
    made: dict[str, Mapping[str, npt.NDArray[Any]]] = {}
    for f, number in enumerate(numbers):
        if number.source in tables.numbers:
            out[:, :, f] = tables.numbers[number.source][batch.rows]
            continue
        kind, _, argument = number.source.partition(":")
        key = (
            number.source if kind in ("closeness", "affinity") else kind
        )  # sources that make all their numbers at once
        if key not in made:
            made[key] = _PAIRS[kind](batch, argument)
        out[:, :, f] = number.of(made[key][argument])
    out[batch.rows == PAD_ROW] = np.nan
    return out


def _retrieval(batch: _Batch, _argument: str) -> Mapping[str, npt.NDArray[Any]]:
    """`score`; `share`, the logarithm of its softmax over the list; `rank`, from 0."""
    score = np.full(batch.rows.shape, np.nan)
    share, rank = score.copy(), score.copy()
    for b, one in enumerate(batch.candidates):
        scored = np.isfinite(one.scores)
        own = one.scores[scored].astype(np.float64)
        if len(own):
            places = np.flatnonzero(scored)
            score[b, places] = own
            share[b, places] = own - own.max() - np.log(np.exp(own - own.max()).sum())
            rank[b, places] = np.arange(len(places))
    return {"score": score, "share": share, "rank": rank}


def _transition(batch: _Batch, _argument: str) -> Mapping[str, npt.NDArray[Any]]:
    """How much the last events speak for a candidate: `1` the last one, `2` that before, ..., `all` decayed."""
    last = batch.recent[:, ::-1][:, :FOLLOWED]
    found = batch.tables.statistics.follow(last[:, :, None], batch.rows[:, None, :]).astype(np.float64)
    found[last == PAD_ROW] = 0.0
    every = np.zeros(batch.rows.shape)
    for place in range(FOLLOWED):
        every += DECAY**place * found[:, place]
    return {"all": every, **{str(place + 1): found[:, place] for place in range(FOLLOWED)}}


def _similarity(batch: _Batch, _argument: str) -> Mapping[str, npt.NDArray[Any]]:
    """Cosine to the item of the `last` event, and `max` and `mean` over the `RECENT` newest; NaN without an event."""
    directions = batch.tables.directions
    cosine = np.vecdot(directions[batch.rows][:, :, None, :], directions[batch.recent][:, None, :, :]).astype(
        np.float64
    )
    absent = np.broadcast_to((batch.recent == PAD_ROW)[:, None, :], cosine.shape)
    count = RECENT - absent.sum(axis=-1)
    empty = count == 0
    mean = np.where(absent, 0.0, cosine).sum(axis=-1) / np.maximum(count, 1)
    return {
        "last": np.where(empty, np.nan, cosine[:, :, -1]),
        "max": np.where(empty, np.nan, np.where(absent, -1.0, cosine).max(axis=-1)),
        "mean": np.where(empty, np.nan, mean),
    }


def _affinity(batch: _Batch, name: str) -> Mapping[str, npt.NDArray[Any]]:
    """Share of the events that carry a candidate's words, the mean over its words; NaN where either is bare."""
    words = batch.tables.words[name]
    counts = np.zeros((len(batch.candidates), AFFINITY_WORDS + 1))
    for b, one in enumerate(batch.candidates):
        newest = one.request.history.rows[-max(batch.tables.features.windows) :]
        if len(newest):
            counts[b] = np.bincount(words[newest].ravel(), minlength=AFFINITY_WORDS + 1) / len(newest)
    counts[:, 0] = 0.0
    own = words[batch.rows]  # (B, C, W)
    shares = counts[np.arange(len(own))[:, None, None], own]
    total = np.zeros(batch.rows.shape)
    for place in range(own.shape[2]):
        total += shares[:, :, place]
    bare = np.array([not len(one.request.history) for one in batch.candidates])[:, None]
    has = (own > 0).sum(axis=-1)
    return {name: np.where((has == 0) | bare, np.nan, total / np.maximum(has, 1))}


def _closeness(batch: _Batch, name: str) -> Mapping[str, npt.NDArray[Any]]:
    """Distance of a candidate's number from the mean of the newest `FOLLOWED` items; NaN where either is bare."""
    values = batch.tables.raw[name]
    newest = values[batch.recent[:, -FOLLOWED:]]
    known = np.isfinite(newest) & (batch.recent[:, -FOLLOWED:] != PAD_ROW)
    count = known.sum(axis=1)
    mean = np.where(known, newest, 0.0).sum(axis=1) / np.maximum(count, 1)
    return {name: np.abs(values[batch.rows] - np.where(count > 0, mean, np.nan)[:, None])}


_PAIRS: Mapping[str, Callable[[_Batch, str], Mapping[str, npt.NDArray[Any]]]] = {
    "retrieval": _retrieval,
    "transition": _transition,
    "similarity": _similarity,
    "affinity": _affinity,
    "closeness": _closeness,
}


# Numbers of a request


def _length(request: Request, _features: FeatureSet, _argument: str) -> float:
    return float(len(request.history))


def _recency(request: Request, _features: FeatureSet, _argument: str) -> float:
    """Seconds since the last event."""
    times = request.history.timestamps
    return request.time - float(times[-1]) if len(times) else np.nan


def _share(request: Request, features: FeatureSet, argument: str) -> float:
    """Share of the newest events that fulfil a task."""
    task = next(task for task in features.tasks if task.name == argument)
    holds = task.holds(request.history.newest(max(features.windows)))
    return float(np.count_nonzero(holds)) / len(holds) if len(holds) else np.nan


def _hour(request: Request, _features: FeatureSet, _argument: str) -> float:
    """Of the day, UTC."""
    return request.time % 86_400 / 3_600


def _weekday(request: Request, _features: FeatureSet, _argument: str) -> float:
    """0 is Monday, UTC."""
    return float(datetime.fromtimestamp(request.time, UTC).weekday())


def _context(request: Request, _features: FeatureSet, argument: str) -> float:
    return float(request.context.get(argument, np.nan))


_REQUESTS: Mapping[str, Callable[[Request, FeatureSet, str], float]] = {
    "length": _length,
    "recency": _recency,
    "share": _share,
    "hour": _hour,
    "weekday": _weekday,
    "context": _context,
}


def _unknown(source: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    return f"feature source {source!r} is unknown to this version, which computes {', '.join(known)}; upgrade it"
