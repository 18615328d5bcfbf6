"""Which features a ranker reads, declared from what a log and its catalog hold.

What is not there is not declared: no hour where a log knows only the order, no rates of tasks that every event
fulfils, no affinity to categories that nobody gave.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl

from models.histories import Histories
from models.lists import Arrays, Lists
from retrieval.catalog import Catalog, Column, Numbers, Tags, Words
from retrieval.errors import InvalidInput
from retrieval.features import ALL, FOLLOWED, Category, FeatureSet, FeatureTables, Number, spelt
from retrieval.sequences import FloatArray
from retrieval.statistics import Statistics
from retrieval.tasks import Task

MOST_WORDS = 1000  # a column of more words has them hashed, or is no category at all
MOST_TAGS = 8  # of one item
ID_SLOTS = 16  # for items that come after training
WORD_SLOTS = 4  # for words that come after training
WINDOW, TASK_WINDOW = 50, 20  # newest events of the history, and of those that fulfil a task
PLACES = 3  # newest events whose followers are numbers of their own
NO_CATEGORIES = ("title", "image")
_UNCLIPPED = 2.0**60  # a scale under which no number reaches the clip; a power of two loses no digit


def declare(
    catalog: Catalog, histories: Histories, tasks: Sequence[Task], users: pl.DataFrame | None = None
) -> FeatureSet:
    """The features of a ranker, not yet standardised.

    Args:
        catalog: its items.
        histories: the training part.
        tasks: what is predicted.
        users: `user_id` and what is known of each user. Columns of few values become categories, numbers of many
            values stay numbers, words of many values are left out.
    """
    # A task that every event fulfils says nothing when it is counted among events.
    conditions = tuple(task.name for task in tasks if task.op is not None or task.event_type is not None)
    fields = [
        Category("id", len(catalog), ID_SLOTS),
        *(found for name, column in catalog.columns.items() if (found := _category(name, column, len(catalog)))),
    ]
    candidate_codes = tuple(fields)
    described = [category.source.partition(":")[2] for category in fields[1:]]
    measured = [
        name
        for name, column in catalog.columns.items()
        if isinstance(column, Numbers) and np.isfinite(column.values).any()
    ]
    candidate_numbers = [
        Number("retrieval:score"),
        Number("retrieval:share"),
        Number("retrieval:rank", "log1p"),
        Number("popularity", "log1p"),
        Number("transition:all", "log1p"),
        *(Number(f"transition:{place}", "log1p") for place in range(1, min(PLACES, FOLLOWED) + 1)),
        *(Number(f"similarity:{kind}") for kind in ("last", "max", "mean")),
        *(Number(f"affinity:{name}") for name in described),
        *(Number(f"{kind}:{name}") for name in measured for kind in ("attribute", "closeness")),
        *([Number("value")] if np.isfinite(histories.values).any() else []),
        *(Number(f"rate:{name}") for name in conditions),
    ]
    request_numbers = [
        Number("length", "log1p"),
        *([] if histories.ordered_only else [Number("recency", "log1p"), Number("hour")]),
        *(Number(f"share:{name}") for name in conditions),
    ]
    request_codes: list[Category] = []
    for column in [] if users is None else users.drop("user_id").get_columns():
        vocabulary = _vocabulary(column)
        if 0 < len(vocabulary) <= MOST_WORDS:
            request_codes.append(
                Category(f"context:{column.name}", len(vocabulary), WORD_SLOTS, words=tuple(vocabulary))
            )
        elif vocabulary and column.dtype.is_numeric():
            request_numbers.append(Number(f"context:{column.name}"))
    return FeatureSet(
        tasks=tuple(tasks),
        candidate_codes=candidate_codes,
        candidate_numbers=tuple(candidate_numbers),
        request_codes=tuple(request_codes),
        request_numbers=tuple(request_numbers),
        event_fields=tuple(range(min(2, len(candidate_codes)))),
        behaviours=(ALL, *conditions),
        windows=(WINDOW, *[TASK_WINDOW] * len(conditions)),
    )


def standardised(
    features: FeatureSet, statistics: Statistics, catalog: Catalog, vectors: FloatArray, sample: Lists
) -> FeatureSet:
    """The same features with every number shifted and scaled to mean 0 and deviation 1 over sample lists.

    Numbers that are absent count for nothing; one that never varies is shifted alone.

    Args:
        features: as `declare` makes them; what they said of shift and scale is forgotten.
        statistics, catalog, vectors: what the numbers are looked up in; see `FeatureTables.of`.
        sample: lists of the training part; a thousand are plenty.

    Raises:
        InvalidInput: there is no list.
    """
    if not len(sample):
        raise InvalidInput("there is no list to measure features on; no user could be asked about")
    bare = replace(
        features,
        candidate_numbers=tuple(_unclipped(number) for number in features.candidate_numbers),
        request_numbers=tuple(_unclipped(number) for number in features.request_numbers),
    )
    tables = FeatureTables.of(bare, statistics, catalog, vectors)
    feeds = Arrays.of(tables, sample, ("candidate_numbers", "request_numbers")).feeds
    return replace(
        features,
        candidate_numbers=_fitted(features.candidate_numbers, feeds["candidate_numbers"]),
        request_numbers=_fitted(features.request_numbers, feeds["request_numbers"]),
    )


def word(value: object) -> str:
    """How a value of a user is spelt in vocabularies and in requests: whole numbers without a point."""
    return spelt(value) if isinstance(value, int | float) else str(value)


def _category(name: str, column: Column, n_items: int) -> Category | None:
    """The field of a column; None where its words are no categories."""
    source = f"attribute:{name}"
    if isinstance(column, Tags) and column.vocabulary:
        n = len(column.vocabulary)
        width = int(np.quantile(np.diff(column.offsets)[1:], 0.95, method="inverted_cdf"))
        width = min(max(width, 1), MOST_TAGS)
        return (
            Category(source, n, WORD_SLOTS, width) if n <= MOST_WORDS else Category(source, 0, MOST_WORDS, width=width)
        )
    if isinstance(column, Words) and name not in NO_CATEGORIES:
        n = len(column.vocabulary)
        return Category(source, n, WORD_SLOTS) if 0 < n <= min(MOST_WORDS, n_items / 2) else None
    return None


def _vocabulary(column: pl.Series) -> list[str]:
    """The words of a column, the most frequent first, equal ones in the order of the alphabet."""
    if column.dtype.is_nested():
        return []
    words = pl.Series([word(value) for value in column.drop_nulls()], dtype=pl.String)
    counted = words.value_counts(name="n").sort(["n", words.name], descending=[True, False])
    return list(counted[words.name])


def _unclipped(number: Number) -> Number:
    return replace(number, shift=0.0, scale=_UNCLIPPED)


def _fitted(numbers: Sequence[Number], made: npt.NDArray[np.float32]) -> tuple[Number, ...]:
    """The numbers with shift and scale from the last axis of what was made without any."""
    out = []
    for f, number in enumerate(numbers):
        x = made[..., f].astype(np.float64) * _UNCLIPPED
        x = x[np.isfinite(x)]
        scale = float(x.std()) if len(x) else 0.0
        shift = float(x.mean()) if len(x) else 0.0
        out.append(replace(number, shift=shift, scale=scale if scale >= 1e-6 else 1.0))
    return tuple(out)
