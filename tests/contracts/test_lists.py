"""What every session store promises of frozen lists, of counts and of announcements."""

import asyncio

import pytest

from service.errors import InvalidRequest, StoreUnavailable
from service.sessions import FrozenList, SessionStore, StoredEvent

LIST = FrozenList("r-1", "anna", b"\x00\xff payload\r\n")


def test_a_list_is_read_and_moved_on_and_tells_where_it_was(room):
    async def story(store: SessionStore) -> None:
        await store.keep_list(LIST, at=10, ttl_s=100)
        assert await store.advance_list("r-1", 0) == (LIST.payload, 10)
        assert await store.advance_list("r-1", 5) == (LIST.payload, 10)
        assert await store.advance_list("r-1", 20) == (LIST.payload, 15)
        assert await store.advance_list("r-1", 0) == (LIST.payload, 35)
        assert await store.advance_list("r-2", 0) is None
        assert await store.advance_list("r-2", 5) is None
        await store.keep_list(LIST._replace(payload=b""), at=0, ttl_s=100)
        assert await store.advance_list("r-1", 0) == (b"", 0), "the latest word counts"

    room.run(story)


def test_many_at_once_each_get_a_page_of_their_own(room):
    async def story(store: SessionStore) -> None:
        await store.keep_list(LIST, at=0, ttl_s=100)
        pages = await asyncio.gather(*(store.advance_list("r-1", 3) for _ in range(50)))
        assert sorted(page[1] for page in pages if page) == list(range(0, 150, 3))

    room.run(story)


def test_a_list_is_forgotten_in_time_and_paging_does_not_prolong_its_life(room):
    async def story(store: SessionStore) -> None:
        await store.keep_list(LIST, at=0, ttl_s=100)
        await store.keep_list(LIST._replace(recommendation_id="r-2"), at=0, ttl_s=1000)
        room.advance(99)
        assert await store.advance_list("r-1", 1) == (LIST.payload, 0)
        room.advance(2)
        assert await store.advance_list("r-1", 1) is None
        assert await store.advance_list("r-1", 0) is None
        assert await store.advance_list("r-2", 0) == (LIST.payload, 0)
        room.advance(900)
        assert await store.erase("anna") is False, "expired is gone"

    room.run(story)


def test_erase_takes_the_lists_of_a_user_and_leaves_the_others(room):
    async def story(store: SessionStore) -> None:
        await store.append("witness-5", [StoredEvent("w", "view", None, 1.0)])
        for owner in ("victim-17", "witness-5", None):
            for number in range(3):
                kept = FrozenList(f"of-{owner}-{number}", owner, f"shown to {owner}".encode())
                await store.keep_list(kept, at=0, ttl_s=100)
        assert await store.erase("victim-17") is True, "also when there is no event"
        for number in range(3):
            assert await store.advance_list(f"of-victim-17-{number}", 0) is None
            assert await store.advance_list(f"of-witness-5-{number}", 0) is not None
            assert await store.advance_list(f"of-None-{number}", 0) is not None
        assert await store.erase("victim-17") is False
        assert b"victim-17" not in room.contents()

    room.run(story)


def test_erase_while_lists_are_being_kept_ends_and_the_next_one_leaves_nothing(room):
    async def story(store: SessionStore) -> None:
        async def serve() -> None:
            for number in range(60):
                await store.keep_list(FrozenList(f"victim-17-{number}", "victim-17", b"x"), at=0, ttl_s=100)

        async def erase() -> None:
            for _ in range(10):
                await store.erase("victim-17")

        await asyncio.gather(serve(), serve(), erase())
        await store.erase("victim-17")
        assert b"victim-17" not in room.contents()

    room.run(story)


