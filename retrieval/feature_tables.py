"""Feature tables: a declaration over one edition of a catalog, with all that depends on an item alone looked up."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.catalog import Catalog, Numbers, Tags, Words
from retrieval.errors import BundleForeign
from retrieval.feature_set import Category, FeatureSet, Number
from retrieval.feature_sources import AFFINITY_WORDS, PAIRS, REQUESTS, Lookups
from retrieval.sequences import PAD_ROW, FloatArray, IntArray
from retrieval.statistics import Statistics

ITEMS = ("popularity", "attribute:NAME", "value", "rate:TASK")  # sources of numbers of an item
WORDS = 16  # of an item, that an affinity looks at: an item may have hundreds, and every request would pay for them


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTables:
    """A feature set over one edition of a catalog.

    Attributes:
        features: the declaration.
        statistics: what was counted in training.
        codes: int64, shape (N + 1, Mc): the items' codes.
        event_codes: int64, shape (N + 1, S): those of them that events carry.
        numbers: float32, shape (N + 1, n): transformed numbers of items, NaN for PAD_ROW.
        number_columns: n places of these among the numbers of candidates.
        pairs: the others, by source and column: their places, parts and transforms.
        lookups: what those are computed from.
        context: for each field of `request_codes`, word -> code.
    """

    features: FeatureSet
    statistics: Statistics
    codes: IntArray
    event_codes: IntArray
    numbers: FloatArray
    number_columns: tuple[int, ...]
    pairs: Mapping[tuple[str, str], Sequence[tuple[int, str, Number]]]
    lookups: Lookups
    context: tuple[Mapping[str, int], ...]

    @classmethod
    def of(cls, features: FeatureSet, statistics: Statistics, catalog: Catalog, vectors: FloatArray) -> "FeatureTables":
        """The tables of a catalog.

        Args:
            features: what a ranker reads.
            statistics: of at most as many items as the catalog has.
            catalog: one edition.
            vectors: float32, shape (N + 1, D), of the retriever.

        Raises:
            BundleForeign: the features name what this version or this catalog does not have; or statistics or vectors
                are of another catalog or of other tasks.
        """
        size = len(catalog) + 1
        rows, tasks = statistics.rates.shape
        if len(vectors) != size or rows > size or tasks != len(features.tasks):
            raise BundleForeign(
                f"{len(vectors)} vectors, and statistics of {rows} rows and {tasks} tasks, do not fit {size} rows of a "
                f"catalog and {len(features.tasks)} tasks; they come from different trainings, export the bundle again"
            )
        numbers: list[FloatArray] = []
        columns: list[int] = []
        pairs: dict[tuple[str, str], list[tuple[int, str, Number]]] = {}
        for at, number in enumerate(features.candidate_numbers):
            kind, _, name = number.source.partition(":")
            if kind not in PAIRS:
                columns.append(at)
                numbers.append(number.of(_of_items(number.source, catalog, features, statistics)))
            elif not PAIRS[kind].parts:
                pairs.setdefault((kind, name), []).append((at, name, number))
            elif name in PAIRS[kind].parts:
                pairs.setdefault((kind, ""), []).append((at, name, number))
            else:
                raise BundleForeign(_unknown(number.source, [f"{kind}:{part}" for part in PAIRS[kind].parts]))
        _check_requests(features)
        codes = _side_by_side([_codes(category, catalog) for category in features.candidate_codes], size, np.int64)
        lengths = np.sqrt(np.vecdot(vectors, vectors))[:, None]
        item_numbers = _side_by_side([column[:, None] for column in numbers], size, np.float32)
        item_numbers[PAD_ROW] = np.nan
        return cls(
            features=features,
            statistics=statistics,
            codes=codes,
            event_codes=np.ascontiguousarray(codes[:, list(features.event_columns)]),
            numbers=item_numbers,
            number_columns=tuple(columns),
            pairs=pairs,
            lookups=Lookups(
                statistics,
                np.ascontiguousarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32),
                {name: _words(name, catalog) for kind, name in pairs if PAIRS[kind].column == "words"},
                {name: _numbers(name, catalog) for kind, name in pairs if PAIRS[kind].column == "numbers"},
            ),
            context=tuple(
                {word: 1 + category.slots + at for at, word in enumerate(category.words)}
                for category in features.request_codes
            ),
        )


def _check_requests(features: FeatureSet) -> None:
    for number in features.request_numbers:
        kind, _, name = number.source.partition(":")
        if kind not in REQUESTS:
            raise BundleForeign(_unknown(number.source, REQUESTS))
        if kind == "share" and features.task(name) is None:
            raise BundleForeign(_unknown(number.source, [f"share:{task.name}" for task in features.tasks]))
    for category in features.request_codes:
        if not category.source.startswith("context:"):
            raise BundleForeign(_unknown(category.source, ["context:NAME"]))


def _side_by_side(parts: Sequence[npt.NDArray[np.generic]], size: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Shape (size, columns of all parts), in C order."""
    return np.ascontiguousarray(np.concatenate([np.zeros((size, 0), dtype), *parts], axis=1), dtype=dtype)


