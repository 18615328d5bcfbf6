"""Tasks: what a user may do with an item, as conditions on events.

`like: value >= 4` is two things at once: the label that a ranker learns to predict, and a behaviour that splits a
history into what was liked and what was not.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retrieval.errors import BundleTorn, InvalidInput
from retrieval.sequences import BoolArray, History

COMPARE = {">=": np.greater_equal, ">": np.greater, "<=": np.less_equal, "<": np.less, "==": np.equal}


@dataclass(frozen=True, slots=True)
class Task:
    """One thing that may happen.

    Attributes:
        name: of the label, for goals and metrics.
        event_type: code of the bundle's vocabulary; None means any type.
        op: a key of `COMPARE`; None means any value.
        value: what an event's value is compared with; an event without one fulfils nothing.
    """

    name: str
    event_type: int | None = None
    op: str | None = None
    value: float = math.nan

    def __post_init__(self) -> None:
        """Raises `InvalidInput` where there is no such event or comparison."""
        if not self.name or (self.event_type is not None and not 0 <= int(self.event_type) == self.event_type):
            raise InvalidInput(
                f"task {self.name!r} is of event type {self.event_type}; a name and a code of 0 or more are needed"
            )
        if self.op is not None and (self.op not in COMPARE or not math.isfinite(self.value)):
            known = ", ".join(COMPARE)
            raise InvalidInput(
                f"task {self.name!r} compares by {self.op!r} with {self.value}; use one of {known} and a number"
            )

    def holds(self, history: History) -> BoolArray:
        """bool, shape (n,): the events that fulfil it."""
        fits = np.ones(len(history), dtype=np.bool_)
        if self.event_type is not None:
            fits &= history.event_types == self.event_type
        if self.op is not None:
            fits &= COMPARE[self.op](history.values, np.float32(self.value))
        return fits

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        return {name: value for name, value in asdict(self).items() if value is not None and value == value}

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Task":
        """From a manifest.

        Raises:
            BundleTorn: a field is missing, unknown or out of range.
        """
        try:
            return cls(**raw)
        except (TypeError, ValueError, InvalidInput) as error:
            raise BundleTorn(f"a task of the manifest cannot be read ({error}); export the bundle again") from error
