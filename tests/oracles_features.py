"""Features once more, one item, one event and one number at a time in plain Python, and random things to make them of.

Nothing of `retrieval/feature*.py` is used to judge it but the declaration.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from retrieval.catalog import Catalog, NewItem
from retrieval.features import Candidates, Category, FeatureSet, FeatureTables, Number
from retrieval.inputs import Request
from retrieval.sequences import History
from retrieval.statistics import Statistics
from retrieval.tasks import Task

TRAINED, LATER = 40, 4
GENRES = [f"genre {n}" for n in range(9)]
TASKS = (Task("click", event_type=2), Task("like", op=">=", value=4.0), Task("buy", event_type=3, op=">", value=1.0))
FEATURES = FeatureSet(
    tasks=TASKS,
    candidate_codes=(
        Category("id", TRAINED, slots=4),
        Category("attribute:genres", 7, slots=2, width=3),
        Category("attribute:maker", 5),
    ),
    candidate_numbers=tuple(
        Number(source, *how)
        for source, *how in (
            ("popularity", "log1p", 2.0, 1.5),
            ("attribute:year", "none", 1980.0, 20.0),
            ("value", "none", 3.0),
            *((f"rate:{task.name}",) for task in TASKS),
            ("retrieval:score", "none", 0.5, 2.0),
            ("retrieval:share", "none", -3.0, 3.0),
            ("retrieval:rank", "log1p", 2.0, 0.7),
            *((f"transition:{place}", "log1p") for place in ("all", 1, 2, 3, 4, 5)),
            *((f"similarity:{kind}",) for kind in ("last", "max", "mean")),
            ("affinity:genres",),
            ("affinity:maker", "log1p", 0.1, 0.3),
            ("closeness:year", "log1p", 1.0, 2.0),
            ("closeness:price",),
        )
    ),
    request_codes=(
        Category("context:gender", 2, words=("F", "M")),
        Category("context:age", 3, slots=3, words=("25", "35", "1234567")),
    ),
    request_numbers=(
        Number("length", "log1p", 2.0, 1.0),
        Number("recency", "log1p", 5.0, 3.0),
        *(Number(f"share:{task.name}") for task in TASKS),
        Number("hour", "none", 12.0, 7.0),
        Number("weekday"),
        Number("context:mood"),
    ),
    event_fields=(0, 1),
    behaviours=("all", "like", "click"),
    windows=(6, 3, 2),
)


@dataclass(frozen=True, slots=True)
class World:
    """A catalog and what was counted, as the code takes them and as plain values.

    Attributes:
        items: of each row, 0 too, what is known of it.
        popularity: of each row.
        follows: (before, after) -> weight.
        rates, values: of each trained row.
        vectors: of each row.
    """

    catalog: Catalog
    statistics: Statistics
    array: np.ndarray
    items: list[dict[str, Any]]
    popularity: list[float]
    follows: dict[tuple[int, int], float]
    rates: list[list[float]]
    values: list[float]
    vectors: list[list[float]]

    def tables(self, features: FeatureSet = FEATURES) -> FeatureTables:
        return FeatureTables.of(features, self.statistics, self.catalog, self.array)


def world(rng: np.random.Generator, width: int = 16) -> World:
    """Forty items that were trained, some bare of one thing or another, and four that came later."""
    n = TRAINED
    attributes = {
        "genres": [list(rng.choice(GENRES, rng.choice([0, 1, 2, 5]), replace=False)) for _ in range(n)],
        "maker": [None if rng.random() < 0.2 else f"maker {rng.integers(7)}" for _ in range(n)],
        "year": [None if rng.random() < 0.2 else float(rng.integers(1950, 2000)) for _ in range(n)],
        "price": [None if rng.random() < 0.5 else round(float(rng.random()), 2) for _ in range(n)],
    }
    attributes["genres"][0] = ["genre 0"]
    later = [
        NewItem("later 0", {"genres": ["genre 1", "never met"], "maker": "another", "year": 2001}),
        NewItem("later 1", {}),
        NewItem("later 2", {"genres": [f"word {w}" for w in range(30)], "price": 0.5}, popularity=3.0),
        NewItem("later 3", {"maker": "maker 1"}),
    ]
    first = Catalog.build(
        [f"i{row}" for row in range(1, n + 1)], popularity=rng.integers(0, 50, n), attributes=attributes
    )
    catalog = first.with_items(later)
    keys = np.sort(rng.choice((n + 1) ** 2, 400, replace=False))
    keys = keys[(keys % (n + 1) > 0) & (keys >= n + 1)]
    rates = rng.random((n + 1, len(TASKS))).astype(np.float32)
    values = rng.uniform(1, 5, n + 1).astype(np.float32)
    values[rng.random(n + 1) < 0.2] = np.nan
    rates[rng.random(n + 1) < 0.1] = np.nan
    weights = rng.random(len(keys)).astype(np.float32)
    vectors = rng.standard_normal((len(catalog) + 1, width)).astype(np.float32)
    vectors[[0, 7, n + 2]] = 0.0
    return World(
        catalog,
        Statistics(keys, weights, rates, values),
        vectors,
        [{}, *(catalog.attributes(row) for row in range(1, len(catalog) + 1))],
        catalog.popularity.tolist(),
        {divmod(key, n + 1): weight for key, weight in zip(keys.tolist(), weights.tolist(), strict=True)},
        rates.tolist(),
        values.tolist(),
        vectors.astype(np.float64).tolist(),
    )


def history(rng: np.random.Generator, length: int, size: int = TRAINED + LATER) -> History:
    """Random events of items 1 to `size`."""
    values = rng.integers(1, 6, length).astype(np.float32)
    values[rng.random(length) < 0.3] = np.nan
    times = np.sort(rng.uniform(1e9, 1.7e9, length))
    return History(rng.integers(1, size + 1, length), rng.integers(0, 4, length), values, times)


def candidates(rng: np.random.Generator, size: int = TRAINED + LATER, most: int = 30) -> Candidates:
    """A random request with a list of up to `most` items, some without a score."""
    n = int(rng.integers(1, most + 1))
    scores = -np.sort(-rng.normal(0, 3, n)).astype(np.float32)
    scores[rng.random(n) < 0.1] = rng.choice([np.nan, -np.inf])
    context = {} if rng.random() < 0.5 else {"mood": float(rng.normal()), "age": float(rng.choice([25, 1234567, 1.5]))}
    words = {} if rng.random() < 0.5 else {"gender": str(rng.choice(["F", "M", "other"]))}
    request = Request(
        history(rng, int(rng.choice([0, 1, 2, 12, 60])), size), 1.7e9 + rng.integers(10**7), context, words
    )
    return Candidates(request, rng.choice(size, n, replace=False) + 1, scores)


def transformed(number: Number, x: float) -> float:
    """What becomes of a number."""
    if math.isnan(x):
        return x
    if number.transform == "log1p":
        x = math.log1p(max(x, 0.0))
    return max(-8.0, min(8.0, (x - number.shift) / number.scale))


def events(one: Request) -> list[tuple[int, int, float]]:
    """The newest 500 events as (row, type, value)."""
    h = one.history
    return list(zip(h.rows.tolist(), h.event_types.tolist(), h.values.tolist(), strict=True))[-500:]


def fulfils(task: Task, event: tuple[int, int, float]) -> bool:
    """Whether an event is one of a task of `TASKS`."""
    of_type = task.event_type is None or event[1] == task.event_type
    return of_type and (task.op is None or (event[2] >= task.value if task.op == ">=" else event[2] > task.value))


def of_candidate(of: World, source: str, one: Candidates, place: int, reach: int = 6) -> float:
    """One number of one candidate, before its transform."""
    kind, _, part = source.partition(":")
    row, newest = int(one.rows[place]), events(one.request)
    seen, item = [event[0] for event in newest], of.items[int(one.rows[place])]
    if not row:
        return math.nan
    match kind:
        case "popularity":
            return of.popularity[row]
        case "attribute":
            return float(item.get(part, math.nan))
        case "value":
            return of.values[row] if row <= TRAINED else math.nan
        case "rate":
            return of.rates[row][[task.name for task in TASKS].index(part)] if row <= TRAINED else math.nan
        case "retrieval":
            return _retrieval(part, [float(score) for score in one.scores], place)
        case "transition":
            votes = [of.follows.get((before, row), 0.0) for before in seen[::-1][:5]] + [0.0] * 5
            return sum(0.6**n * vote for n, vote in enumerate(votes)) if part == "all" else votes[int(part) - 1]
        case "similarity":
            cosines = [_cosine(of.vectors[row], of.vectors[other]) for other in seen[-10:]]
            if not cosines:
                return math.nan
            return {"last": cosines[-1], "max": max(cosines), "mean": sum(cosines) / len(cosines)}[part]
        case "affinity":
            own = _words(of, row, part)
            if not own or not seen:
                return math.nan
            carried = [_words(of, other, part) for other in seen[-reach:]]
            return sum(sum(words.count(word) for words in carried) / len(carried) for word in own) / len(own)
        case "closeness":
            known = [of.items[other][part] for other in seen[-5:] if part in of.items[other]]
            return abs(item[part] - sum(known) / len(known)) if known and part in item else math.nan
    raise AssertionError(source)


def _words(of: World, row: int, name: str) -> list[str]:
    words = of.items[row].get(name, [])
    return [words] if isinstance(words, str) else words[:16]


def _cosine(a: Sequence[float], b: Sequence[float]) -> float:
    lengths = math.dist(a, [0.0] * len(a)) * math.dist(b, [0.0] * len(b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def _retrieval(part: str, scores: list[float], place: int) -> float:
    known = [score for score in scores if math.isfinite(score)]
    if not math.isfinite(scores[place]):
        return math.nan
    if part == "rank":
        return float(sum(math.isfinite(score) for score in scores[:place]))
    largest = max(known)
    total = math.log(sum(math.exp(score - largest) for score in known))
    return scores[place] if part == "score" else scores[place] - largest - total


def of_request(source: str, request: Request, reach: int = 6) -> float:
    """One number of a request, before its transform."""
    kind, _, part = source.partition(":")
    newest = events(request)
    moment = datetime.fromtimestamp(request.time, UTC)
    match kind:
        case "length":
            return float(len(newest))
        case "recency":
            return request.time - float(request.history.timestamps[-1]) if newest else math.nan
        case "share":
            task = next(task for task in TASKS if task.name == part)
            own = [fulfils(task, event) for event in newest[-reach:]]
            return sum(own) / len(own) if own else math.nan
        case "hour":
            return moment.hour + moment.minute / 60 + (moment.second + moment.microsecond / 1e6) / 3600
        case "weekday":
            return float(moment.weekday())
        case "context":
            return request.context.get(part, math.nan)
    raise AssertionError(source)


def code(category: Category, word: str, vocabulary: Sequence[str]) -> int:
    """The code of a word."""
    if word in vocabulary[: category.known]:
        return 1 + category.slots + vocabulary.index(word)
    return 1 + zlib.crc32(word.encode()) % category.slots


def of_item(of: World, category: Category, row: int) -> list[int]:
    """The codes of an item in one field."""
    name = category.source.partition(":")[2]
    if not row:
        own = []
    elif category.source == "id":
        own = [code(category, of.catalog.ids[row], of.catalog.ids[1:])]
    else:
        words = of.items[row].get(name, [])
        vocabulary = of.catalog.columns[name].vocabulary
        own = [code(category, word, vocabulary) for word in ([words] if isinstance(words, str) else words)]
    return (own + [0] * category.width)[: category.width]