def _codes(category: Category, catalog: Catalog) -> IntArray:
    """int64, shape (N + 1, width)."""
    kind, _, name = category.source.partition(":")
    out = np.zeros((len(catalog) + 1, category.width), dtype=np.int64)
    if category.source == "id":
        known = min(category.known, len(catalog))
        out[1 : known + 1, 0] = category.slots + np.arange(1, known + 1)
        for row in range(known + 1, len(catalog) + 1):
            out[row, 0] = category.hashed(catalog.ids[row])
        return out
    if kind != "attribute":
        raise BundleForeign(_unknown(category.source, ["id", "attribute:NAME"]))
    column = _wordy(category.source, name, catalog)
    coded = [
        1 + category.slots + n if n < category.known else category.hashed(w) for n, w in enumerate(column.vocabulary)
    ]
    return _placed(column, np.array([*coded, 0], dtype=np.int64), category.width)


def _words(name: str, catalog: Catalog) -> IntArray:
    """int64, shape (N + 1, W): the first words of each item, folded to 1 .. `AFFINITY_WORDS`."""
    column = _wordy(f"affinity:{name}", name, catalog)
    folded = np.append(1 + np.arange(len(column.vocabulary), dtype=np.int64) % AFFINITY_WORDS, 0)
    longest = int(np.diff(column.offsets).max()) if isinstance(column, Tags) else 1
    return _placed(column, folded, max(1, min(WORDS, longest)))


def _placed(column: Words | Tags, codes: IntArray, width: int) -> IntArray:
    """int64, shape (N + 1, width): the codes of each item's first words.

    Args:
        column: N + 1 entries.
        codes: int64, shape (words + 1,): of each word of the vocabulary; the last entry is that of no word, 0.
        width: how many of its words are kept.
    """
    if isinstance(column, Words):
        out = np.zeros((len(column.codes), width), dtype=np.int64)
        out[:, 0] = codes[column.codes]
        return out
    lengths = np.diff(column.offsets)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(rows)) - column.offsets[rows]
    kept = places < width
    out = np.zeros((len(lengths), width), dtype=np.int64)
    out[rows[kept], places[kept]] = codes[column.codes[kept]]
    return out


def _of_items(source: str, catalog: Catalog, features: FeatureSet, statistics: Statistics) -> npt.NDArray[np.float64]:
    """float64, shape (N + 1,): a number of each item; NaN where there is none."""
    kind, _, name = source.partition(":")
    out = np.full(len(catalog) + 1, np.nan)
    names = [task.name for task in features.tasks]
    if source == "popularity":
        out[:] = catalog.popularity
    elif source == "value":
        out[: len(statistics.values)] = statistics.values
    elif kind == "attribute":
        out[:] = _numbers(name, catalog)
    elif kind == "rate" and name in names:
        out[: len(statistics.rates)] = statistics.rates[:, names.index(name)]
    else:
        raise BundleForeign(_unknown(source, [*ITEMS, *PAIRS]))
    return out


def _numbers(name: str, catalog: Catalog) -> npt.NDArray[np.float64]:
    column = catalog.columns.get(name)
    if not isinstance(column, Numbers):
        raise BundleForeign(f"a feature wants numbers {name!r}, which this catalog does not have under that name")
    return column.values


def _wordy(source: str, name: str, catalog: Catalog) -> Words | Tags:
    column = catalog.columns.get(name)
    if not isinstance(column, Words | Tags):
        raise BundleForeign(f"feature {source!r} wants words, which this catalog does not have under that name")
    return column


def _unknown(source: str, known: Iterable[str]) -> str:
    return f"feature source {source!r} is unknown to this version, which computes {', '.join(known)}; upgrade it"
