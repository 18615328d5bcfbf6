"""What one process holds while it serves: loaded, warmed, and taken apart again.

`serving` is the life of a process, read from top to bottom. The store may be away when it begins; a bundle may not.
"""

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from retrieval.bundle import Bundle
from retrieval.encoder import best_device
from retrieval.errors import BundleError, BundleForeign
from retrieval.recommenders import Served, load
from service import metrics
from service.answers import ModelAnswer, Readiness
from service.batching import MicroBatcher
from service.budgets import Budgets
from service.errors import NotReady, StoreUnavailable
from service.items import Items
from service.journal import Journal, NoJournal
from service.pages import Pages
from service.permits import Permits
from service.pipeline import Pipeline
from service.placements import Placements
from service.questions import Questions
from service.schemas import MAX_DEADLINE_MS, MAX_HISTORY, RecommendationRequest
from service.sessions import SessionStore
from service.settings import BATCH_SHARE, QUEUE_SHARE, WAIT_SHARE, Settings
from service.users import Users
from service.variants import DEFAULT, Plan, Variant, Variants, bundle_path

_log = logging.getLogger(__name__)

FAILED = {"generator_failed", "encoder_failed", "ranker_failed"}
COUNT_EVERY_S = 1.0
WARMUP_HISTORIES = 64  # enough to meet every shape; a bundle with thousands must not hold up its start


@dataclass(frozen=True, slots=True)
class State:
    """Everything that answers."""

    store: SessionStore
    pools: Mapping[str, MicroBatcher]
    variants: Variants
    pipeline: Pipeline
    users: Users
    items: Items
    pages: Pages
    permits: Permits
    store_timeout_s: float

    def about(self) -> ModelAnswer:
        """What is being served."""
        served = self.variants.default.served
        bundle = served.bundle
        manifest = bundle.manifest
        answer: ModelAnswer = {
            "name": manifest.model,
            "kind": manifest.kind,
            "bundle": bundle.name,
            "digest": bundle.digest,
            "created": manifest.created,
            "git_commit": manifest.git_commit,
            "seed": manifest.seed,
            "data": manifest.data,
            "catalog_items": len(served.catalog),
            "edition": served.edition,
            "generation": manifest.generation,
            "window": manifest.window,
            "event_types": list(manifest.event_types),
            "exclude_seen": manifest.exclude_seen,
            "hyper_parameters": manifest.hyper_parameters,
            "index": {**manifest.index, "served": served.index.name},
            "metrics": manifest.metrics,
            "variants": [
                {
                    "name": variant.name,
                    "model": variant.served.bundle.manifest.model,
                    "bundle": variant.served.bundle.name,
                }
                for variant in self.variants
            ],
        }
        if served.ranker is not None:
            settings = served.ranker.settings
            answer["ranking"] = {
                "tasks": list(settings.tasks),
                "goals": dict(settings.goals),
                "candidates": settings.candidates,
                "calibration": {
                    name: type(fitted).__name__.lower() for name, fitted in (settings.calibration or {}).items()
                },
            }
        return answer

    async def readiness(self) -> Readiness:
        """Ready, with a word about the store.

        Raises:
            NotReady: nobody serves the recommender's queue.
        """
        if not all(batcher.is_alive for batcher in self.pools.values()):
            raise NotReady("the recommender's queue is not being served; restart the process")
        bundle = self.variants.default.served.bundle.name
        try:
            async with asyncio.timeout(self.store_timeout_s):
                await self.store.ping()
        except (StoreUnavailable, TimeoutError):
            metrics.STORE_ERRORS.labels("ping").inc()
            return {"status": "ready", "bundle": bundle, "store": "away"}
        return {"status": "ready", "bundle": bundle, "store": "ok"}


def load_bundle(settings: Settings, path: Path | None = None) -> Served:
    """A bundle, or the one of the settings, on the device that they name.

    Raises:
        BundleError: it cannot be served; the message says why.
    """
    started = time.perf_counter()
    bundle = Bundle.open(path or settings.bundle_dir)
    device = best_device() if settings.device == "auto" else settings.device
    try:
        served = load(bundle, threads=settings.threads, device=device)
    except BundleForeign:
        if settings.device != "auto" or device == "cpu":
            raise
        _log.warning("no GPU could be opened, serving from the CPU")
        served = load(bundle, threads=settings.threads, device="cpu")
    metrics.INDEX_BUILD_SECONDS.set(time.perf_counter() - started)
    return served


