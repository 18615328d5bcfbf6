"""Two stages: many candidates in, few in the right order out, and the placement's rules on top."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from retrieval.arrangement import Arranger
from retrieval.errors import BundleTorn, InvalidRule
from retrieval.features import Candidates
from retrieval.inputs import Request
from retrieval.queries import NO_STAGES, Answer, Query, Recommender, Retriever, Stage, all_of_them
from retrieval.ranking import CANDIDATES, Ranker
from retrieval.rules import NO_RULES, Rules
from retrieval.sequences import PAD_ROW, FloatArray, IntArray

POPULAR = "popular"
RANK, ARRANGE = "rank", "arrange"  # stages


class TwoStage:
    """Candidates from one recommender, put in order by a ranker and arranged by rules.

    Only the first `Query.rankable` candidates are ranked; those behind them keep their places. Where nothing retrieves
    (a history of which nothing is known) what is popular is not ranked either: the ranker never saw such lists. A
    ranker that fails leaves the lists that it was given in the order in which they were found, and those answers carry
    its error; where its numbers for a list are none, that list alone.

    A caller with a clock may walk the three steps of `recommend` by itself: `find`, `order`, `arrange`.

    Args:
        first: finds the candidates.
        ranker: orders them; None leaves them as they were found.
        arranger: carries the rules out.
    """

    def __init__(self, first: Recommender, ranker: Ranker | None, arranger: Arranger) -> None:
        self.name = first.name
        self.first, self.ranker, self.arranger = first, ranker, arranger

    def check(self, goals: Mapping[str, float], rules: Rules = NO_RULES) -> None:
        """Refuses goals and rules that mean nothing here.

        Raises:
            InvalidRule: a goal that is no task, or a rule that speaks of what the catalog does not have.
        """
        if goals and self.ranker is None:
            raise InvalidRule(f"goals ({', '.join(goals)}) weigh what a ranker predicts, and this bundle has none")
        if goals and self.ranker is not None:
            self.ranker.settings.weights(goals)
        if rules != NO_RULES:
            self.arranger.check(rules)

    def reads(self, request: Request, /) -> bool:
        """See `Recommender`."""
        return self.first.reads(request)

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:
        """See `Recommender`."""
        return self.arrange(queries, self.order(queries, self.find(queries, stage), stage), stage)

    def find(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:
        """Candidates, best first: as many as are wanted, as the ranker reads or as the rules choose from."""
        if self.ranker is None and all(map(_has_no_rules, queries)):
            return self.first.recommend(queries, stage)
        return self.first.recommend([self._widened(query) for query in queries], stage)

    def order(self, queries: Sequence[Query], found: list[Answer], stage: Stage = NO_STAGES) -> list[Answer]:
        """The candidates in the order of the ranker, if there is one."""
        return found if self.ranker is None else order(self.ranker, queries, found, stage)

    def arrange(self, queries: Sequence[Query], answers: list[Answer], stage: Stage = NO_STAGES) -> list[Answer]:
        """Of the candidates those that are shown."""
        pairs = zip(queries, answers, strict=True)
        if all([_has_no_rules(q) and len(answer.rows) <= q.k + q.ahead for q, answer in pairs]):
            return answers
        with stage(ARRANGE):
            return self.arranger.arrange(queries, answers)

    def _widened(self, query: Query) -> Query:
        if self.ranker is None and _has_no_rules(query):
            return query
        k = max(query.k, CANDIDATES if self.ranker is None else self.ranker.settings.candidates)
        # Of more candidates rules would make another list. A ranker leaves what lies behind its own where it is.
        return replace(query, k=k, ahead=0 if query.rules != NO_RULES else max(0, query.k + query.ahead - k))


def _has_no_rules(query: Query) -> bool:
    return query.rules is NO_RULES or query.rules == NO_RULES


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """A caller's own candidates, to be put in order.

    Attributes:
        request: for whom.
        rows: int64, shape (n,): distinct, and PAD_ROW for each unknown item.
        goals, rankable: see `Query`.
    """

    request: Request
    rows: IntArray
    goals: Mapping[str, float] = field(default_factory=dict)
    rankable: Callable[[], int] = all_of_them


def score(retriever: Retriever, given: Sequence[Given], source: str) -> list[Answer]:
    """Given items in the order of a retriever.

    Args:
        retriever: reads each of the requests.
        given: B lists.
        source: what to call the retriever.

    Returns:
        B answers of the rows that are not PAD_ROW. Scores are -inf where the retriever has none for an item, and NaN
        where it made no number of the request.

    Raises:
        EmptyHistory: a request that the retriever cannot read.
    """
    answers = []
    every = retriever.rank([one.request for one in given], [one.rows for one in given])
    for one, scores in zip(given, every, strict=True):
        places = np.flatnonzero(one.rows != PAD_ROW)
        places = places[np.argsort(-scores[places], kind="stable")]
        answers.append(Answer.of(one.rows[places], scores[places], source))
    return answers


def within_reach(ranker: Ranker, one: Query | Given, found: Answer) -> int:
    """How many of the items found a ranker is meant to read: all but those that only lie ahead."""
    return min(len(found), max(one.k, ranker.settings.candidates)) if isinstance(one, Query) else len(found)


def order(
    ranker: Ranker, asked: Sequence[Query | Given], found: Sequence[Answer], stage: Stage = NO_STAGES
) -> list[Answer]:
    """What was found for some queries or lists in the order of a ranker; see `TwoStage`."""
    with stage(RANK):
        return _ranked(ranker, asked, found)


def _ranked(ranker: Ranker, asked: Sequence[Query | Given], found: Sequence[Answer]) -> list[Answer]:
    answers = list(found)
    lists: dict[int, Candidates] = {}
    for b, (one, answer) in enumerate(zip(asked, found, strict=True)):
        reach = min(within_reach(ranker, one, answer), max(0, one.rankable()))
        popular = np.array([source == POPULAR for source in answer.sources[:reach]], dtype=np.bool_)
        if popular.all() or np.isnan(answer.scores).any():
            reach = 0
        answers[b] = replace(answer, ranked=reach)
        if reach:
            scores = np.where(popular, np.float32(np.nan), answer.scores[:reach])
            lists[b] = Candidates(one.request, answer.rows[:reach], scores)
    try:
        said = ranker.rank(list(lists.values())) if lists else []
    except Exception as error:  # whatever it is, a list in the order found is better than none
        for b in lists:
            answers[b] = replace(found[b], ranked=0, ranker_error=error)
        return answers
    settings = ranker.settings
    for b, probabilities in zip(lists, said, strict=True):
        if np.isfinite(probabilities).all():
            weights = settings.weights(asked[b].goals or settings.goals)
            answers[b] = _ordered(answers[b], probabilities, weights)
        else:
            none = BundleTorn("the ranker gave numbers that are none; export the bundle again")
            answers[b] = replace(found[b], ranked=0, ranker_error=none)
    return answers


def _ordered(answer: Answer, probabilities: FloatArray, weights: FloatArray) -> Answer:
    """An answer with its first items in the order of their scores, equal ones as they were found."""
    reach = len(probabilities)
    scores = np.vecdot(probabilities, weights)
    tasks = np.full((len(answer), len(weights)), np.nan, dtype=np.float32)
    tasks[:reach] = probabilities
    # Scores must not rise along the list: what was not ranked goes on below what was, falling by as much as it fell
    # before, and not at all where another source with a scale of its own begins.
    rest = np.minimum.accumulate(answer.scores[reach:])
    if len(rest) and np.isfinite(rest[0]):
        rest = scores.min() - 1e-6 + (rest - rest[0])
    every = np.concatenate([scores, rest]).astype(np.float32)
    places = np.concatenate([np.argsort(-scores, kind="stable"), np.arange(reach, len(answer))])
    return replace(answer, scores=every, tasks=tasks).taken(places)
