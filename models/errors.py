"""What the workshop can refuse.

SequiturError
├── DataError            an event log that cannot be used as it stands
│   ├── UnknownLayout    no layout of this name
│   ├── MissingData      a file or directory that is not there, or not there once
│   ├── UnreadableData   a file that is not what its name or its layout says
│   ├── MissingColumn    a required column is absent
│   ├── BadRow           a row breaks a rule, and bad rows were not to be skipped
│   ├── EmptyLog         nothing is left to learn from
│   ├── ImpressionsInvalid  a log that does not say what was shown where
│   └── OrderOnly        times were asked of a log that knows only an order
├── TrainingError        a run that cannot start or go on
│   ├── UnknownModel     no model of this name
│   ├── InvalidOption    an option that the model or the training does not know, or a value out of its range
│   ├── MissingLibrary   what a model is made with is not installed
│   ├── CheckpointError  a checkpoint that is missing, torn or of another run
│   └── Diverged         the loss is not a number any more
├── OffPolicyError       a log of decisions from which another policy cannot be judged
│   ├── InvalidPropensity  a propensity that is not in (0, 1]
│   ├── InvalidPolicy    probabilities of actions that are none
│   ├── InvalidReward    a reward, logged or predicted, that is not a finite number
│   ├── LengthMismatch   arrays that do not describe the same rows
│   └── NoOverlap        the judged policy would have done nothing of what was logged
├── VictimError          a service that cannot be copied: not ours, or it does not answer
└── ExportError          the graph and the model do not agree

An error carries data and a stable `code`; its message names the value, the rule and the remedy.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from retrieval.errors import SequiturError


class DataError(SequiturError):
    """An event log that cannot be used as it stands."""

    code = "data_invalid"


class UnknownLayout(DataError):
    """A layout name that is not in the table."""

    code = "layout_unknown"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"layout {name!r} is not known; the known ones are {', '.join(sorted(known))}")
        self.name = name


class MissingData(DataError):
    """A file or directory is not there, or several could be meant."""

    code = "data_missing"


class UnreadableData(DataError):
    """A file whose bytes are not what its name or its layout says."""

    code = "data_unreadable"


class MissingColumn(DataError):
    """A file lacks a column that its layout requires."""

    code = "column_missing"

    def __init__(self, file: Path, missing: Sequence[str], found: Sequence[str]) -> None:
        super().__init__(
            f"{file}: column {', '.join(missing)} is required and not there; found {', '.join(found) or 'no column'}. "
            "Rename the column in the header, or choose the layout that the file is in"
        )
        self.file, self.missing, self.found = file, tuple(missing), tuple(found)


class BadRow(DataError):
    """A row breaks a rule and `--on-bad-row` is `fail`."""

    code = "bad_row"

    def __init__(self, place: str, value: str, reason: str, rule: str, *, count: int, rows_read: int) -> None:
        more = f"{count} bad rows" if count > 1 else "1 bad row"
        super().__init__(
            f"{place}: {reason}: {value}; {rule}. Correct the row, or leave such rows out with --on-bad-row skip "
            f"({more} in the first {rows_read:,} rows)"
        )
        self.place, self.value, self.reason, self.count = place, value, reason, count


class EmptyLog(DataError):
    """No event is there, or none is left."""

    code = "log_empty"


class ImpressionsInvalid(DataError):
    """A log that says nothing of what was shown, or not in which list and at which place."""

    code = "impressions_invalid"


class OrderOnly(DataError):
    """Times were asked of a log that knows only the order of each user's events."""

    code = "log_order_only"


class TrainingError(SequiturError):
    """A training run that cannot start or go on."""

    code = "training_failed"


class UnknownModel(TrainingError):
    """A model name that no file registers."""

    code = "model_unknown"


class InvalidOption(TrainingError):
    """An option that nobody knows, or a value out of its range."""

    code = "option_invalid"


class MissingLibrary(TrainingError):
    """A library that a model is made with cannot be loaded."""

    code = "library_missing"


class CheckpointError(TrainingError):
    """A checkpoint that is missing, torn, or of another run."""

    code = "checkpoint_invalid"


class Diverged(TrainingError):
    """The loss is not a finite number any more."""

    code = "diverged"


class OffPolicyError(SequiturError):
    """A log of decisions from which another policy cannot be judged."""

    code = "off_policy_invalid"


class InvalidPropensity(OffPolicyError):
    """A propensity that is not in (0, 1], so its action cannot have been logged with it."""

    code = "propensity_invalid"


class InvalidPolicy(OffPolicyError):
    """Probabilities that are negative, NaN or do not sum to 1, or an action without one."""

    code = "policy_invalid"


class InvalidReward(OffPolicyError):
    """A reward, logged or predicted, that is not a finite number."""

    code = "reward_invalid"


class LengthMismatch(OffPolicyError):
    """Arrays that do not describe the same rows."""

    code = "length_mismatch"


class NoOverlap(OffPolicyError):
    """The judged policy would have done nothing of what was logged."""

    code = "no_overlap"


class VictimError(SequiturError):
    """A service that cannot be copied: it is on another machine, or does not answer."""

    code = "victim_refused"


class ExportError(SequiturError):
    """The exported graph does not compute what the model computes."""

    code = "export_failed"
