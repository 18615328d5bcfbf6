"""What every session store promises of the items that callers changed, asked of each."""

import asyncio
import math

import pytest

from service.errors import InvalidRequest
from service.sessions import ItemChange, ItemChanges, SessionStore

TITLED = ItemChange("a", True, {"title": "🛒", "price": 4.5, "year": 1968, "categories": ["x", "y"]})


def test_a_change_is_there_in_the_very_next_look_and_the_version_grows(room):
    async def story(store: SessionStore) -> None:
        assert await store.item_changes() == ItemChanges(0, [])
        first = await store.change_item(TITLED)
        assert await store.item_changes() == ItemChanges(first, [TITLED])
        second = await store.change_item(ItemChange("b", False, {}))
        assert second > first > 0
        assert await store.item_changes(first) == ItemChanges(second, [ItemChange("b", False, {})])
        assert await store.item_changes(second) == ItemChanges(second, [])

    room.run(story)


def test_the_latest_word_on_an_item_is_what_is_kept_in_the_order_of_the_changes(room):
    async def story(store: SessionStore) -> None:
        for change in (TITLED, ItemChange("b", True, {"price": 1}), ItemChange("a", True, {"title": "new"})):
            await store.change_item(change)
        assert (await store.item_changes()).changes == [
            ItemChange("b", True, {"price": 1}),
            ItemChange("a", True, {"title": "new"}),
        ]

    room.run(story)


def test_attributes_that_are_left_out_stay_as_they_were(room):
    async def story(store: SessionStore) -> None:
        await store.change_item(TITLED)
        await store.change_item(ItemChange("a", False))
        await store.change_item(ItemChange("never described", False))
        assert (await store.item_changes()).changes == [
            TITLED._replace(available=False),
            ItemChange("never described", False, None),
        ]
        await store.change_item(ItemChange("a", True, {}))
        assert (await store.item_changes()).changes[-1] == ItemChange("a", True, {})

    room.run(story)


def test_a_change_outlives_its_store_where_that_is_durable(room):
    if not room.store().durable:
        return

    async def change(store: SessionStore) -> int:
        return await store.change_item(TITLED)

    async def look(store: SessionStore) -> ItemChanges:
        return await store.item_changes()

    version = room.run(change)
    assert room.run(look) == ItemChanges(version, [TITLED])


def test_many_at_once_each_get_a_version_of_their_own(room):
    async def story(store: SessionStore) -> None:
        versions = await asyncio.gather(*(store.change_item(ItemChange(str(n), True)) for n in range(50)))
        assert len(set(versions)) == 50
        version, changes = await store.item_changes()
        assert version == max(versions)
        assert {change.item_id for change in changes} == {str(n) for n in range(50)}

    room.run(story)


@pytest.mark.parametrize("odd", ["a:b{c}", "%7B", "'; DROP TABLE items;--", "a\nb", "a\x00b", "用户", "0", "u" * 256])
def test_odd_ids_come_back_and_disturb_no_user(room, odd):
    async def story(store: SessionStore) -> None:
        await store.change_item(ItemChange(odd, True, {odd: odd}))
        assert (await store.item_changes()).changes == [ItemChange(odd, True, {odd: odd})]
        assert await store.history(odd) == []
        assert await store.erase(odd) is False
        assert len((await store.item_changes()).changes) == 1

    room.run(story)


@pytest.mark.parametrize(
    "wrong",
    [
        ItemChange("a", True, {"price": math.nan}),
        ItemChange("a", True, {"price": object()}),
        ItemChange("a", True, {"title": "\ud800"}),
        ItemChange("\ud800", True),
    ],
)
def test_what_cannot_be_kept_is_refused_and_nothing_changes(room, wrong):
    async def story(store: SessionStore) -> None:
        with pytest.raises(InvalidRequest, match="cannot be kept as JSON"):
            await store.change_item(wrong)
        assert await store.item_changes() == ItemChanges(0, [])

    room.run(story)
