"""The story of one request, from a validated body to an answer.

Read `Pipeline.recommend` from top to bottom. Whatever can be answered by something simpler is, and says so (see
`ladder`); only overload, a filter that cannot mean anything and a deadline with nothing to show are errors.
"""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from retrieval.filters import Filter
from retrieval.inputs import Request
from retrieval.ranking import Ranker
from retrieval.recommenders import Answer, Query, Retriever, Served
from retrieval.sequences import EMPTY, PAD_ROW, IntArray
from retrieval.two_stage import Given
from service import metrics
from service.answers import (
    Explanation,
    RankedItem,
    Ranking,
    RankingAnswer,
    RecommendationAnswer,
    RecommendedItem,
    ServedModel,
    SimilarAnswer,
)
from service.attribution import new_id
from service.batching import Pool, Run
from service.budgets import Budgets
from service.cards import Cards
from service.errors import DeadlineExceeded
from service.journal import Journal, ServedList
from service.keys import Key
from service.ladder import Call, Rung, TimeLeft, climb_down
from service.pace import Pace
from service.pages import Pages, encoded
from service.permits import Permits, Unlimited
from service.placements import Placements, Wanted
from service.questions import STORE_AWAY, Questions, filter_of, joined, request_of, rows_of
from service.runs import FULL, GENERATED, RETRIEVED, Asked, Listed, Listing, Scoring
from service.schemas import RankingRequest, RecommendationRequest
from service.sessions import FrozenList
from service.settings import GENERATIVE_SHARE, RESERVE_SHARE
from service.timing import Timings
from service.variants import Variants

Q = TypeVar("Q", Query, Given)
RANKED = "ranked"


