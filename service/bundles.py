"""Bundles in service: listed, exchanged, taken back, while requests go on.

A new bundle is loaded beside the one that is served, in a thread of low priority: its digests are verified, what
callers said of items is replayed, and it has to pass its trial. Then one reference changes. Who is under way ends on
the bundle that they began with; that one is kept to go back to, and the one before it is let go, and its memory given
back. A bundle that fails on the way leaves everything as it was.

What is activated is announced through the store. Other processes on it follow within `FOLLOW_EVERY_S` and the time it
takes to load, and so does a process that starts later, as long as it is configured to serve the bundle that the
activated one came after. Whoever cannot load it stays on what it has, says so in the log, and tries again now and then.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import orjson

from retrieval.bundle import MANIFEST, Bundle, Manifest
from retrieval.errors import BundleError, BundleForeign, InvalidInput
from retrieval.recommenders import Served
from service import metrics
from service.answers import BundlesAnswer, BundleVariant, StoredBundle, SwapAnswer
from service.aside import Aside
from service.errors import BundleRefused, ConfigurationError, StoreUnavailable, SwapConflict
from service.items import Items
from service.memory import give_back
from service.sessions import SessionStore
from service.users import counting
from service.variants import Variant, Variants, bundle_path

_log = logging.getLogger(__name__)

FOLLOW_EVERY_S = 1.0
TRY_AGAIN_S = 30.0  # a bundle that could not be loaded here may still be on its way to this machine
MAX_LISTED = 1000  # directories


@dataclass(frozen=True, slots=True)
class Word:
    """What is announced of a variant.

    Attributes:
        name: the bundle's, in the directory.
        digest: its own; another bundle under the same name is not meant.
        over: digest of the bundle that the announcing process was configured with.
    """

    name: str
    digest: str
    over: str

    def encoded(self) -> bytes:
        """What `decoded` reads."""
        return orjson.dumps({"name": self.name, "digest": self.digest, "over": self.over})

    @classmethod
    def decoded(cls, value: bytes) -> "Word | None":
        """The announcement; None where it is of another version of this service."""
        try:
            said = orjson.loads(value)
            return cls(str(said["name"]), str(said["digest"]), str(said["over"]))
        except (ValueError, TypeError, KeyError):
            return None


class Bundles:
    """Exchanges what variants serve.

    Args:
        variants: get the bundles.
        directory: whose bundles may be served, and no others.
        load: verifies and opens a bundle, off the event loop.
        trial: raises where a bundle must not be served.
        items: brings what callers said of items into a bundle.
        store: carries announcements.
        aside: where to load.
        clock: seconds from some fixed moment; when to try again.
    """

    def __init__(
        self,
        variants: Variants,
        *,
        directory: Path,
        load: Callable[[Path], Awaitable[Served]],
        trial: Callable[[Served], Awaitable[None]],
        items: Items,
        store: SessionStore,
        aside: Aside,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._variants = variants
        self._directory = directory
        self._load = load
        self._trial = trial
        self._items = items
        self._store = store
        self._aside = aside
        self._clock = clock
        self._configured = {variant.name: variant.served.bundle.digest for variant in variants}
        self._heard: dict[str, bytes | None] = {}
        self._again: dict[str, float] = {}  # when to try what could not be loaded
        self._swapping = asyncio.Lock()
        self._swap: asyncio.Task[SwapAnswer] | None = None

    async def listed(self) -> BundlesAnswer:
        """The bundles that may be served, by name, and what is."""
        stored = await asyncio.to_thread(_stored, self._directory)
        return {"bundles": stored, "variants": [_shown(variant) for variant in self._variants]}

    async def activate(self, name: str, variant: str) -> SwapAnswer:
        """Serves another bundle. Once begun it is seen through, whether the caller stays or not.

        Raises:
            InvalidRequest: there is no such variant.
            SwapConflict: another exchange is under way.
            BundleRefused: the bundle cannot be served, and what is served stays.
        """
        target = self._variants.named(variant)
        return await self._seen_through(target, lambda: self._load_into(target, name))

    async def rollback(self, variant: str) -> SwapAnswer:
        """Serves again what was served before; calling it twice leads to where it began.

        Raises:
            InvalidRequest: there is no such variant.
            SwapConflict: another exchange is under way, or nothing was served before.
        """
        target = self._variants.named(variant)
        if target.before is None and not self._swapping.locked():
            raise SwapConflict(f"variant {variant!r} has served nothing else yet, so there is nothing to go back to")
        return await self._seen_through(target, lambda: self._back(target))

    async def refresh(self) -> None:
        """Follows what other processes announced.

        Raises:
            StoreUnavailable: the store is away, and what is served stays.
        """
        if self._swapping.locked():
            return
        for variant in self._variants:
            with counting():
                value = await self._store.announced(f"bundle:{variant.name}")
            if value is None or (value == self._heard.get(variant.name) and not self._is_due(variant.name)):
                continue
            if self._swapping.locked():  # somebody was faster; what they announce comes next
                return
            async with self._swapping:
                await self._follow_word(variant, value)

    async def follow(self) -> None:
        """Keeps up with other processes for as long as it is not cancelled."""
        while True:
            await asyncio.sleep(FOLLOW_EVERY_S)
            try:
                await self.refresh()
            except StoreUnavailable:  # counted, and said by the readiness probe
                pass
            except Exception:
                _log.exception("an announced bundle could not be followed")

    async def close(self) -> None:
        """Gives up what is under way."""
        if self._swap is not None and not self._swap.done():
            self._swap.cancel()
            await asyncio.wait([self._swap])

    async def _seen_through(self, variant: Variant, change: Callable[[], Awaitable[str]]) -> SwapAnswer:
        if self._swapping.locked() or (self._swap is not None and not self._swap.done()):
            raise SwapConflict("another bundle is being brought into service; wait for it and try again")

        async def swap() -> SwapAnswer:
            async with self._swapping:
                started = self._clock()
                outcome = await change()
                metrics.SWAPS.labels(outcome).inc()
                is_shared = await self._announced(variant)
                _log.info("variant %s serves %s", variant.name, variant.served.bundle.name)
                took_s = self._clock() - started
                return {**_shown(variant), "shared": is_shared, "took_s": round(took_s, 3)}

        self._swap = asyncio.create_task(swap(), name="swap")
        self._swap.add_done_callback(_retrieved)
        return await asyncio.shield(self._swap)

    async def _load_into(self, variant: Variant, name: str, digest: str | None = None) -> str:
        """Brings a bundle into service; the outcome to count.

        Raises:
            BundleRefused: it cannot be served.
        """
        try:
            served, version = await self._tried(variant, name, digest)
        except (BundleError, ConfigurationError, InvalidInput, OSError) as error:
            why = str(error)
        else:
            await self._flip(variant, served, version)
            return "ok"
        # Only here: as long as there is the error there are the frames that it came through, and the bundle in them.
        metrics.SWAPS.labels("failed").inc()
        _log.error("bundle %r is refused, variant %s goes on with what it has: %s", name, variant.name, why)
        await self._aside.run(give_back)
        raise BundleRefused(f"{why} (variant {variant.name!r} still serves {variant.served.bundle.name})")

    async def _tried(self, variant: Variant, name: str, digest: str | None) -> tuple[Served, int]:
        """A bundle that may be served in the place of a variant's, and the version of the item changes in it."""
        served = await self._load(bundle_path(self._directory, name))
        if digest is not None and served.bundle.digest != digest:
            raise BundleForeign(f"{name} is {served.bundle.digest[:12]} here, and {digest[:12]} was announced")
        served, version = await self._items.replayed(served, like=variant, run=self._aside.run)
        await self._trial(served)
        return served, version

    async def _back(self, variant: Variant) -> str:
        if variant.before is None:
            raise SwapConflict(f"variant {variant.name!r} has served nothing else yet")
        await self._flip(variant, *variant.before)
        return "rolled_back"

    async def _flip(self, variant: Variant, served: Served, version: int) -> None:
        shown(variant.served, is_served=False)
        gone = [await self._items.install(variant, served, version)]
        for one in self._variants:
            shown(one.served, is_served=True)
        del served
        await self._aside.run(_let_go, gone)

    async def _follow_word(self, variant: Variant, value: bytes) -> None:
        word, self._heard[variant.name] = Word.decoded(value), value
        self._again.pop(variant.name, None)
        if word is None or word.over != self._configured[variant.name]:
            _log.info("variant %s: what was activated over another bundle than ours is not followed", variant.name)
            return
        if word.digest == variant.served.bundle.digest:
            return
        try:
            if variant.before is not None and word.digest == variant.before[0].bundle.digest:
                outcome = await self._back(variant)
            else:
                outcome = await self._load_into(variant, word.name, word.digest)
            metrics.SWAPS.labels(outcome).inc()
            _log.info("variant %s follows to %s", variant.name, variant.served.bundle.name)
        except BundleRefused:  # counted and said
            self._again[variant.name] = self._clock() + TRY_AGAIN_S

    def _is_due(self, name: str) -> bool:
        return self._clock() >= self._again.get(name, float("inf"))

    async def _announced(self, variant: Variant) -> bool:
        """Tells other processes; False where nobody can be told, and the change holds for this one."""
        bundle = variant.served.bundle
        value = Word(bundle.path.name, bundle.digest, self._configured[variant.name]).encoded()
        if not self._store.durable:
            return False
        try:
            with counting():
                await self._store.announce(f"bundle:{variant.name}", value)
        except StoreUnavailable as error:
            _log.error("the store is away, %s is served by this process only: %s", bundle.name, error)
            return False
        self._heard[variant.name] = value
        return True


