"""The declaration of features: what a ranker reads, as it stands in the manifest of its bundle."""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.errors import BundleTorn, InvalidInput
from retrieval.sequences import FloatArray
from retrieval.tasks import Task

REACH = 500  # newest events of a history that features see, in training and in serving: stores forget older ones
CLIP = 8.0  # transformed numbers stay within
TRANSFORMS = ("none", "log1p")
ALL = "all"  # the behaviour of every event


def spelt(value: float) -> str:
    """How a number is spelt where it stands for a word: 25 as "25"."""
    return f"{value:.15g}"


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

    def __post_init__(self) -> None:
        """Raises `InvalidInput` where there is no room for a code."""
        if self.known < 0 or self.slots < 1 or self.width < 1:
            raise InvalidInput(
                f"feature {self.source!r} has {self.known} words, {self.slots} slots and {self.width} columns; "
                "at least 0, 1 and 1 are needed"
            )

    @property
    def size(self) -> int:
        """How many codes there are, 0 (absent) included."""
        return 1 + self.slots + self.known

    def hashed(self, word: str) -> int:
        """The code of a word outside the vocabulary: the same in every process."""
        return 1 + zlib.crc32(word.encode()) % self.slots


@dataclass(frozen=True, slots=True)
class Number:
    """A numeric field.

    Attributes:
        source: `popularity`, `attribute:NAME`, `rate:TASK`, `value` (of an item); a key of
            `retrieval.feature_sources.PAIRS` (of a candidate in its request); or one of `REQUESTS` there.
        transform: of `TRANSFORMS`.
        shift, scale: then x becomes (x - shift) / scale, within +-`CLIP`.
    """

    source: str
    transform: str = "none"
    shift: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        """Raises `InvalidInput` where there is no such transform."""
        if self.transform not in TRANSFORMS or not math.isfinite(self.shift) or not 0 < self.scale < math.inf:
            raise InvalidInput(
                f"feature {self.source!r} has transform {self.transform!r}, shift {self.shift} and scale {self.scale}; "
                f"one of {', '.join(TRANSFORMS)}, a finite shift and a scale above 0 are needed"
            )

    def of(self, values: npt.ArrayLike) -> FloatArray:
        """float32, the same shape: transformed; NaN stays NaN."""
        # A copy in C order, because NumPy's logarithms round differently where they walk backwards through memory.
        x = np.array(values, dtype=np.float64, order="C")
        if self.transform == "log1p":
            x = np.log1p(np.maximum(x, 0.0))
        if (self.shift, self.scale) != (0.0, 1.0):
            x -= self.shift
            x /= self.scale
        np.maximum(x, -CLIP, out=x)
        return np.minimum(x, CLIP, out=x).astype(np.float32)


@dataclass(frozen=True, slots=True)
class FeatureSet:
    """What a ranker reads.

    Attributes:
        tasks: what is predicted; conditions on events, and the behaviours that `behaviours` names.
        candidate_codes, request_codes: categorical fields.
        candidate_numbers, request_numbers: numeric fields.
        event_fields: positions in `candidate_codes` of the fields that events carry.
        behaviours: `all` or names of tasks; code b is `behaviours[b - 1]`.
        windows: for each behaviour, how many of its newest events are read, from the newest `REACH` of all.
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
        if not names or len({*names, ALL}) != len(names) + 1:
            raise InvalidInput(f"tasks {names} must be at least one, each of another name, and none called {ALL!r}")
        if (
            not self.behaviours
            or len(self.behaviours) != len(self.windows)
            or not {*self.behaviours} <= {ALL, *names}
            or not all(1 <= length <= REACH for length in self.windows)
        ):
            raise InvalidInput(
                f"behaviours {self.behaviours} with windows {self.windows}: at least one, each a task or {ALL!r}, and "
                f"for each a window of 1 to {REACH} were expected"
            )
        if not {*self.event_fields} <= {*range(len(self.candidate_codes))}:
            raise InvalidInput(
                f"event fields {self.event_fields} are no positions among {len(self.candidate_codes)} candidate codes"
            )
        for category in self.request_codes:
            if category.width != 1 or category.known != len(category.words):
                raise InvalidInput(
                    f"feature {category.source!r} lists {len(category.words)} words for {category.known} codes in "
                    f"{category.width} columns; a request has one column, and a code for each word that is listed"
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

    def task(self, name: str) -> Task | None:
        """The task of that name; None where there is none."""
        return next((task for task in self.tasks if task.name == name), None)

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        return {**asdict(self), "tasks": [task.to_json() for task in self.tasks]}

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "FeatureSet":
        """From a manifest.

        Raises:
            BundleTorn: a field is missing, unknown or out of range.
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
        except (KeyError, TypeError, AttributeError, InvalidInput) as error:
            raise BundleTorn(f"the manifest's features cannot be read ({error}); export the bundle again") from error


def _categories(raw: Sequence[Mapping[str, Any]]) -> tuple[Category, ...]:
    return tuple(Category(**{**one, "words": tuple(one.get("words", ()))}) for one in raw)