class Pipeline:
    """Answers recommendations from the bundles that are served.

    Args:
        variants: which of them answers; what it serves may be replaced at any time, and a request keeps what it began
            with.
        questions: reads bodies.
        placements: what is wanted of lists beside good items.
        pools: `encoder` and `generator`: each carries the work of one in a thread of its own.
        permits: shared with everything else that works on requests; None: nobody gets the answers, and nothing of them
            is counted or kept.
        pages: keeps what follows the first page of a list.
        budgets: of query sequences, by API key.
        journal: keeps what was served.
        clock: seconds from some fixed moment; deadlines and timings.

    Attributes:
        offer: hears of every list that was made; None: nobody does.
    """

    def __init__(
        self,
        variants: Variants,
        *,
        questions: Questions,
        placements: Placements,
        pools: Mapping[str, Pool],
        permits: Permits | None,
        pages: Pages,
        budgets: Budgets,
        journal: Journal,
        clock: Callable[[], float],
    ) -> None:
        self._variants = variants
        self._questions = questions
        self._placements = placements
        self._pools = pools
        self._permits = Unlimited() if permits is None else permits
        self._is_counted = permits is not None
        self._pages = pages
        self._budgets = budgets
        self._journal = journal
        self._clock = clock
        self.offer: Callable[[RecommendationRequest, RecommendationAnswer], None] | None = None
        self._pace = Pace(clock)

    async def recommend(
        self, asked: RecommendationRequest, *, arrived: float, caller: Key | None = None, has_pages: bool = True
    ) -> RecommendationAnswer:
        """Recommendations for one request.

        Args:
            asked: the validated body.
            arrived: on the pipeline's clock, when the request's first byte did.
            caller: whose budget it counts against; None: nobody's.
            has_pages: whether to keep what follows the list, where there is consent.

        Raises:
            Overloaded: no permit or no room in the queue.
            BudgetExhausted: the caller has asked about too many histories today, and this is another one.
            InvalidFilter, InvalidRule, InvalidRequest: the request cannot mean anything for this bundle.
            DeadlineExceeded: out of time with nothing to show.
        """
        with self._permits.hold(is_checked=True):
            variant = self._variants.choose(asked)
            call = self._questions.call(asked, variant, arrived=arrived, is_counted=self._is_counted)
            served, timings = call.served, call.timings

            wanted = self._placements.wanted(asked)
            with timings("filter"):
                if not wanted.is_known:
                    await _check(served, wanted)
                eligible = served.filters.eligible(filter_of(wanted.filter))

            with timings("state"):
                with self._permits.lent():
                    stored = await self._questions.remembered(asked, call)
                given = rows_of(asked.history, call)
                hidden = [served.catalog.rows(wanted.filter.exclude_ids)] if wanted.filter.exclude_ids else []
                if served.bundle.manifest.exclude_seen if wanted.exclude_seen is None else wanted.exclude_seen:
                    hidden += [stored.rows, given.rows]
                exclude = joined(hidden)
                request = request_of(given if asked.history else stored, asked.context, call)
            self._spend(caller, served, request)
            keeps = has_pages and asked.consent and STORE_AWAY not in call.reasons
            ahead = self._pages.ahead(wanted.k) if keeps else 0

            def question(time_left: TimeLeft) -> Asked[Query]:
                query = Query(
                    request,
                    wanted.k,
                    eligible,
                    exclude,
                    ahead=ahead,
                    in_time=lambda: time_left() > 0,
                    goals=wanted.goals,
                    rules=wanted.rules,
                )
                return Asked(query, time_left)

            listed = await self._climb_down(call, self._listings(served, request), question)
            answer = listed.answer if listed else served.popular.recommend([question(lambda: 1.0).what], timings)[0]

            with timings("respond"):
                model, recommendation_id = _model(served, call.variant), new_id(call.variant)
                near = served.reasons.nearest(answer, request.history.rows, count=wanted.k)
                items = _items(served, answer, near, explain=asked.explain)
            following = None
            if ahead and len(answer) > wanted.k:
                with timings("respond"):
                    names = model["name"], model["bundle"], model["variant"]
                    payload = encoded(call, answer, request.history.rows, wanted.k, names, user_id=asked.user_id)
                    following = self._pages.keep(FrozenList(recommendation_id, asked.user_id, payload), wanted.k)
            if self._is_counted:
                metrics.HISTORY.observe(len(request.history))
                metrics.ELIGIBLE.observe(eligible.count)
                if len(answer) < wanted.k:
                    metrics.SHORT_LISTS.inc()
                _observe(timings)
            body: RecommendationAnswer = {
                "recommendation_id": recommendation_id,
                "items": items,
                "next": following,
                "model": model,
                "degraded": bool(call.reasons),
                "degraded_reasons": call.reasons,
                "timings_ms": timings.milliseconds(),
            }
            if answer.exact is not None and GENERATED in answer.sources:
                body["exact"] = answer.exact
                if self._is_counted:
                    metrics.GENERATED_LISTS.labels(str(answer.exact).lower()).inc()
            if asked.explain and served.ranker is not None:
                body["ranking"] = _ranking(served.ranker, wanted.goals, answer)
            if answer.unmet:
                body["unmet"] = list(answer.unmet)
            if asked.consent and self._is_counted:
                self._journal.served(ServedList(body, asked.user_id, asked.placement, wanted.k, bool(answer.ranked)))
            if self.offer is not None:
                self.offer(asked, body)
            return body

    async def rank(self, asked: RankingRequest, *, arrived: float, caller: Key | None = None) -> RankingAnswer:
        """The caller's candidates in order, by the numbers that recommendations are scored with.

        Args:
            asked: the validated body.
            arrived: on the pipeline's clock, when the request's first byte did.
            caller: whose budget it counts against; None: nobody's.

        Raises:
            Overloaded: no permit or no room in the queue.
            BudgetExhausted: the caller has asked about too many histories today, and this is another one.
            InvalidRule, InvalidRequest: the request cannot mean anything for this bundle.
            DeadlineExceeded: out of time with nothing to show.
        """
        with self._permits.hold(is_checked=True):
            variant = self._variants.choose(asked)
            call = self._questions.call(asked, variant, arrived=arrived, is_counted=self._is_counted)
            served = call.served
            goals = self._placements.goals(asked.placement)
            served.recommender.check(goals)
            with call.timings("state"):
                with self._permits.lent():
                    stored = EMPTY if asked.history else await self._questions.remembered(asked, call)
                history = rows_of(asked.history, call) if asked.history else stored
                request = request_of(history, asked.context, call)
                rows = served.catalog.rows(asked.candidates)
            self._spend(caller, served, request)

            def question(time_left: TimeLeft) -> Asked[Given]:
                return Asked(Given(request, rows, goals), time_left)

            listed = await self._climb_down(call, self._scorings(served, request), question)
            if listed:
                answer, source = listed.answer, RANKED if listed.answer.ranked else listed.answer.source
            else:
                answer, source = _by_popularity(served, rows[rows != PAD_ROW]), served.popular.name

            with call.timings("respond"):
                items = _ranked(served, asked.candidates, answer, explain=asked.explain)
            _observe(call.timings)
            body: RankingAnswer = {
                "items": items,
                "source": source,
                "model": _model(served, call.variant),
                "degraded": bool(call.reasons),
                "degraded_reasons": call.reasons,
                "timings_ms": call.timings.milliseconds(),
            }
            if asked.explain and served.ranker is not None:
                body["ranking"] = _ranking(served.ranker, goals, answer)
            return body

    async def similar(self, item_id: str, k: int) -> SimilarAnswer:
        """Items like one item.

        Raises:
            Overloaded: no permit.
            UnknownItem: the catalog does not hold it.
        """
        with self._permits.hold():
            variant = self._variants.default
            served = variant.served
            timings = Timings(self._clock)
            row = served.catalog.row(item_id)
            eligible = served.filters.eligible(Filter())
            with timings("retrieve"):
                answer = await asyncio.to_thread(served.similar.similar, row, k, eligible, EMPTY.rows)
            with timings("respond"):
                items = _items(served, answer, np.full(len(answer), PAD_ROW))
            model = _model(served, variant.name)
            return {"item_id": item_id, "items": items, "model": model, "timings_ms": timings.milliseconds()}

    def _spend(self, caller: Key | None, served: Served, request: Request) -> None:
        """Counts what the model is about to read."""
        if caller is not None:
            self._budgets.spend(caller, request.history.rows[-served.bundle.manifest.window :].tobytes())

    async def _climb_down(
        self, call: Call, rungs: Sequence[Rung[Asked[Q], Listed]], question: Callable[[TimeLeft], Asked[Q]]
    ) -> Listed | None:
        """The answer of a model; None where the popular items have to do, for which there is still time.

        Raises:
            Overloaded: no room in the last queue.
            DeadlineExceeded: there is no time even for the popular items.
        """
        if not rungs:
            call.degrade("no_history")
        until = call.deadline - RESERVE_SHARE * call.budget_s
        listed = await climb_down(call, rungs, question, until=until, clock=self._clock)
        if listed is None and self._clock() >= call.deadline:
            if call.is_counted:
                metrics.DEADLINE_EXCEEDED.labels("respond").inc()
            raise DeadlineExceeded("respond")
        if listed is not None and listed.ranking is not None:
            if call.is_counted:
                metrics.RANKED_LISTS.labels(listed.ranking).inc()
            if listed.ranking != FULL:
                call.degrade(f"ranker_{listed.ranking}", listed.answer.ranker_error)
        return listed

    def _listings(self, served: Served, request: Request) -> list[Rung[Asked[Query], Listed]]:
        rungs = []
        for retriever in _readers(served, request):
            composed = served.recommender if retriever is served.retrievers[0] else served.dense
            run = Listing(composed, _source(served, retriever), self._pace, self._clock)
            rungs.append(self._rung(served, retriever, run))
        return rungs

    def _scorings(self, served: Served, request: Request) -> list[Rung[Asked[Given], Listed]]:
        rungs = []
        for retriever in _readers(served, request):
            run = Scoring(retriever, served.ranker, _source(served, retriever), self._pace, self._clock)
            rungs.append(self._rung(served, retriever, run))
        return rungs

    def _rung(self, served: Served, retriever: Retriever, run: Run[Asked[Q], Listed]) -> Rung[Asked[Q], Listed]:
        """What this retriever has to do, in its pool and within its time."""
        if retriever is not served.generative:
            return Rung(self._pools["encoder"], run, 1.0, "deadline", "encoder_failed", _is_own)
        share = GENERATIVE_SHARE if len(served.retrievers) > 1 else 1.0
        return Rung(self._pools["generator"], run, share, "generator_late", "generator_failed", _is_own)


