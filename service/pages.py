"""Pages: what lay ahead of a list when it was found, kept for half an hour for whoever asks for more of it.

A list is found once. What follows its first page is frozen in item ids: neither what the user does meanwhile nor
another bundle changes it, and an item that may not be shown any more is left out. Nothing here can fail a
recommendation, or hold it up: a list is sent to the store and not waited for. Where the store is away, lists have no
next page from the first one on that could not be kept, and say so by `next: null`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import orjson

from retrieval.queries import Answer
from retrieval.recommenders import Served
from retrieval.sequences import PAD_ROW, IntArray
from service import metrics
from service.answers import RecommendationAnswer, RecommendedItem
from service.cards import Cards
from service.errors import InvalidRequest, ListGone, StoreUnavailable
from service.journal import Journal, ServedList
from service.ladder import Call
from service.permits import Permits
from service.sessions import FrozenList, SessionStore
from service.timing import Timings
from service.users import counting
from service.variants import Variants
from service.within import Within

KEPT_S = 1800.0
LAYOUT = 2
MOST_UNDER_WAY = 1_024  # lists; more than a store takes in the time that they have
LOOK_AGAIN_S = 0.05  # for a list that is not there: longer than one is on its way to a store that is well


@dataclass(frozen=True, slots=True)
class Ahead:
    """What follows the first page of a list.

    Attributes:
        model: name, bundle and variant that found it.
        shown: how many items stood on the first page.
        reasons: why the list was degraded.
        ids: in their order.
        scores: theirs.
        sources: runs of equal sources: each with its length.
        history: item ids that the models read, for reasons; these are found when a page is asked for.
        user_id: whose list it is, if anybody's.
        is_ranked: whether scores are a ranker's.
        since: when it was found, in seconds since 1970.
    """

    model: list[str]
    shown: int
    reasons: list[str]
    ids: list[str]
    scores: list[float]
    sources: list[list[Any]]
    history: list[str]
    user_id: str | None
    is_ranked: bool
    since: float

    def items(self, places: Sequence[int], served: Served, rows: IntArray) -> list[RecommendedItem]:
        """The items at some places of the whole list; `rows` are those of `ids`.

        What a model finds near is true in its own space, so another bundle gives no reasons.
        """
        sources = [source for source, length in self.sources for _ in range(length)]
        attributes = Cards(served.catalog).attributes
        near: list[int] = []
        if served.bundle.name == self.model[1]:
            own = [place - self.shown for place in places]
            page = Answer(rows[own], np.array(self.scores, np.float32)[own], tuple(sources[at] for at in own))
            near = served.reasons.nearest(page, served.catalog.rows(self.history)).tolist()
        items: list[RecommendedItem] = []
        for n, place in enumerate(places):
            at = place - self.shown
            score = float(np.float32(self.scores[at]))
            item: RecommendedItem = {
                "item_id": self.ids[at],
                "score": score,
                "rank": place + 1,
                "source": sources[at],
            }
            known = attributes(int(rows[at]))
            if known is not None:
                item["attributes"] = known
            if near and near[n] != PAD_ROW:
                item["reason"] = {"kind": "near", "item_id": served.catalog.ids[near[n]]}
            items.append(item)
        return items


def encoded(
    call: Call, answer: Answer, history: IntArray, k: int, model: Sequence[str], *, user_id: str | None
) -> bytes:
    """What lies behind the first `k` items of an answer, as the store keeps it; `decoded` reads it."""
    ids = call.served.catalog.ids
    behind = answer.sources[k:]
    if behind.count(behind[0]) == len(behind):  # as nearly always
        sources = [(behind[0], len(behind))]
    else:
        sources = [(source, len([*run])) for source, run in groupby(behind)]
    return orjson.dumps(
        [
            LAYOUT,
            model,
            k,
            call.reasons,
            [ids[row] for row in answer.rows[k:].tolist()],
            np.ascontiguousarray(answer.scores[k:], dtype=np.float32),
            sources,
            [ids[row] for row in call.served.reasons.read(history).tolist()],
            user_id,
            bool(answer.ranked),
            call.now,
        ],
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def decoded(payload: bytes) -> Ahead | None:
    """What `encoded` wrote; None for another layout, which a version before or after this one kept."""
    layout, *fields = orjson.loads(payload)
    return Ahead(*fields) if layout == LAYOUT else None


class Pages:
    """Keeps what follows, and gives it out page by page.

    Args:
        store: where it is kept.
        variants: what is being served, which says what may still be shown.
        permits: shared with the pipeline.
        journal: keeps what was served.
        length: how long lists are found, first page included; 0 keeps none.
        timeout_s: how long a list may be on its way to the store.
        clock: seconds from some fixed moment; timings.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        variants: Variants,
        permits: Permits,
        journal: Journal,
        length: int,
        timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._variants = variants
        self._permits = permits
        self._journal = journal
        self._length = length
        self._timeout_s = timeout_s
        self._clock = clock
        self._under_way: dict[str, asyncio.Task[None]] = {}  # by recommendation id
        self._can_keep = True

    def ahead(self, k: int) -> int:
        """How many items to find behind the first `k`."""
        return max(0, self._length - k)

    def keep(self, kept: FrozenList, k: int) -> str | None:
        """Where the next page is; None where lists cannot be kept at present.

        The list is on its way to the store, and nobody waits for it: whoever is answered meanwhile needs longer to come
        back. Where the last one could not be kept, the next one is tried, and not promised.
        """
        if len(self._under_way) >= MOST_UNDER_WAY:
            metrics.LISTS["lost"].inc()
            return None
        own_id = kept.recommendation_id
        task = self._under_way[own_id] = asyncio.get_running_loop().create_task(self._kept(kept, k))
        task.add_done_callback(lambda _: self._under_way.pop(own_id, None))
        return _path(own_id, k, k) if self._can_keep else None

    async def _kept(self, kept: FrozenList, k: int) -> None:
        try:
            with Within(self._timeout_s):
                await self._store.keep_list(kept, at=k, ttl_s=KEPT_S)
        except (TimeoutError, StoreUnavailable):
            self._can_keep = False
            metrics.STORE_ERRORS.labels("keep_list").inc()
            metrics.LISTS["lost"].inc()
        else:
            self._can_keep = True
            metrics.LISTS["kept"].inc()

    async def settled(self) -> None:
        """Returns when every list that is on its way now has arrived, or never will."""
        if self._under_way:
            await asyncio.wait([*self._under_way.values()])

    async def next(
        self, recommendation_id: str, *, k: int | None = None, after: int | None = None
    ) -> RecommendationAnswer:
        """The page after those that were shown.

        Args:
            recommendation_id: of the list.
            k: items wanted; None means as many as stood on the first page.
            after: how many places of the list come before; the same number gives the same page again. None means where
                the calls before this one have come to, and calls at the same time get different pages.

        Raises:
            Overloaded: no permit.
            ListGone: the list is not known, or not any more.
            InvalidRequest: `after` lies within the first page, which is not kept.
            StoreUnavailable: the store is away.
        """
        with self._permits.hold():
            timings = Timings(self._clock)
            with timings("state"):
                ahead, position = await self._advanced(recommendation_id, 0 if after is not None else k or 0)
                if after is None and k is None:
                    ahead, position = await self._advanced(recommendation_id, ahead.shown)
                start = position if after is None else after
                if start < ahead.shown:
                    message = f"the first {ahead.shown} stood in the answer itself; go on with after={ahead.shown}"
                    raise InvalidRequest([{"loc": "after", "msg": message}])
                wanted, end = k or ahead.shown, ahead.shown + len(ahead.ids)
                served = self._served(ahead.model[-1])
                rows = served.catalog.rows(ahead.ids)
                may_be_shown = np.flatnonzero(served.catalog.available[rows]) + ahead.shown
                if after is not None:
                    places = may_be_shown[may_be_shown >= start][:wanted].tolist()
                    reached = places[-1] + 1 if len(places) == wanted else end
                else:
                    reached = start + wanted
                    places = _between(may_be_shown, start, reached)
                    while len(places) < wanted and reached < end:  # some were removed, and others follow
                        lacking = wanted - len(places)
                        _, start = await self._advanced(recommendation_id, lacking)
                        reached = start + lacking
                        places += _between(may_be_shown, start, reached)
            with timings("respond"):
                items = ahead.items(places, served, rows)
            metrics.LISTS["read"].inc()
            for stage, seconds in timings.seconds.items():
                metrics.STAGE[stage].observe(seconds)
            name, bundle, variant = ahead.model
            is_over = not len(_between(may_be_shown, reached, end))
            body: RecommendationAnswer = {
                "recommendation_id": recommendation_id,
                "items": items,
                "next": None if is_over else _path(recommendation_id, wanted, reached),
                "model": {"name": name, "bundle": bundle, "variant": variant},
                "degraded": bool(ahead.reasons),
                "degraded_reasons": ahead.reasons,
                "timings_ms": timings.milliseconds(),
            }
            self._journal.served(ServedList(body, ahead.user_id, None, wanted, ahead.is_ranked, since=ahead.since))
            return body

    def _served(self, variant: str) -> Served:
        """What is in the place of the variant that found a list."""
        return (self._variants.named(variant) if variant in self._variants else self._variants.default).served

    async def _advanced(self, recommendation_id: str, by: int) -> tuple[Ahead, int]:
        with self._permits.lent(is_bounded=True), counting():
            if recommendation_id in self._under_way:
                await asyncio.wait([self._under_way[recommendation_id]])
            found = await self._store.advance_list(recommendation_id, by)
            if found is None:  # it may come from another process, and be on its way
                await asyncio.sleep(LOOK_AGAIN_S)
                found = await self._store.advance_list(recommendation_id, by)
        ahead = decoded(found[0]) if found is not None else None
        if found is None or ahead is None:
            metrics.LISTS["gone"].inc()
            raise ListGone(recommendation_id, KEPT_S)
        return ahead, found[1]


def _between(places: IntArray, start: int, end: int) -> list[int]:
    chosen: list[int] = places[(places >= start) & (places < end)].tolist()
    return chosen


def _path(recommendation_id: str, k: int, after: int) -> str:
    return f"/v1/recommendations/{recommendation_id}/next?k={k}&after={after}"
