"""What a model may learn from, and what it is asked afterwards.

A case is one question: this history, what came next? Cases point into the histories they were cut from, so a split of
a million events copies nothing but the training part.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.errors import OrderOnly
from models.histories import Histories
from retrieval.errors import InvalidInput
from retrieval.sequences import BoolArray, History, IntArray

LEAVE_ONE_OUT_EVENTS = 3  # the fewest events of a user who has one for each of train, validation and test


@dataclass(frozen=True, eq=False)
class Cases:
    """C questions with known answers.

    Attributes:
        source: the histories that the positions below point into.
        starts, ends: int64, shape (C,). The history of a case is the events from `starts` to before `ends`.
        train_ends: int64, shape (C,). Up to here the history belongs to the training part.
        targets: int64, shape (C,). Row of the event at `ends`.
        times: float64, shape (C,). When that event happened: the moment for which the answer is wanted.
        users: int64, shape (C,). Index into the source; resampling goes by user.
        words: where the cases come from, for reports.
    """

    source: Histories
    starts: IntArray
    ends: IntArray
    train_ends: IntArray
    targets: IntArray
    times: npt.NDArray[np.float64]
    users: IntArray
    words: str

    def __len__(self) -> int:
        return len(self.targets)

    def history(self, case: int) -> History:
        """What came before the target: views, no copies."""
        return self.source.span(int(self.starts[case]), int(self.ends[case]))

    def histories(self, start: int, end: int) -> list[History]:
        """The histories of the cases from `start` to before `end`."""
        return [self.history(case) for case in range(start, min(end, len(self)))]

    def sample(self, n: int, *, seed: int) -> "Cases":
        """At most n cases drawn without replacement, in their order."""
        if n >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False))
        taken = {name: getattr(self, name)[chosen] for name in ("starts", "ends", "train_ends", "targets", "times")}
        return replace(self, **taken, users=self.users[chosen], words=f"{self.words}, {n:,} drawn with seed {seed}")

    @classmethod
    def at(cls, source: Histories, events: IntArray, *, train_ends: IntArray, words: str) -> "Cases":
        """The cases whose targets are these events.

        Args:
            source: where they are.
            events: int64, shape (C,). Positions in `source.rows`.
            train_ends: int64, shape (C,).
            words: see the attribute.
        """
        users = np.searchsorted(source.offsets, events, side="right") - 1
        starts = source.offsets[users]
        return cls(
            source, starts, events, train_ends, source.rows[events], source.timestamps[events], users, words=words
        )


@dataclass(frozen=True, eq=False)
class Split:
    """Training histories, validation cases and test cases.

    Attributes:
        train: what models, baselines and popularity may learn from. Holds every user, some perhaps without event.
        validation, test: see `Cases`.
        train_only_users: users too short to ask about (leave-one-out).
        cold_cases: events after the cuts that nothing precedes, so that nothing can be asked about them (temporal).
    """

    train: Histories
    validation: Cases
    test: Cases
    train_only_users: int = 0
    cold_cases: int = 0


def leave_one_out(histories: Histories) -> Split:
    """The last event of each user as test, the one before as validation, the rest for training.

    The history of a test case includes the validation event. Users with fewer than three events only train.

    Raises:
        InvalidInput: no user has three events.

    Source:
        Kang and McAuley (2018), "Self-Attentive Sequential Recommendation", section IV-A.
    """
    ends = histories.offsets[1:][histories.lengths() >= LEAVE_ONE_OUT_EVENTS]
    if not len(ends):
        raise InvalidInput(
            f"none of {len(histories)} users has {LEAVE_ONE_OUT_EVENTS} events, so nothing can be held out; "
            "bring a longer log or split by time"
        )
    kept = np.ones(len(histories.rows), dtype=np.bool_)
    kept[ends - 1] = kept[ends - 2] = False
    return Split(
        train=histories.keep(kept),
        validation=Cases.at(histories, ends - 2, train_ends=ends - 2, words="leave-one-out, last but one event"),
        test=Cases.at(histories, ends - 1, train_ends=ends - 2, words="leave-one-out, last event"),
        train_only_users=len(histories) - len(ends),
    )


def temporal(
    histories: Histories,
    *,
    valid_share: float = 0.1,
    test_share: float = 0.1,
    targets: Literal["first", "all"] = "first",
) -> Split:
    """The newest events of the whole log as test, those before as validation, the rest for training.

    Both cuts are moments; nothing from after a moment is learnt from before it. A case's history is all that its user
    did before the target, also what happened after the cut: the service would know it too.

    Args:
        histories: with times.
        valid_share: share of all events between the two cuts.
        test_share: share of all events after the second.
        targets: `first` asks about each user's first event after a cut that has a past, `all` about every such one.

    Raises:
        OrderOnly: the log knows no times.
        InvalidInput: shares outside (0, 1), or a part would be empty because too many events share a moment.

    Source:
        Meng et al. (2020), "Exploring Data Splitting Strategies for the Evaluation of Recommendation Models",
        section 3.
    """
    if histories.ordered_only:
        raise OrderOnly("this log knows only the order of each user's events, so it has no time to split at; use loo")
    if min(valid_share, test_share) <= 0 or valid_share + test_share >= 1:
        raise InvalidInput(f"shares {valid_share} and {test_share} must be positive and leave something to train on")
    times = histories.timestamps
    first_cut, second_cut = np.quantile(times, [1 - valid_share - test_share, 1 - test_share], method="higher")
    train = times < first_cut
    valid = (times >= first_cut) & (times < second_cut)
    test = times >= second_cut
    if not (train.any() and valid.any() and test.any()):
        raise InvalidInput(
            f"cutting {len(times)} events at {first_cut:.0f} s and {second_cut:.0f} s leaves a part empty; "
            "choose other shares or use loo"
        )
    positions = np.arange(len(times))
    starts = np.repeat(histories.offsets[:-1], histories.lengths())
    before_cut = np.concatenate([[0], np.cumsum(train)])
    train_ends = starts + before_cut[np.repeat(histories.offsets[1:], histories.lengths())] - before_cut[starts]

    def cases(part: BoolArray, name: str) -> tuple[Cases, int]:
        asked = part & (positions > starts)
        words = f"global time split, every event in the {name} part"
        if targets == "first":
            asked[1:] &= ~asked[:-1]  # an event that can be asked about follows another of its own user, if any
            words = f"global time split, each user's first event with a past in the {name} part"
        events = np.flatnonzero(asked)
        cold = int((part & (positions == starts)).sum())
        return Cases.at(histories, events, train_ends=train_ends[events], words=words), cold

    validation, cold_validation = cases(valid, "validation")
    asked, cold_test = cases(test, "test")
    return Split(histories.keep(train), validation, asked, cold_cases=cold_validation + cold_test)
