"""Two stages: many candidates in, few in the right order out, and the placement's rules on top."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from retrieval.arrangement import Arranger
from retrieval.features import Candidates
from retrieval.inputs import Request
from retrieval.queries import NO_STAGES, Answer, Query, Recommender, Stage
from retrieval.ranking import CANDIDATES, Ranker
from retrieval.rules import NO_RULES
from retrieval.sequences import FloatArray

POPULAR = "popular"


class TwoStage:
    """Candidates from one recommender, put in order by a ranker and arranged by rules.

    Only the first `Query.rankable` candidates are ranked; those behind them keep their places. Where nothing retrieves
    (a history of which nothing is known) what is popular is not ranked either: the ranker never saw such lists. A
    ranker that fails leaves all of a batch in the order in which they were found, and the answers carry its error.

    Args:
        first: finds the candidates.
        ranker: orders them; None leaves them as they were found.
        arranger: carries the rules out.
    """

    def __init__(self, first: Recommender, ranker: Ranker | None, arranger: Arranger) -> None:
        self.name = first.name
        self.first, self.ranker, self._arranger = first, ranker, arranger

    def reads(self, request: Request, /) -> bool:
        """See `Recommender`."""
        return self.first.reads(request)

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:
        """See `Recommender`."""
        if self.ranker is None and all(query.rules == NO_RULES for query in queries):
            return self.first.recommend(queries, stage)
        found = self.first.recommend([self._widened(query) for query in queries], stage)
        if self.ranker is not None:
            with stage("rank"):
                found = self._ranked(self.ranker, queries, found)
        if all(
            query.rules == NO_RULES and len(answer) <= query.k for query, answer in zip(queries, found, strict=True)
        ):
            return found
        with stage("arrange"):
            return self._arranger.arrange(queries, found)

    def _widened(self, query: Query) -> Query:
        if self.ranker is not None:
            return replace(query, k=max(query.k, self.ranker.settings.candidates))
        return query if query.rules == NO_RULES else replace(query, k=max(query.k, CANDIDATES))

    def _ranked(self, ranker: Ranker, queries: Sequence[Query], found: Sequence[Answer]) -> list[Answer]:
        answers = list(found)
        lists: dict[int, Candidates] = {}
        for b, (query, answer) in enumerate(zip(queries, found, strict=True)):
            reach = min(len(answer), max(0, query.rankable()))
            popular = np.array([source == POPULAR for source in answer.sources[:reach]], dtype=np.bool_)
            if popular.all():
                reach = 0
            answers[b] = replace(answer, ranked=reach)
            if reach:
                scores = np.where(popular, np.float32(np.nan), answer.scores[:reach])
                lists[b] = Candidates(query.request, answer.rows[:reach], scores)
        try:
            said = ranker.rank(list(lists.values())) if lists else []
        except Exception as error:  # whatever it is, a list in the order found is better than none
            return [replace(answer, ranked=0, ranker_error=error) for answer in found]
        for b, probabilities in zip(lists, said, strict=True):
            answers[b] = _ordered(
                answers[b], probabilities, ranker.settings.weights(queries[b].goals or ranker.settings.goals)
            )
        return answers


def _ordered(answer: Answer, probabilities: FloatArray, weights: FloatArray) -> Answer:
    """An answer with its first items in the order of their scores, equal ones as they were found."""
    reach = len(probabilities)
    scores = np.vecdot(probabilities, weights)
    tasks = np.full((len(answer), len(weights)), np.nan, dtype=np.float32)
    tasks[:reach] = probabilities
    # Scores must fall along the list: what was not ranked goes on below what was, by as little as it fell before.
    rest = answer.scores[reach:]
    every = np.concatenate([scores, rest - rest[:1] + scores.min() - 1e-6 if len(rest) else rest]).astype(np.float32)
    places = np.concatenate([np.argsort(-scores, kind="stable"), np.arange(reach, len(answer))])
    return replace(answer, scores=every, tasks=tasks).taken(places)
