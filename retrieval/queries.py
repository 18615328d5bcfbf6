"""What a recommender is asked and what it answers, whichever kind it is.

Nobody changes a query or an answer; `dataclasses.replace` makes another one. They are not frozen, because to make a
frozen one of ten fields takes 2 us instead of 0.3, and every request makes several.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from retrieval.filters import Eligible
from retrieval.inputs import Request
from retrieval.rules import NO_RULES, Rules
from retrieval.sequences import FloatArray, IntArray

EVERY_CANDIDATE = 1 << 31


def always() -> bool:
    """There is time: for callers without a deadline."""
    return True


def all_of_them() -> int:
    """There is time to rank any number of candidates: for callers without a deadline."""
    return EVERY_CANDIDATE


@dataclass(slots=True, eq=False)
class Query:
    """One question of a batch.

    Attributes:
        request: what there is to encode.
        k: how many items are wanted, at least 1.
        ahead: how many places behind those are filled too, as far as that takes no more work of a model; the first k
            are what they are without.
        eligible: the rows that may be returned.
        exclude: int64, shape (n,). Rows that may not: seen items and the filter's `exclude_ids`. Repeats and PAD_ROW do
            no harm.
        in_time: whether a generator may begin another step for this query. The core knows no clock; a caller with a
            deadline reads its own here. What was not generated in time is filled from the simpler recommenders.
        beams: M, how many prefixes a generator keeps; None means what the manifest says.
        rankable: for how many candidates there is time in the ranking stage, asked when that stage begins; 0 skips it.
        goals: weight of each task's probability in the score; empty means what the manifest says. Without effect where
            nothing ranks.
        rules: what the placement wants of the list beside good items.
    """

    request: Request
    k: int
    eligible: Eligible
    exclude: IntArray
    in_time: Callable[[], bool] = always
    ahead: int = 0
    beams: int | None = None
    rankable: Callable[[], int] = all_of_them
    goals: Mapping[str, float] = field(default_factory=dict)
    rules: Rules = NO_RULES

    @property
    def reachable(self) -> int:
        """How many items any answer can have: eligible and not excluded, at most `k`."""
        barred = np.unique(self.exclude)
        return min(self.k, self.eligible.count - int(np.count_nonzero(self.eligible.mask[barred])))


@dataclass(slots=True, eq=False)
class Answer:
    """What a query got: min(k, eligible and not excluded) rows, best first, and up to `ahead` behind them.

    Attributes:
        rows: int64, shape (K,), distinct.
        scores: float32, shape (K,). Falling within one source, equal ones in an order that is always the same; sources
            have scales of their own.
        sources: K names: `generated`, `retrieval`, `described`, `popular` or `similar`.
        exact: of the generated items, whether they are proven to be those that scoring every eligible item would have
            given, in this order; None where no generator had its say (it was late, or made no numbers of the history).
        steps: float32, shape (K, L): the share of each code in a generated item's score, NaN for items of other
            sources; None where nothing was generated.
        ranked: how many candidates the ranking stage put in order; None where there was no such stage to go through.
        ranker_error: why it put none in order, where it failed.
        tasks: float32, shape (K, T): calibrated probability of each task, NaN for items that were not ranked; None
            where nothing was.
        reasons: K words: `pinned`, `promoted` or `filled` for an item that a rule put where it is, else empty; no words
            at all where no rule was asked for.
        unmet: what the rules asked for and could not have, in words.
    """

    rows: IntArray
    scores: FloatArray
    sources: tuple[str, ...]
    exact: bool | None = None
    steps: FloatArray | None = None
    ranked: int | None = None
    ranker_error: Exception | None = None
    tasks: FloatArray | None = None
    reasons: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def of(cls, rows: IntArray, scores: FloatArray, source: str) -> "Answer":
        """An answer of one source."""
        return cls(rows, scores, (source,) * len(rows))

    def taken(self, places: IntArray) -> "Answer":
        """The items at some places of this answer, int64 of shape (n,), in their order."""
        at = places.tolist()
        return replace(
            self,
            rows=self.rows[places],
            scores=self.scores[places],
            sources=tuple(self.sources[n] for n in at),
            steps=None if self.steps is None else self.steps[places],
            tasks=None if self.tasks is None else self.tasks[places],
            reasons=tuple(self.reasons[n] for n in at) if self.reasons else (),
        )

    @property
    def source(self) -> str:
        """Where the first item came from; empty when there is none."""
        return self.sources[0] if self.sources else ""

    def followed_by(self, more: "Answer") -> "Answer":
        """This answer with the items of another one behind it."""
        if not len(more) and more.exact is None:
            return self
        if self is NOTHING:
            return more
        reasons: tuple[str, ...] = ()
        if self.reasons or more.reasons:
            reasons = (self.reasons or ("",) * len(self)) + (more.reasons or ("",) * len(more))
        return replace(
            self,
            rows=np.concatenate([self.rows, more.rows]),
            scores=np.concatenate([self.scores, more.scores]),
            sources=self.sources + more.sources,
            exact=more.exact if self.exact is None else self.exact,
            steps=_joined(self, self.steps, more, more.steps),
            ranked=more.ranked if self.ranked is None else self.ranked,
            ranker_error=self.ranker_error or more.ranker_error,
            tasks=_joined(self, self.tasks, more, more.tasks),
            reasons=reasons,
            unmet=self.unmet + more.unmet,
        )


def _joined(first: Answer, its: FloatArray | None, second: Answer, others: FloatArray | None) -> FloatArray | None:
    """Numbers of two answers' items behind each other, NaN where one of them has none; None where both have none."""
    known = its if its is not None else others
    if known is None:
        return None
    parts = ((first, its), (second, others))
    return np.concatenate(
        [np.full((len(a), known.shape[1]), np.nan, np.float32) if part is None else part for a, part in parts]
    )


NOTHING = Answer.of(np.zeros(0, np.int64), np.zeros(0, np.float32), "")


class Stage(Protocol):
    """How a caller times the stages: `with stage("encode"): ...`. The core knows no clock."""

    def __call__(self, name: str, /) -> AbstractContextManager[None]: ...


def NO_STAGES(_name: str, /) -> AbstractContextManager[None]:
    """Times nothing."""
    return nullcontext()


class Recommender(Protocol):
    """A batch of queries in, one answer each, in their order."""

    name: str

    def reads(self, request: Request, /) -> bool:
        """Whether the request holds anything that this recommender can start from."""
        ...

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:
        """One answer per query, in their order.

        Raises:
            EmptyHistory: a query that it cannot read.
        """
        ...


class Retriever(Recommender, Protocol):
    """A recommender that can score any items, not only those that it finds."""

    def rank(self, requests: Sequence[Request], rows: Sequence[IntArray]) -> list[FloatArray]:
        """Scores of given rows, by the same arithmetic as those of `recommend`.

        Args:
            requests: R requests, each of which it `reads`.
            rows: R arrays of catalog rows; repeats and PAD_ROW do no harm.

        Returns:
            R arrays, float32, of as many scores; -inf where nothing is known of a row (PAD_ROW, no code, no vector),
            NaN where the model made no number of the request.

        Raises:
            EmptyHistory: a request that it cannot read.
        """
        ...