@pytest.mark.parametrize(
    "odd", ["a:b{c}", "}{", "%7B", "'; DROP TABLE lists;--", "a\nb", "a\x00b", "用户", "", "u" * 256]
)
def test_odd_ids_of_lists_names_and_users_come_back(room, odd):
    async def story(store: SessionStore) -> None:
        await store.keep_list(FrozenList(odd, odd, odd.encode()), at=1, ttl_s=100)
        assert await store.advance_list(odd, 1) == (odd.encode(), 1)
        assert await store.history(odd) == []
        assert await store.erase(odd) is True
        assert await store.advance_list(odd, 0) is None
        assert await store.count_distinct(odd, [odd.encode()], ttl_s=100) == 1
        await store.announce(odd, odd.encode())
        assert await store.announced(odd) == odd.encode()

    room.run(story)


def test_an_id_that_is_not_text_is_refused(room):
    async def story(store: SessionStore) -> None:
        for call in (
            store.keep_list(LIST._replace(recommendation_id="\ud800"), at=0, ttl_s=1),
            store.keep_list(LIST._replace(user_id="\ud800"), at=0, ttl_s=1),
            store.advance_list("\ud800", 1),
            store.merge("\ud800", "b"),
            store.merge("a", "\ud800"),
            store.count_distinct("\ud800", [], ttl_s=1),
            store.announce("\ud800", b""),
            store.announced("\ud800"),
        ):
            with pytest.raises(InvalidRequest, match="not valid Unicode"):
                await call

    room.run(story)


def test_a_count_knows_what_it_has_seen_and_is_forgotten_in_time(room):
    async def story(store: SessionStore) -> None:
        assert await store.count_distinct("budget", [], ttl_s=100) == 0
        assert await store.count_distinct("budget", [b"a", b"b", b"a"], ttl_s=100) == 2
        assert await store.count_distinct("budget", [b"b", b"\x00"], ttl_s=100) == 3
        assert await store.count_distinct("budget", [], ttl_s=100) == 3
        assert await store.count_distinct("other", [b"a"], ttl_s=10) == 1
        room.advance(60)
        assert await store.count_distinct("budget", [b"c"], ttl_s=100) == 4, "a new member does not prolong its life"
        room.advance(41)
        assert await store.count_distinct("budget", [], ttl_s=100) == 0
        assert await store.count_distinct("budget", [b"a"], ttl_s=100) == 1

    room.run(story)


def test_a_count_of_thousands_is_right_within_two_percent(room):
    async def story(store: SessionStore) -> None:
        for start in range(0, 9_000, 3_000):
            await store.count_distinct("budget", [str(n).encode() for n in range(start, start + 4_000)], ttl_s=100)
        assert await store.count_distinct("budget", [], ttl_s=100) == pytest.approx(10_000, rel=0.02)

    room.run(story)


def test_an_announcement_is_there_at_once_and_the_latest_one_counts(room):
    async def story(store: SessionStore) -> None:
        assert await store.announced("bundle") is None
        await store.announce("bundle", b"first")
        await store.announce("bundle", b"\x00second")
        await store.announce("other", b"")
        assert await store.announced("bundle") == b"\x00second"
        assert await store.announced("other") == b""

    room.run(story)


def test_an_announcement_outlives_its_store_where_that_is_durable(room):
    if not room.store().durable:
        return

    async def announce(store: SessionStore) -> None:
        await store.announce("bundle", b"books")

    async def look(store: SessionStore) -> bytes | None:
        return await store.announced("bundle")

    room.run(announce)
    assert room.run(look) == b"books"


def test_gone_a_closed_store_refuses_lists_counts_and_announcements(room):
    async def story() -> None:
        store = room.store()
        await store.open()
        await store.close()
        for operation, call in {
            "merge": lambda: store.merge("a", "b"),
            "keep_list": lambda: store.keep_list(LIST, at=0, ttl_s=1),
            "advance_list": lambda: store.advance_list("r-1", 1),
            "count_distinct": lambda: store.count_distinct("n", [b"m"], ttl_s=1),
            "announce": lambda: store.announce("n", b""),
            "announced": lambda: store.announced("n"),
        }.items():
            with pytest.raises(StoreUnavailable, match="closed") as refusal:
                await call()
            assert refusal.value.operation == operation

    asyncio.run(story())
