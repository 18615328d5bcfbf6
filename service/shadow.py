"""Shadow traffic: a variant is asked what another one answers, after it has, and nobody gets to see what it says.

It is done only when there is nothing else to do: a request that comes meanwhile is never behind it, and what is not
done at once is dropped and counted. So the share is of quiet moments, and a busy service has no shadow.
"""

import asyncio
import logging
from collections.abc import Callable

from service import metrics
from service.answers import RecommendationAnswer
from service.errors import Overloaded
from service.pipeline import Pipeline
from service.schemas import RecommendationRequest
from service.variants import Plan, place_of

_log = logging.getLogger(__name__)


class Shadow:
    """Asks again, quietly.

    Args:
        plan: which variant is the shadow of which, and how often.
        pipeline: whose answers nobody gets, which works aside and refuses when somebody waits.
        is_idle: whether nobody is being served.
        clock: that of the pipeline.
    """

    def __init__(
        self, plan: Plan, pipeline: Pipeline, *, is_idle: Callable[[], bool], clock: Callable[[], float]
    ) -> None:
        self._shadows = plan.shadow
        self._pipeline = pipeline
        self._is_idle = is_idle
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def offer(self, asked: RecommendationRequest, answer: RecommendationAnswer) -> None:
        """Hears of a list that was made; never waits and never raises."""
        for name, table in self._shadows.items():
            if table.of != answer["model"]["variant"]:
                continue
            if place_of(f"shadow {name}", answer["recommendation_id"]) >= table.share:
                continue
            if self._task is not None:
                metrics.SHADOW.labels(name, "dropped").inc()
                continue
            shown = [item["item_id"] for item in answer["items"]]
            self._task = asyncio.create_task(self._ask(name, asked, shown), name="shadow")
            self._task.add_done_callback(self._done)

    async def close(self) -> None:
        """Gives up what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _done(self, _task: asyncio.Task[None]) -> None:
        self._task = None

    async def _ask(self, name: str, asked: RecommendationRequest, shown: list[str]) -> None:
        if not self._is_idle():
            metrics.SHADOW.labels(name, "dropped").inc()
            return
        try:
            again = asked.model_copy(update={"model": name})
            answer = await self._pipeline.recommend(again, arrived=self._clock(), has_pages=False)
        except Overloaded:
            metrics.SHADOW.labels(name, "dropped").inc()
        except Exception:
            metrics.SHADOW.labels(name, "failed").inc()
            _log.exception("the shadow %s failed", name)
        else:
            is_own = not set(answer["degraded_reasons"]) - {"no_history"}
            metrics.SHADOW.labels(name, "answered" if is_own else "degraded").inc()
            if is_own and shown:
                both = set(shown) & {item["item_id"] for item in answer["items"]}
                metrics.SHADOW_OVERLAP.labels(name).observe(len(both) / len(shown))