def shown(served: Served, *, is_served: bool) -> None:
    """Says in the metrics that a bundle is served, or is not any more."""
    labels = (served.bundle.name, served.bundle.manifest.model, served.bundle.manifest.kind)
    if is_served:
        metrics.BUNDLE_INFO.labels(*labels).set(1)
    elif metrics.MULTIPROCESS_DIR is None:
        with contextlib.suppress(KeyError):  # another variant serves the same, and went first
            metrics.BUNDLE_INFO.remove(*labels)
    else:  # there a series ends with its process, and cannot earlier
        metrics.BUNDLE_INFO.labels(*labels).set(0)


def _let_go(gone: list[Served | None]) -> None:
    """Takes apart what is not served any more, which takes a moment, and gives its memory back."""
    gone.clear()
    give_back()


def _shown(variant: Variant) -> BundleVariant:
    before = None if variant.before is None else variant.before[0].bundle.name
    return {"variant": variant.name, "bundle": variant.served.bundle.name, "before": before}


def _stored(directory: Path) -> list[StoredBundle]:
    """What the directory holds, by what the manifests say; nothing is verified."""
    found: list[StoredBundle] = []
    try:
        names = sorted(path.name for path in directory.iterdir() if (path / MANIFEST).is_file())
    except OSError:
        return []
    for name in names[:MAX_LISTED]:
        try:
            path = bundle_path(directory, name)
            text = (path / MANIFEST).read_text()
            manifest = Manifest.parse(text)
        except (BundleError, OSError, UnicodeDecodeError) as error:
            if not name.startswith("."):
                found.append({"name": name, "refused": str(error)})
            continue
        bundle = Bundle(path, manifest, sha256(text.encode()).hexdigest())
        found.append(
            {
                "name": name,
                "bundle": bundle.name,
                "model": manifest.model,
                "kind": manifest.kind,
                "created": manifest.created,
            }
        )
    return found


def _retrieved(task: asyncio.Task[SwapAnswer]) -> None:
    """Looks at how a swap ended, so that nothing is said of one whose caller has gone."""
    if not task.cancelled():
        task.exception()
