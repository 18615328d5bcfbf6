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
from functools import partial
from pathlib import Path

from retrieval import soundness
from retrieval.bundle import Bundle
from retrieval.encoder import best_device
from retrieval.errors import BundleForeign
from retrieval.recommenders import Served, load
from service import metrics
from service.answers import ModelAnswer, Readiness
from service.aside import Aside
from service.batching import MicroBatcher
from service.budgets import Budgets
from service.bundles import Bundles, shown
from service.errors import NotReady, Overloaded, StoreUnavailable
from service.items import Items
from service.journal import Journal, NoJournal
from service.pages import Pages
from service.permits import Permits
from service.pipeline import Pipeline
from service.placements import Placements
from service.questions import Questions
from service.sessions import SessionStore
from service.settings import BATCH_SHARE, INLINE_SHARE, QUEUE_SHARE, WAIT_SHARE, Settings
from service.shadow import Shadow
from service.trial import Trial, warm_up
from service.users import Users
from service.variants import DEFAULT, Plan, Variants, bundle_path

_log = logging.getLogger(__name__)

COUNT_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class State:
    """Everything that answers."""

    store: SessionStore
    pools: Mapping[str, MicroBatcher]
    variants: Variants
    bundles: Bundles
    shadow: Shadow
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
    return serve_bundle(settings, open_bundle(path or settings.bundle_dir))


def open_bundle(path: Path) -> Bundle:
    """A bundle, verified and read, its graphs not yet opened.

    Raises:
        BundleError: a file is missing, torn, or another one than the manifest says.
    """
    bundle = Bundle.open(path)
    _ = bundle.catalog, bundle.item_vectors, bundle.text_vectors, bundle.statistics, bundle.codes, bundle.warmup
    return bundle


def serve_bundle(settings: Settings, bundle: Bundle) -> Served:
    """What answers from a bundle, on the device that the settings name.

    Raises:
        BundleError: it cannot be served; the message says why.
    """
    started = time.perf_counter()
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
        shown(variant.served, is_served=True)
        metrics.ATTRIBUTED_CLICKS.labels(variant.name)
    metrics.INDEX_ITEMS.labels(served.index.name).set(len(served.catalog))
    del served, loaded  # another bundle may take their place, and this frame lives as long as the process

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
            batch_s=(INLINE_SHARE if settings.threads == 1 and pool == "encoder" else BATCH_SHARE)
            * settings.deadline_s,
            inline_s=INLINE_SHARE * settings.deadline_s if settings.threads == 1 else 0.0,
            is_alone=lambda: permits.is_alone,
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
    through = partial(
        Pipeline,
        questions=questions,
        placements=placements,
        pages=pages,
        budgets=budgets,
        journal=journal,
        clock=clock,
    )

    def rehearse(over: Variants, thread: Aside) -> Pipeline:
        return through(over, pools=dict.fromkeys(pools, thread), permits=None)

    def check_idle() -> None:
        if not permits.is_idle:
            raise Overloaded("somebody waits", reason="in_flight")

    aside, behind = Aside(clock), Aside(clock, check=check_idle)
    shadow = Shadow(plan, rehearse(variants, behind), is_idle=lambda: permits.is_idle, clock=clock)
    pipeline = through(variants, pools=pools, permits=permits)
    users = Users(
        store,
        variants=variants,
        permits=permits,
        journal=journal,
        now=now,
        settled=pages.settled,
        settle_s=settings.store_timeout_s,
    )
    items = Items(variants, store=store, permits=permits)

    async def load_beside(path: Path) -> Served:
        bundle = await aside.run(open_bundle, path)
        if settings.threads == 1:
            return await aside.run(serve_bundle, settings, bundle)
        # onnxruntime starts threads of its own here, which would keep the low priority for as long as they live.
        return await asyncio.to_thread(serve_bundle, settings, bundle)

    bundles = Bundles(
        variants,
        directory=settings.bundles_dir,
        load=load_beside,
        trial=Trial(partial(rehearse, thread=aside), placements=placements, aside=aside, clock=clock),
        items=items,
        store=store,
        aside=aside,
    )
    following: list[asyncio.Task[None]] = []
    try:
        try:
            await items.refresh()
        except StoreUnavailable as error:
            _log.error("changes of items are not in effect until the store is there: %s", error)
        try:
            await bundles.refresh()
        except StoreUnavailable as error:
            _log.error("what was activated is not known until the store is there: %s", error)
        at_once = min(settings.max_batch, settings.max_in_flight, settings.queue_limit)
        for variant in variants:
            await asyncio.to_thread(placements.check, variant.served)
            await asyncio.to_thread(soundness.check_references, variant.served)
            await warm_up(pipeline, variant.served, variant.name, clock, at_once=at_once)
        metrics.SWAPS.labels("ok").inc()
        # What was loaded stays: without this each full collection walks the whole catalog, in the middle of a request.
        gc.collect()
        gc.freeze()
        for batcher in pools.values():  # only now: whoever warms up has time
            batcher.longest_s = QUEUE_SHARE * settings.deadline_s
        pipeline.offer = shadow.offer if plan.shadow else None
        following.append(asyncio.create_task(permits.watch(), name="permits"))
        following.append(asyncio.create_task(_count_kept(), name="metrics"))
        following.append(asyncio.create_task(budgets.follow(store if store.durable else None), name="budgets"))
        if store.durable:  # others may write to it
            following.append(asyncio.create_task(items.follow(), name="items"))
            following.append(asyncio.create_task(bundles.follow(), name="bundles"))
        metrics.READY.set(1)
        metrics.WORKERS.set(1)
        metrics.WORKERS_WANTED.set(settings.workers)
        yield State(
            store, pools, variants, bundles, shadow, pipeline, users, items, pages, permits, settings.store_timeout_s
        )
    finally:
        metrics.READY.set(0)
        metrics.WORKERS.set(0)
        for task in following:
            task.cancel()
        if following:
            await asyncio.wait(following)
        await bundles.close()
        await shadow.close()
        for thread in (aside, behind):
            thread.close()
        for batcher in pools.values():
            await batcher.close()
        await pages.settled()
        await journal.close()  # its end has a bound; a store may hang
        await store.close()
        metrics.count_kept()
        gc.unfreeze()
        for variant in variants:
            shown(variant.served, is_served=False)


async def _count_kept() -> None:
    """Counts what metrics have kept, for scrapes that another worker answers."""
    while True:
        await asyncio.sleep(COUNT_EVERY_S)
        metrics.count_kept()
