"""What is special to the store in memory."""

import asyncio
import logging

from service.sessions import StoredEvent
from service.sessions.memory import MemorySessionStore


def memory_store(max_users: int = 3) -> MemorySessionStore:
    return MemorySessionStore(cap=10, ttl_s=100, dedup_ttl_s=10, clock=lambda: 0.0, max_users=max_users)


def event(item_id: str) -> StoredEvent:
    return StoredEvent(item_id, "view", None, 1.0)


def test_it_says_loudly_that_it_is_not_for_production(caplog):
    with caplog.at_level(logging.WARNING):
        asyncio.run(memory_store().open())
    assert "NOT FOR PRODUCTION" in caplog.text
    assert "SEQUITUR_STORE" in caplog.text


def test_full_the_users_who_were_least_recently_there_leave():
    async def story() -> None:
        store = memory_store()
        for user in ("a", "b", "c"):
            await store.append(user, [event("x")])
        await store.history("a")
        await store.append("d", [event("x")])
        assert [user for user in "abcd" if await store.history(user)] == ["a", "c", "d"]

    asyncio.run(story())


def test_users_who_were_only_asked_for_take_no_room():
    async def story() -> None:
        store = memory_store(max_users=1)
        await store.append("a", [event("x")])
        for i in range(10):
            await store.history(f"stranger-{i}")
            await store.append(f"stranger-{i}", [])
        assert len(await store.history("a")) == 1

    asyncio.run(story())


def test_a_history_that_was_given_out_is_the_callers_own():
    async def story() -> None:
        store = memory_store()
        (await store.append("a", [event("x")])).history.clear()
        (await store.history("a")).clear()
        assert len(await store.history("a")) == 1

    asyncio.run(story())