@asynccontextmanager
async def serving(
    settings: Settings,
    *,
    store: SessionStore,
    served: Served | None,
    placements: Placements,
    plan: Plan | None = None,
    journal: Journal | None = None,
    clock: Callable[[], float],
    now: Callable[[], float],
) -> AsyncIterator[State]:
    """The life of a process: load, open the store, warm up, serve, drain, close.

    Raises:
        BundleError: the bundle cannot be served, or fails its warm-up.
        ConfigurationError: a placement means nothing for this bundle.
    """
    if served is None:
        served = await asyncio.to_thread(load_bundle, settings)
    loaded = {DEFAULT: served}
    plan = plan or Plan()
    for name, table in plan.variants.items():
        loaded[name] = await asyncio.to_thread(load_bundle, settings, bundle_path(settings.bundles_dir, table.bundle))
    variants = Variants(loaded, plan)
    for variant in variants:
        manifest = variant.served.bundle.manifest
        metrics.BUNDLE_INFO.labels(variant.served.bundle.name, manifest.model, manifest.kind).set(1)
        metrics.ATTRIBUTED_CLICKS.labels(variant.name)
    served = variants.default.served
    metrics.INDEX_ITEMS.labels(served.index.name).set(len(served.catalog))

    try:
        await store.open()
    except StoreUnavailable as error:
        metrics.STORE_ERRORS.labels("open").inc()
        _log.error("starting without the session store, answers will be degraded: %s", error)

    journal = journal or NoJournal()
    await journal.open()
    permits = Permits(settings.max_in_flight, target_s=WAIT_SHARE * settings.deadline_s, clock=clock)
    pools = {
        pool: MicroBatcher(
            max_batch=settings.max_batch,
            queue_limit=settings.queue_limit,
            wait_s=settings.batch_wait_ms / 1000,
            clock=clock,
            pool=pool,
            is_paced=pool == "generator",
            batch_s=BATCH_SHARE * settings.deadline_s,
            felt=permits.felt if pool == "encoder" else None,  # who waits for a generator has the encoder to go to
        )
        for pool in metrics.POOLS
    }
    for batcher in pools.values():
        batcher.start()
    questions = Questions(
        store, deadline_s=settings.deadline_s, store_timeout_s=settings.store_timeout_s, clock=clock, now=now
    )
    budgets = Budgets(settings.query_budget, now=now)
    pages = Pages(
        store,
        variants=variants,
        permits=permits,
        journal=journal,
        length=settings.frozen_items,
        timeout_s=settings.store_timeout_s,
        clock=clock,
    )
    pipeline = Pipeline(
        variants,
        questions=questions,
        placements=placements,
        pools=pools,
        permits=permits,
        pages=pages,
        budgets=budgets,
        journal=journal,
        clock=clock,
    )
    users = Users(store, variants=variants, permits=permits, journal=journal, now=now)
    items = Items(variants, store=store, permits=permits)
    following: list[asyncio.Task[None]] = []
    try:
        try:
            await items.refresh()
        except StoreUnavailable as error:
            _log.error("changes of items are not in effect until the store is there: %s", error)
        at_once = min(settings.max_batch, settings.max_in_flight, settings.queue_limit)
        for variant in variants:
            await asyncio.to_thread(placements.check, variant.served)
            await warm_up(pipeline, variant, clock, at_once=at_once)
        metrics.SWAPS.labels("ok").inc()
        # What was loaded stays: without this each full collection walks the whole catalog, in the middle of a request.
        gc.collect()
        gc.freeze()
        for batcher in pools.values():  # only now: whoever warms up has time
            batcher.longest_s = QUEUE_SHARE * settings.deadline_s
        following.append(asyncio.create_task(permits.watch(), name="permits"))
        following.append(asyncio.create_task(_count_kept(), name="metrics"))
        following.append(asyncio.create_task(budgets.follow(store if store.durable else None), name="budgets"))
        if store.durable:  # others may write to it
            following.append(asyncio.create_task(items.follow(), name="items"))
        metrics.READY.set(1)
        yield State(store, pools, variants, pipeline, users, items, pages, permits, settings.store_timeout_s)
    finally:
        metrics.READY.set(0)
        for task in following:
            task.cancel()
        if following:
            await asyncio.wait(following)
        for batcher in pools.values():
            await batcher.close()
        await store.close()
        await journal.close()
        gc.unfreeze()
        if metrics.MULTIPROCESS_DIR is None:  # there the series ends with the process, and cannot earlier
            for variant in variants:
                manifest = variant.served.bundle.manifest
                metrics.BUNDLE_INFO.remove(variant.served.bundle.name, manifest.model, manifest.kind)


async def _count_kept() -> None:
    """Counts what metrics have kept, for scrapes that another worker answers."""
    while True:
        await asyncio.sleep(COUNT_EVERY_S)
        metrics.count_kept()


async def warm_up(pipeline: Pipeline, variant: Variant, clock: Callable[[], float], *, at_once: int) -> None:
    """Replays the bundle's sample histories through the real pipeline: one by one, then as many together as may be.

    Raises:
        BundleError: the model failed on one of them.
    """
    served = variant.served
    histories = served.bundle.warmup[:WARMUP_HISTORIES] or [[served.catalog.ids[1]]]
    asked = [
        RecommendationRequest.model_validate(
            {
                "history": history[-MAX_HISTORY:],
                "model": variant.name,
                "consent": False,
                "deadline_ms": MAX_DEADLINE_MS,
            }
        )
        for history in histories
    ]
    answers = [await pipeline.recommend(one, arrived=clock()) for one in asked]
    for start in range(0, len(asked), at_once):
        together = [pipeline.recommend(one, arrived=clock()) for one in asked[start : start + at_once]]
        answers += await asyncio.gather(*together)
    failed = [answer for answer in answers if FAILED & {*answer["degraded_reasons"]}]
    if failed:
        metrics.SWAPS.labels("failed").inc()
        raise BundleError(
            f"{served.bundle.path} failed {len(failed)} of {len(answers)} warm-up requests, see the log; "
            "export it again"
        )