async def _check(served: Served, wanted: Wanted) -> None:
    """Refuses goals and rules of a caller's own that mean nothing here.

    Raises:
        InvalidRule: see `TwoStage.check`.
    """
    served.recommender.check(wanted.goals)
    rules = wanted.rules
    if rules.caps or rules.promotion or rules.freshness:  # at a million items their tables take a moment
        await asyncio.to_thread(served.recommender.check, {}, rules)


def _readers(served: Served, request: Request) -> list[Retriever]:
    """The models that can start from this request, the best first."""
    return [retriever for retriever in served.retrievers if retriever.reads(request)]


def _source(served: Served, retriever: Retriever) -> str:
    return GENERATED if retriever is served.generative else RETRIEVED


def _model(served: Served, variant: str) -> ServedModel:
    return {"name": served.bundle.manifest.model, "bundle": served.bundle.name, "variant": variant}


def _items(served: Served, answer: Answer, near: IntArray, *, explain: bool = False) -> list[RecommendedItem]:
    """Rows become ids again: of as many items as `near` has rows of the history for, see `Reasons.nearest`."""
    ids, attributes = served.catalog.ids, Cards(served.catalog).attributes
    k = len(near)
    rows, scores, causes = answer.rows[:k].tolist(), answer.scores[:k].tolist(), near.tolist()
    items: list[RecommendedItem] = []
    for rank, (row, score, source, cause) in enumerate(zip(rows, scores, answer.sources, causes, strict=False), 1):
        item: RecommendedItem = {"item_id": ids[row], "score": score, "rank": rank, "source": source}
        known = attributes(row)
        if known is not None:
            item["attributes"] = known
        if cause != PAD_ROW:
            item["reason"] = {"kind": "near", "item_id": ids[cause]}
        items.append(item)
    for item, rule in zip(items, answer.reasons, strict=False):
        if rule:
            item["reason"] = {"kind": rule}  # type: ignore[typeddict-item]  # no other words
    if explain:
        for place, item in enumerate(items):
            explanation = _explanation(served, answer, place)
            if explanation:
                item["explanation"] = explanation
    return items


