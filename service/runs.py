"""What the worker threads run: lists for a batch of requests, or scores for the candidates that callers brought.

Two runs are equal where they would do the same, and the questions of equal runs travel together.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from retrieval.dense import DESCRIBED
from retrieval.queries import Answer, Query, Retriever, Stage
from retrieval.ranking import Ranker
from retrieval.two_stage import POPULAR, RANK, Given, TwoStage, order, score, within_reach
from service.ladder import TimeLeft
from service.pace import Pace
from service.settings import RANKING_SHARE

_log = logging.getLogger(__name__)

GENERATED = "generated"
RETRIEVED = "retrieval"
FULL, SHORT, LATE, FAILED = "full", "short", "late", "failed"  # what became of a ranking
Clock = Callable[[], float]
Q = TypeVar("Q", Query, Given)


@dataclass(slots=True, eq=False)
class Asked(Generic[Q]):
    """One question of a batch, and the time it has. Not frozen for the reason that is given in `retrieval.queries`."""

    what: Q
    time_left: TimeLeft


@dataclass(slots=True, eq=False)
class Listed:
    """An answer, and how it came about. Not frozen, like a question.

    Attributes:
        answer: what is shown.
        is_own: whether the model had its say, and it is not only what stands in where it has none.
        ranking: what became of the ranking; None where there was nothing to rank, or nothing that ranks.
    """

    answer: Answer
    is_own: bool
    ranking: str | None = None


@dataclass(slots=True)
class Listing:
    """Finds, ranks and arranges. Not frozen, like a question.

    Attributes:
        composed: does the work.
        source: what its model calls its own items.
        pace: of ranking.
        clock: seconds from some fixed moment.
    """

    composed: TwoStage
    source: str
    pace: Pace
    clock: Clock

    def __call__(self, questions: Sequence[Asked[Query]], stage: Stage) -> list[Listed]:
        """One list for each question."""
        queries = [one.what for one in questions]
        found = self.composed.find(queries, stage)
        ordered, outcomes = _order(self.composed.ranker, questions, found, stage, self.pace, self.clock)
        answers = self.composed.arrange(queries, ordered, stage)
        own = [self._is_own(answer) for answer in found]
        return [*map(Listed, answers, own, outcomes)]

    def _is_own(self, found: Answer) -> bool:
        """A generator is silent about exactness only where it failed or ran out of time; where nothing that has a code
        may be shown, it knows so. For a query embedding that is not finite there is nothing but popular items."""
        if self.source == GENERATED:
            has_say = found.exact is not None
        else:
            has_say = self.source in found.sources or DESCRIBED in found.sources
        return has_say or not len(found)


@dataclass(frozen=True, slots=True)
class Scoring:
    """Puts given candidates in order.

    Attributes:
        retriever: scores them.
        ranker: orders them by tasks; None leaves them in the order of their scores.
        source, pace, clock: see `Listing`.
    """

    retriever: Retriever
    ranker: Ranker | None
    source: str
    pace: Pace
    clock: Clock

    def __call__(self, questions: Sequence[Asked[Given]], stage: Stage) -> list[Listed]:
        """Every candidate that the catalog knows, for each question."""
        with stage(RANK):
            found = score(self.retriever, [one.what for one in questions], self.source)
        ordered, outcomes = _order(self.ranker, questions, found, stage, self.pace, self.clock)
        own = [not np.isnan(answer.scores).any() for answer in found]
        return [Listed(*one) for one in zip(ordered, own, outcomes, strict=True)]


def _order(
    ranker: Ranker | None, questions: Sequence[Asked[Q]], found: list[Answer], stage: Stage, pace: Pace, clock: Clock
) -> tuple[list[Answer], Sequence[str | None]]:
    """Found candidates in order, as many of them as there is time for, and what became of each list."""
    if ranker is None:
        return found, [None] * len(found)

    def rankable(time_left: TimeLeft) -> Callable[[], int]:
        return lambda: pace.affordable(RANKING_SHARE * time_left(), len(questions))

    started = clock()
    asked = [replace(one.what, rankable=rankable(one.time_left)) for one in questions]
    ordered = order(ranker, asked, found, stage)
    errors = {id(answer.ranker_error): answer.ranker_error for answer in ordered if answer.ranker_error is not None}
    for error in errors.values():
        _log.error("the ranker failed", exc_info=error)
    if not errors:
        pace.learn(sum(answer.ranked or 0 for answer in ordered), clock() - started)
    reaches = [within_reach(ranker, *one) for one in zip(asked, found, strict=True)]
    return ordered, [_outcome(*one) for one in zip(found, ordered, reaches, strict=True)]


def _outcome(found: Answer, ordered: Answer, reach: int) -> str | None:
    if ordered.ranker_error is not None:
        return FAILED
    if not len(found) or found.source == POPULAR:
        return None
    if not ordered.ranked:
        return LATE
    return FULL if ordered.ranked == reach else SHORT
