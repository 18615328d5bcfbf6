"""What every session store promises of a user who turns out to be another."""

import asyncio
import random
from collections.abc import Sequence

import pytest

from service.sessions import FrozenList, SessionStore, StoredEvent


def event(item_id: str, at: float, event_id: str | None = None) -> StoredEvent:
    return StoredEvent(item_id, "view", None, at, event_id)


def items(history: Sequence[StoredEvent]) -> str:
    return " ".join(stored.item_id for stored in history)


def test_the_events_of_one_go_over_to_the_other_in_their_order(room):
    async def story(store: SessionStore) -> None:
        await store.append("guest", [event("a", 1, "e1"), event("c", 3), event("c", 3), event("e", 5)])
        await store.append("anna", [event("b", 2), event("c'", 3), event("d", 4, "e4")])
        assert await store.merge("guest", "anna") == 4
        assert items(await store.history("anna")) == "a b c' c c d e"
        assert await store.history("guest") == []
        assert await store.erase("guest") is False
        assert (await store.append("anna", [event("a", 9, "e1")])).outcomes == ("duplicate",)
        assert (await store.append("guest", [event("a", 9, "e1")])).outcomes == ("accepted",)

    room.run(story)


def test_a_user_who_is_new_takes_over_everything(room):
    async def story(store: SessionStore) -> None:
        given = [StoredEvent("a", "view", 4.5, 1.0, "e1", "r1", {"page": ["home"]}), event("b", 2)]
        await store.append("guest", given)
        assert await store.merge("guest", "anna") == 2
        assert await store.history("anna") == given

    room.run(story)


def test_empty_nobody_merged_and_a_user_merged_into_themselves_change_nothing(room):
    async def story(store: SessionStore) -> None:
        await store.append("anna", [event("a", 1)])
        assert await store.merge("nobody", "anna") == 0
        assert await store.merge("anna", "anna") == 0
        assert await store.merge("nobody", "no one") == 0
        assert items(await store.history("anna")) == "a"
        assert await store.erase("no one") is False

    room.run(story)


def test_an_event_that_both_have_is_one_event(room):
    async def story(store: SessionStore) -> None:
        await store.append("anna", [event("a", 1), event("b", 2, "e2"), event("c", 3)])
        await store.append("guest", [event("a", 1), event("a", 1), event("b elsewhere", 9, "e2"), event("d", 4)])
        assert await store.merge("guest", "anna") == 2
        assert items(await store.history("anna")) == "a a b c d"

    room.run(story)


def test_merging_again_what_came_back_adds_only_what_is_new(room):
    """What a merge looks like that broke off before it erased the source, and is repeated."""

    async def story(store: SessionStore) -> None:
        both = [event("a", 1), event("b", 2, "e2"), event("b", 2)]
        await store.append("guest", both)
        await store.merge("guest", "anna")
        await store.append("guest", [*both, event("new", 3)])
        assert await store.merge("guest", "anna") == 1
        assert items(await store.history("anna")) == "a b b new"
        assert await store.merge("guest", "anna") == 0

    room.run(story)


def test_full_the_oldest_of_both_leave_and_their_ids_stay_known(room):
    async def story(store: SessionStore) -> None:
        await store.append("guest", [event(f"g{i}", i, f"g{i}") for i in range(4)])  # g0 has left
        await store.append("anna", [event(f"a{i}", i + 0.5, f"a{i}") for i in range(3)])
        await store.merge("guest", "anna")
        assert items(await store.history("anna")) == "g2 a2 g3"
        again = [event(name, 9, name) for name in ("g0", "g1", "g2", "g3", "a0", "a1", "a2")]
        assert (await store.append("anna", again)).outcomes[2:] == ("duplicate",) * 5
        assert (await store.append("anna", again[:1])).outcomes == ("duplicate",), "remembered with its time"
        room.advance(101)
        assert (await store.append("anna", again[:1])).outcomes == ("accepted",)

    room.run(story, cap=3, dedup_ttl_s=100)


def test_lists_go_over_to_the_other_user_and_are_erased_with_them(room):
    async def story(store: SessionStore) -> None:
        await store.keep_list(FrozenList("r-guest", "guest-9", b"list"), at=2, ttl_s=100)
        await store.keep_list(FrozenList("r-anna", "anna", b"list"), at=2, ttl_s=50)
        assert await store.merge("guest-9", "anna") == 0
        assert await store.advance_list("r-guest", 1) == (b"list", 2), "a page may be on its way"
        assert b"guest-9" not in room.contents()
        assert await store.erase("guest-9") is False
        room.advance(60)
        assert await store.erase("anna") is True
        assert await store.advance_list("r-guest", 0) is None

    room.run(story)


def test_nothing_of_the_erased_name_is_left(room):
    async def story(store: SessionStore) -> None:
        await store.append("guest-9", [event(str(i), i, f"e{i}") for i in range(9)])
        await store.merge("guest-9", "anna")
        assert b"guest-9" not in room.contents()

    room.run(story, cap=4)


def test_events_that_arrive_during_a_merge_are_with_one_of_the_two(room):
    async def story(store: SessionStore) -> None:
        async def shop() -> None:
            for number in range(60):
                await store.append("guest", [event(str(number), number)])

        async def merge() -> None:
            for _ in range(6):
                await store.merge("guest", "anna")

        await asyncio.gather(shop(), merge())
        await store.merge("guest", "anna")
        assert items(await store.history("anna")) == " ".join(map(str, range(60)))

    room.run(story)


@pytest.mark.parametrize("seed", range(3))
def test_all_stores_agree_with_the_rules_on_random_merges(room, seed):
    """The plain model: whatever the guest has, one by one, unless it is there already."""

    async def story(store: SessionStore) -> None:
        chance = random.Random(seed)

        def batch() -> list[StoredEvent]:
            return [
                event(
                    str(chance.randrange(3)),
                    chance.randrange(6),
                    chance.choice([None, None, f"e{chance.randrange(8)}"]),
                )
                for _ in range(chance.randrange(6))
            ]

        for number in range(12):
            guest, anna = f"guest-{number}", f"anna-{number}"
            await store.append(guest, batch())
            await store.append(anna, batch())
            left, kept = await store.history(guest), await store.history(anna)
            met = list(kept)
            new = []
            for each in left:
                if each in met:
                    met.remove(each)
                else:
                    new.append(each)
            ids, moved = {each.event_id for each in kept}, 0
            for each in new:
                is_old = len(kept) == 4 and all(each.timestamp < other.timestamp for other in kept)
                if (each.event_id is None or each.event_id not in ids) and not is_old:
                    ids.add(each.event_id)
                    kept = sorted([*kept, each], key=lambda stored: stored.timestamp)[-4:]
                    moved += 1
            if not {each.event_id for each in new} & await trimmed(store, anna, batch_ids=8):
                assert await store.merge(guest, anna) == moved
                assert await store.history(anna) == kept

    async def trimmed(store: SessionStore, user: str, *, batch_ids: int) -> set[str]:
        """Ids whose events have left: an append of them in the distant past is a duplicate, and too old otherwise."""
        kept = {each.event_id for each in await store.history(user)}
        if len(await store.history(user)) < 4:
            return set()
        asked = [event("x", -1, f"e{n}") for n in range(batch_ids)]
        outcomes = (await store.append(user, asked)).outcomes
        known = {each.event_id for each, outcome in zip(asked, outcomes, strict=True) if outcome == "duplicate"}
        return {str(event_id) for event_id in known - kept}

    room.run(story, cap=4)