def _explanation(served: Served, answer: Answer, place: int) -> Explanation:
    """How one item of an answer came about; empty where nothing is known of that."""
    explanation: Explanation = {}
    if answer.sources[place] == GENERATED and answer.steps is not None and served.codes is not None:
        codes, shares = served.codes.codes[answer.rows[place]].tolist(), answer.steps[place].tolist()
        path = zip(codes, shares, strict=True)
        explanation["path"] = [{"code": code, "log_probability": share} for code, share in path]
    if answer.tasks is not None and served.ranker is not None and not np.isnan(answer.tasks[place]).any():
        names = served.ranker.settings.tasks
        explanation["tasks"] = dict(zip(names, answer.tasks[place].tolist(), strict=True))
    return explanation


def _ranking(ranker: Ranker, goals: Mapping[str, float], answer: Answer) -> Ranking:
    settings = ranker.settings
    return {
        "formula": settings.formula(goals),
        "goals": dict(goals or settings.goals),
        "ranked": answer.ranked or 0,
    }


def _by_popularity(served: Served, rows: IntArray) -> Answer:
    """Given rows by falling popularity, equal ones as they were given."""
    rows = rows[np.argsort(-served.catalog.popularity[rows], kind="stable")]
    return Answer.of(rows, served.catalog.popularity[rows].astype(np.float32), served.popular.name)


def _ranked(served: Served, candidates: Sequence[str], answer: Answer, *, explain: bool) -> list[RankedItem]:
    """The candidates in the order of an answer; those that nothing is known of at the end, as they were given."""
    ids = served.catalog.ids
    items: list[RankedItem] = []
    for place, (row, score) in enumerate(zip(answer.rows.tolist(), answer.scores.tolist(), strict=True)):
        if score == -math.inf:
            break
        item: RankedItem = {"item_id": ids[row], "score": score, "rank": place + 1, "known": True}
        if explain:
            explanation = _explanation(served, answer, place)
            if explanation:
                item["explanation"] = explanation
        items.append(item)
    known = {item["item_id"] for item in items}
    rest = [item_id for item_id in candidates if item_id not in known]
    for rank, item_id in enumerate(rest, start=len(items) + 1):
        items.append({"item_id": item_id, "score": None, "rank": rank, "known": False})
    return items


def _is_own(listed: Listed) -> bool:
    return listed.is_own


def _observe(timings: Timings) -> None:
    for stage, seconds in timings.seconds.items():
        metrics.STAGE[stage].observe(seconds)
