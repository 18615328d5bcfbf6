"""What callers say of items: it is kept first, and then makes the next edition of the catalogue.

A change is in effect on the very next request of this process, survives a restart and reaches the other workers on the
same store within `FOLLOW_EVERY_S`. Changes that come together share one edition. Whoever began on an older edition
ends on it. Every variant gets them; the answers here are those of the default one.

What callers said stands above what a bundle says, also above one that is trained later, until they say something else.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from retrieval.catalog import Catalog, NewItem, Numbers, Words
from retrieval.editions import with_items, without_items
from retrieval.recommenders import Served
from retrieval.sequences import PAD_ROW
from service import metrics
from service.answers import ItemAnswer
from service.errors import InvalidRequest, StoreUnavailable
from service.permits import Permits
from service.schemas import ItemRequest
from service.sessions import ItemChange, SessionStore
from service.users import counting
from service.variants import Variant, Variants

_log = logging.getLogger(__name__)

FOLLOW_EVERY_S = 1.0
MAX_COLUMNS = 256  # attributes of a catalog: each takes room for every item, whether it has one or not
WORDS = "a list of words"
InThread = Callable[..., Awaitable[Any]]


class Items:
    """The items of what is being served.

    Args:
        variants: get the editions.
        store: keeps the changes.
        permits: shared with the pipeline.
    """

    def __init__(self, variants: Variants, *, store: SessionStore, permits: Permits) -> None:
        self._variants = variants
        self._store = store
        self._permits = permits
        self._building = asyncio.Lock()

    def get(self, item_id: str) -> ItemAnswer:
        """What holds of an item.

        Raises:
            UnknownItem: the catalog does not hold it.
        """
        served = self._variants.default.served
        row = served.catalog.row(item_id)
        return {
            "item_id": item_id,
            "available": bool(served.catalog.available[row]),
            "attributes": served.catalog.attributes(row),
            "is_new": row > served.catalog.trained,
            "edition": served.edition,
        }

    async def put(self, item_id: str, asked: ItemRequest) -> tuple[ItemAnswer, bool]:
        """Adds or changes an item; what holds of it now, and whether it is new here.

        Raises:
            Overloaded: no permit.
            InvalidRequest: an attribute that the catalog cannot hold.
            StoreUnavailable: the change is not sure to be kept; send it again, twice does no harm.
        """
        with self._permits.hold():
            catalog = self._variants.default.served.catalog
            unfit = unfit_attributes(kinds_of(catalog), asked.attributes or {})
            if unfit:
                raise InvalidRequest([{"loc": f"attributes.{name}", "msg": why} for name, why in unfit.items()])
            is_added = int(catalog.rows([item_id])[0]) == PAD_ROW
            await self._change(ItemChange(item_id, asked.available, asked.attributes))
            return self.get(item_id), is_added

    async def remove(self, item_id: str) -> None:
        """Takes an item out of every answer; what is known of it stays, and a put brings it back.

        Raises:
            Overloaded: no permit.
            UnknownItem: the catalog does not hold it.
            StoreUnavailable: the change is not sure to be kept; send it again, twice does no harm.
        """
        with self._permits.hold():
            self._variants.default.served.catalog.row(item_id)  # or it is unknown
            await self._change(ItemChange(item_id, available=False))

    async def refresh(self) -> None:
        """Brings into effect what was kept since, by whichever process.

        Raises:
            StoreUnavailable: the store is away, and what is being served stays.
        """
        async with self._building:
            for variant in self._variants:
                served, version = await self.caught_up(variant.served, variant.version)
                self._install(variant, served, version)

    async def install(self, variant: Variant, served: Served, version: int) -> Served | None:
        """Serves another bundle with what callers said of items; what is let go for it, if anything.

        Args:
            variant: what serves it from now on. What it served is kept in `before`.
            served: any edition of the bundle.
            version: of the changes that are in it.
        """
        async with self._building:
            served, version = await self.replayed(served, version, like=variant)
            gone = None if variant.before is None else variant.before[0]
            variant.before = (variant.served, variant.version)
            self._install(variant, served, version)
            return gone

    async def replayed(
        self, served: Served, version: int = 0, *, like: Variant, run: InThread = asyncio.to_thread
    ) -> tuple[Served, int]:
        """An edition with all changes in it; where the store is away, with those that a variant has."""
        try:
            return await self.caught_up(served, version, run=run)
        except StoreUnavailable:  # its version stays, so what was missed comes when the store does
            changes = await run(changes_of, like.served)
            return (await run(next_edition, served, changes) if changes else served), version

    async def caught_up(self, served: Served, version: int, *, run: InThread = asyncio.to_thread) -> tuple[Served, int]:
        """An edition with all changes in it, and the store's version with the last of them.

        Args:
            served: an edition.
            version: of the changes that are in it; 0: none.
            run: calls a function in another thread.

        Raises:
            StoreUnavailable: the store is away.
        """
        with counting():
            latest, changes = await self._store.item_changes(version)
            if latest < version:  # another store than before: an emptied Redis, a file that was replaced
                latest, changes = await self._store.item_changes()
        return (await run(next_edition, served, changes) if changes else served), latest

    def _install(self, variant: Variant, served: Served, version: int) -> None:
        is_changed, variant.served, variant.version = served is not variant.served, served, version
        if is_changed and variant is self._variants.default:
            metrics.EDITION.set(served.edition)
            metrics.INDEX_ITEMS.labels(served.index.name).set(len(served.catalog))

    async def follow(self) -> None:
        """Keeps up with other processes for as long as it is not cancelled."""
        while True:
            await asyncio.sleep(FOLLOW_EVERY_S)
            try:
                await self.refresh()
            except StoreUnavailable:  # counted, and said by the readiness probe
                pass
            except Exception:
                _log.exception("changes of items could not be brought into effect")

    async def _change(self, change: ItemChange) -> None:
        with counting():
            await self._store.change_item(change)
        await self.refresh()  # which finds nothing to do where others, who came first, took this change along


def next_edition(served: Served, changes: Sequence[ItemChange]) -> Served:
    """The edition after these changes."""
    put, gone = [], []
    kinds = kinds_of(served.catalog)
    for change in changes:
        row = int(served.catalog.rows([change.item_id])[0])
        if change.attributes is None and not change.available:
            gone += [change.item_id] if row != PAD_ROW else []
            continue
        attributes = dict(change.attributes if change.attributes is not None else served.catalog.attributes(row))
        for name, why in unfit_attributes(kinds, attributes).items():
            # It was kept while another bundle was served, or came together with one of another kind.
            _log.warning("item %r goes without its attribute %r: %s", change.item_id, name, why)
            del attributes[name]
        kinds |= {name: kind_of(value) for name, value in attributes.items()}
        put.append(NewItem(change.item_id, attributes, available=change.available))
    if put:
        served = with_items(served, put)
    return without_items(served, gone) if gone else served


def changes_of(served: Served) -> list[ItemChange]:
    """What was said of items, as far as an edition shows it: the changes that lead there from the bundle alone."""
    if not served.edition:
        return []
    now, before = served.catalog, served.bundle.catalog
    changes = []
    for row in range(1, len(now.ids)):
        attributes, available = now.attributes(row), bool(now.available[row])
        if row >= len(before.ids) or attributes != before.attributes(row) or available != before.available[row]:
            changes.append(ItemChange(now.ids[row], available, attributes))
    return changes


def kinds_of(catalog: Catalog) -> dict[str, str]:
    """What each attribute of a catalog holds, by its name."""
    called = {Numbers: "a number", Words: "a text"}
    return {name: called.get(type(column), WORDS) for name, column in catalog.columns.items()}


def kind_of(value: object) -> str:
    """What a value is."""
    if isinstance(value, list):
        return WORDS
    return "a text" if isinstance(value, str) else "a number"


def unfit_attributes(kinds: Mapping[str, str], attributes: Mapping[str, Any]) -> dict[str, str]:
    """Which attributes a catalog of such kinds cannot hold, and why."""
    unfit = {}
    for name, value in attributes.items():
        kind = kinds.get(name)
        if kind is None and len(kinds) >= MAX_COLUMNS:
            unfit[name] = f"the catalog has {len(kinds)} attributes, which is the most it may have; use one of those"
        elif kind is not None and kind != kind_of(value):
            unfit[name] = f"{name!r} holds {kind} in this catalog; {value!r:.60} is {kind_of(value)}"
    return unfit
