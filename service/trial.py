"""The trial: what a bundle has to pass before anybody is answered from it.

Its warm-up requests go through the pipeline that serves. Whoever comes in beside a bundle that is being served is also
held against itself and against what was measured when it was exported (`retrieval.soundness`), without haste, and
nothing of it is counted among requests.
"""

import asyncio
from collections.abc import Callable

from retrieval import soundness
from retrieval.errors import BundleError
from retrieval.recommenders import Served
from service.aside import Aside
from service.pipeline import Pipeline
from service.placements import Placements
from service.schemas import MAX_DEADLINE_MS, MAX_HISTORY, RecommendationRequest
from service.variants import DEFAULT, Variants

FAILED = {"generator_failed", "encoder_failed", "ranker_failed"}
WARMUP_HISTORIES = 64  # enough to meet every shape; a bundle with thousands must not hold up its start


class Trial:
    """Tries bundles beside those that are served.

    Args:
        rehearse: a pipeline over these variants whose answers nobody gets, which works aside.
        placements: have to mean something for the bundle.
        aside: where to compute.
        clock: that of the pipeline.
    """

    def __init__(
        self,
        rehearse: Callable[[Variants], Pipeline],
        *,
        placements: Placements,
        aside: Aside,
        clock: Callable[[], float],
    ) -> None:
        self._rehearse = rehearse
        self._placements = placements
        self._aside = aside
        self._clock = clock

    async def __call__(self, served: Served) -> None:
        """Returns where the bundle may be served.

        Raises:
            BundleError: it does not compute what it should; the message says what.
            ConfigurationError: a placement means nothing for it.
        """
        await self._aside.run(self._placements.check, served)
        await warm_up(self._rehearse(Variants({DEFAULT: served})), served, DEFAULT, self._clock)
        await self._aside.run(soundness.check, served)


async def warm_up(
    pipeline: Pipeline, served: Served, variant: str, clock: Callable[[], float], *, at_once: int = 1
) -> None:
    """Replays a bundle's sample histories through a pipeline: one by one, then as many together as may be.

    Raises:
        BundleError: the model failed on one of them.
    """
    histories = served.bundle.warmup[:WARMUP_HISTORIES] or [[served.catalog.ids[1]]]
    asked = [
        RecommendationRequest.model_validate(
            {
                "history": history[-MAX_HISTORY:],
                "model": variant,
                "consent": False,
                "deadline_ms": MAX_DEADLINE_MS,
            }
        )
        for history in histories
    ]
    answers = [await pipeline.recommend(one, arrived=clock(), has_pages=False) for one in asked]
    for start in range(0, len(asked) if at_once > 1 else 0, at_once):
        together = [pipeline.recommend(one, arrived=clock(), has_pages=False) for one in asked[start : start + at_once]]
        answers += await asyncio.gather(*together)
    failed = [answer for answer in answers if FAILED & {*answer["degraded_reasons"]}]
    if failed:
        raise BundleError(
            f"{served.bundle.path} failed {len(failed)} of {len(answers)} warm-up requests, see the log; "
            "export it again"
        )
