"""What every session store promises, asked of each."""

import asyncio
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from store_load import loaded

from service.errors import ConfigurationError, InvalidRequest, StoreUnavailable
from service.sessions import AppendResult, SessionStore, StoredEvent, open_store, sqlite_path

NOW = 1_700_000_000.0


def event(item_id: str, at: float = 0.0, event_id: str | None = None, **more: Any) -> StoredEvent:
    return StoredEvent(item_id, "view", more.pop("value", None), NOW + at, event_id, **more)


def items(history: Sequence[StoredEvent]) -> str:
    return " ".join(stored.item_id for stored in history)


def test_an_append_is_visible_in_its_answer_and_in_the_very_next_history(room):
    async def story(store: SessionStore) -> None:
        given = [
            event("a", 1, "e1", value=4.5, recommendation_id="r1", context={"page": "home", "n": [1, None, True]}),
            StoredEvent("b", "purchase", 0.0, NOW + 2.123456),
            event("c", 3, context={}),
            event("d", 4, recommendation_id="r2"),
        ]
        result = await store.append("u", given)
        assert result == AppendResult(("accepted",) * 4, given)
        assert await store.history("u") == given
        assert (await store.append("u", [event("e", 5)])).history == [*given, event("e", 5)]

    room.run(story)


def test_columns_say_what_the_history_says(room):
    async def story(store: SessionStore) -> None:
        assert await store.columns("u") == ((), (), (), ())
        for given in (
            [event("a", 1, "e1"), event("b", 2)],
            [event("c", 3, value=0.5), event("d", 4, context={"n": 1})],
        ):
            await store.append("u", given)
            said = zip(*await store.columns("u"), strict=True)
            assert [*said] == [stored[:4] for stored in await store.history("u")]

    room.run(story)


def test_an_unknown_user_has_an_empty_history(room):
    async def story(store: SessionStore) -> None:
        assert await store.history("nobody") == []
        assert await store.erase("nobody") is False

    room.run(story)


def test_empty_an_append_of_nothing_reads_and_leaves_no_trace(room):
    async def story(store: SessionStore) -> None:
        assert await store.append("u", []) == AppendResult((), [])
        assert await store.append_many({}) == {}
        assert await store.erase("u") is False
        await store.append("u", [event("a")])
        assert items((await store.append("u", [])).history) == "a"

    room.run(story)


def test_late_events_take_their_place(room):
    async def story(store: SessionStore) -> None:
        await store.append("u", [event("c", 3), event("a", 1)])
        result = await store.append("u", [event("e", 5), event("b", 2), event("d", 4)])
        assert result.outcomes == ("accepted",) * 3
        assert items(result.history) == items(await store.history("u")) == "a b c d e"

    room.run(story)


def test_times_before_1970_and_far_apart_are_ordered_as_numbers(room):
    async def story(store: SessionStore) -> None:
        times = [1e16, -5.0, 0.0, 1e-7, 123456789.123456, -1e22, 10.0, 9.0]
        await store.append("u", [StoredEvent(str(t), "view", None, t) for t in times])
        assert [stored.timestamp for stored in await store.history("u")] == sorted(times)

    room.run(story)


def test_events_of_equal_time_keep_their_order_of_arrival(room):
    async def story(store: SessionStore) -> None:
        await store.append("u", [event("z", 1), event("y", 1)])
        await store.append("u", [event("later", 2)])
        await store.append("u", [event("x", 1), event("z", 1), event("a", 1)])
        assert items(await store.history("u")) == "z y x z a later"

    room.run(story)


def test_full_the_oldest_leave_a_full_history(room):
    async def story(store: SessionStore) -> None:
        result = await store.append("u", [event(str(i), i) for i in range(5)])
        assert result.outcomes == ("accepted",) * 5
        assert items(result.history) == "2 3 4"
        result = await store.append("u", [event("5", 5), event("between", 3.5)])
        assert items(result.history) == items(await store.history("u")) == "between 4 5"

    room.run(story, cap=3)


def test_full_an_event_older_than_all_of_a_full_history_is_too_old(room):
    async def story(store: SessionStore) -> None:
        await store.append("u", [event(str(i), i) for i in range(3)])
        result = await store.append("u", [event("old", -1, "e"), event("new", 9)])
        assert result.outcomes == ("too_old", "accepted")
        assert items(result.history) == "1 2 new"
        assert (await store.append("u", [event("old", -1, "e")])).outcomes == ("too_old",)

    room.run(story, cap=3)


def test_full_a_history_of_a_thousand_events_keeps_the_newest_thousand(room):
    async def story(store: SessionStore) -> None:
        for start in range(0, 1500, 500):
            await store.append("u", [event(str(i), i, f"e{i}") for i in range(start, start + 500)])
        await store.append("u", [event("late", 999.5), event("last", 2000)])
        history = await store.history("u")
        assert items(history) == " ".join([*map(str, range(502, 1000)), "late", *map(str, range(1000, 1500)), "last"])

    room.run(story)


def test_a_lower_cap_after_a_restart_shows_and_keeps_fewer(room):
    if not room.store().durable:
        return  # nothing survives there to be shown

    async def fill(store: SessionStore) -> None:
        await store.append("u", [event(str(i), i, f"e{i}") for i in range(6)])

    async def look(store: SessionStore) -> None:
        assert items(await store.history("u")) == "3 4 5"
        assert items((await store.append("u", [])).history) == "3 4 5"
        result = await store.append("u", [event("0", 7, "e0"), event("6", 6)])
        assert result.outcomes == ("duplicate", "accepted")
        assert items(result.history) == items(await store.history("u")) == "4 5 6"

    room.run(fill)
    room.run(look, cap=3)


def test_a_duplicate_is_recognised_within_one_call_and_across_calls(room):
    async def story(store: SessionStore) -> None:
        result = await store.append("u", [event("a", 1, "e1"), event("b", 2, "e1"), event("c", 3), event("c", 3)])
        assert result.outcomes == ("accepted", "duplicate", "accepted", "accepted")
        result = await store.append("u", [event("d", 4, "e1"), event("e", 5, "e2")])
        assert result.outcomes == ("duplicate", "accepted")
        assert items(result.history) == "a c c e"
        assert (await store.append("v", [event("a", 1, "e1")])).outcomes == ("accepted",), "ids are a user's own"

    room.run(story)


def test_a_duplicate_is_recognised_after_its_event_has_left_a_full_history(room):
    async def story(store: SessionStore) -> None:
        await store.append("u", [event("a", 1, "e1"), event("b", 2, "e2")])
        await store.append("u", [event("c", 3), event("d", 4)])
        assert (await store.append("u", [event("a", 5, "e1")])).outcomes == ("duplicate",)
        room.advance(99)
        assert (await store.append("u", [event("a", 5, "e1")])).outcomes == ("duplicate",)
        room.advance(2)
        assert (await store.append("u", [event("a", 5, "e1")])).outcomes == ("accepted",)

    room.run(story, cap=2, dedup_ttl_s=100)


def test_a_duplicate_is_recognised_as_long_as_its_event_is_kept(room):
    async def story(store: SessionStore) -> None:
        await store.append("u", [event("a", 1, "e1")])
        room.advance(5000)
        assert (await store.append("u", [event("a", 5, "e1")])).outcomes == ("duplicate",)

    room.run(story, dedup_ttl_s=100)


def test_a_user_without_events_for_the_time_to_live_is_forgotten(room):
    async def story(store: SessionStore) -> None:
        await store.append("u", [event("a", 1, "e1")])
        room.advance(900)
        await store.append("u", [event("b", 2)])
        room.advance(900)
        assert items(await store.history("u")) == "a b", "an event prolongs the life of the whole history"
        await store.append("u", [event("a", 1, "e1")])  # a duplicate does not
        room.advance(101)
        assert await store.history("u") == []
        assert await store.erase("u") is False
        assert items((await store.append("u", [event("a", 1, "e1")])).history) == "a"

    room.run(story, ttl_s=1000, dedup_ttl_s=100)


ODD_IDS = [
    "a:b{c}", "{", "}", "}{", "{}", "%7B", "%", "a b", "", "'", '"; DROP TABLE users;--', "a\nb", "a\x00b", "*", "\\",
    "пользователь", "用户", "🛒👩‍👩‍👧", "é", "e\u0301", "A", "a", "u" * 256, "🙂" * 256, "null", "0",
]  # fmt: skip


def test_odd_ids_come_back_and_stay_apart(room):
    async def story(store: SessionStore) -> None:
        for i, odd in enumerate(ODD_IDS):
            given = StoredEvent(odd, odd, None, NOW + i, odd, odd, {odd: odd})
            assert (await store.append(odd, [given])).history == [given]
            assert (await store.append(odd, [given])).outcomes == ("duplicate",)
        for i, odd in enumerate(ODD_IDS):
            assert await store.history(odd) == [StoredEvent(odd, odd, None, NOW + i, odd, odd, {odd: odd})]
        for odd in ODD_IDS:
            assert await store.erase(odd) is True
            assert await store.history(odd) == []
        assert await store.erase("sequitur") is False

    room.run(story)


@pytest.mark.parametrize(
    "wrong",
    [
        StoredEvent("a", "view", None, math.nan),
        StoredEvent("a", "view", None, math.inf),
        StoredEvent("a", "view", math.nan, NOW),
        StoredEvent("a", "view", -math.inf, NOW),
        StoredEvent("\ud800", "view", None, NOW),
        StoredEvent("a", "view", None, NOW, event_id="\ud800"),
        StoredEvent("a", "view", None, NOW, context={"a": object()}),
        StoredEvent("a", "view", None, NOW, context={"a": 2**70}),
    ],
    ids=["nan-time", "inf-time", "nan-value", "inf-value", "item-id", "event-id", "context", "huge-integer"],
)
def test_an_event_that_cannot_be_read_back_is_refused_and_nothing_of_its_call_is_stored(room, wrong):
    async def story(store: SessionStore) -> None:
        with pytest.raises(InvalidRequest):
            await store.append_many({"u": [event("good"), wrong], "v": [event("good")]})
        assert await store.history("u") == await store.history("v") == []

    room.run(story)


def test_a_user_id_that_is_not_text_is_refused(room):
    async def story(store: SessionStore) -> None:
        for call in (store.history("\ud800"), store.erase("\ud800"), store.append("\ud800", [event("a")])):
            with pytest.raises(InvalidRequest, match="user_id"):
                await call

    room.run(story)


def test_erase_leaves_nothing_behind(room):
    async def story(store: SessionStore) -> None:
        await store.append("victim-17", [event(f"secret-{i}", i, f"trace-{i}") for i in range(9)])
        await store.append("witness", [event("w")])
        await store.append("victim-17", [event("secret-x", 99, "trace-x")])
        assert await store.erase("victim-17") is True
        assert await store.history("victim-17") == []
        contents = room.contents()
        for trace in (b"victim-17", b"secret-", b"trace-"):
            assert trace not in contents
        assert await store.erase("victim-17") is False
        result = await store.append("victim-17", [event("n", 1, "trace-0"), event("n", 2, "trace-x")])
        assert result.outcomes == ("accepted", "accepted"), "forgotten ids are new again"
        assert items(await store.history("witness")) == "w"

    room.run(story, cap=4)


def test_several_users_in_one_call(room):
    async def story(store: SessionStore) -> None:
        await store.append("u1", [event("a", 1, "e1")])
        results = await store.append_many(
            {"u2": [event("x", 1)], "u1": [event("a", 1, "e1"), event("b", 2)], "u3": []}, read_back=True
        )
        assert list(results) == ["u2", "u1", "u3"]
        assert results["u1"].outcomes == ("duplicate", "accepted")
        assert [items(results[user].history) for user in results] == ["x", "a b", ""]
        results = await store.append_many({f"m{i}": [event("x")] for i in range(300)}, read_back=False)
        assert all(result == AppendResult(("accepted",), []) for result in results.values())
        assert items(await store.history("m299")) == "x"

    room.run(story)


def test_fifty_appends_at_once_to_one_user_lose_nothing(room):
    async def story(store: SessionStore) -> None:
        results = await asyncio.gather(*(store.append("u", [event(str(i), i % 7, f"e{i}")]) for i in range(50)))
        assert all(result.outcomes == ("accepted",) for result in results)
        assert sorted(len(result.history) for result in results) == list(range(1, 51)), "each saw another moment"
        history = await store.history("u")
        assert {stored.item_id for stored in history} == set(map(str, range(50)))
        assert [stored.timestamp for stored in history] == sorted(stored.timestamp for stored in history)

    room.run(story)


def test_the_same_event_fifty_times_at_once_is_accepted_once(room):
    async def story(store: SessionStore) -> None:
        results = await asyncio.gather(*(store.append("u", [event("a", 0, "e")]) for _ in range(50)))
        assert sorted(result.outcomes[0] for result in results) == ["accepted"] + ["duplicate"] * 49
        assert items(await store.history("u")) == "a"

    room.run(story)


def test_users_at_the_same_time_never_mix(room):
    async def story(store: SessionStore) -> None:
        async def shop(user: str) -> None:
            for i in range(5):
                result = await store.append(user, [event(f"{user}-{i}", i)])
                assert items(result.history) == " ".join(f"{user}-{j}" for j in range(i + 1))
                assert await store.history(user) == result.history

        await asyncio.gather(*(shop(f"u{i}") for i in range(30)))

    room.run(story)


def test_cancelled_calls_never_disturb_the_others(room):
    """Hundreds of calls are cancelled at random moments; every answer that arrives must be its caller's own."""

    async def story(store: SessionStore) -> None:
        chance = random.Random(7)
        for user in range(40):
            await store.append(f"u{user}", [event(f"u{user}-item", user)])
        tasks = []
        for _ in range(600):
            user = chance.randrange(40)
            call = store.history(f"u{user}") if chance.random() < 0.7 else store.append(f"u{user}", [])
            tasks.append((user, asyncio.ensure_future(call)))
            if chance.random() < 0.5:
                chance.choice(tasks[-10:])[1].cancel()
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
        answers = await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
        cancelled = sum(isinstance(answer, asyncio.CancelledError) for answer in answers)
        if store.name != "memory":  # which never waits, and so is rarely caught
            assert cancelled > 100
        for (user, _), answer in zip(tasks, answers, strict=True):
            if not isinstance(answer, asyncio.CancelledError):
                history = answer.history if isinstance(answer, AppendResult) else answer
                assert items(history) == f"u{user}-item"

    room.run(story)


def test_hundreds_cancelled_among_thousands_leave_no_reply_to_anybody_else(room):
    """As `loaded`, in which users never mix."""

    async def story(store: SessionStore) -> None:
        ended = await loaded(store, calls=3000)
        if store.name != "memory":  # which never waits, and so is rarely caught
            assert ended["cancelled"] >= 300
        assert ended["answered"] >= 500

    room.run(story)


def test_gone_a_closed_store_refuses_and_says_so(room):
    async def story() -> None:
        store = room.store()
        await store.open()
        await store.ping()
        await store.close()
        await store.close()
        for operation, call in {
            "append": lambda: store.append("u", [event("a")]),
            "history": lambda: store.history("u"),
            "erase": lambda: store.erase("u"),
            "ping": lambda: store.ping(),
        }.items():
            with pytest.raises(StoreUnavailable, match="closed") as refusal:
                await call()
            assert refusal.value.operation == operation

    asyncio.run(story())


def test_all_stores_agree_with_the_rules_on_random_appends(room):
    """The plain model: a sorted list, a set of ids and nothing clever."""

    async def story(store: SessionStore) -> None:
        chance = random.Random(11)
        for round_number in range(40):
            user, kept, ids = f"u{round_number}", [], set()
            for _ in range(chance.randrange(1, 8)):
                batch = [
                    event(str(n), chance.randrange(6), chance.choice([None, None, f"e{chance.randrange(8)}"]))
                    for n in range(chance.randrange(9))
                ]
                expected = []
                for new in batch:
                    if new.event_id is not None and new.event_id in ids:
                        expected.append("duplicate")
                    elif len(kept) == 4 and all(new.timestamp < old.timestamp for old in kept):
                        expected.append("too_old")
                    else:
                        expected.append("accepted")
                        ids.add(new.event_id)
                        kept = sorted([*kept, new], key=lambda stored: stored.timestamp)[-4:]
                result = await store.append(user, batch)
                assert list(result.outcomes) == expected
                assert result.history == kept == await store.history(user)

    room.run(story, cap=4)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (
            "postgres://h/db",
            "'postgres' is not the scheme of a session store; there are memory://, sqlite:///path, redis",
        ),
        ("", "'' is not the scheme"),
        ("sessions.db", "is not the scheme"),
        ("redis+cluster://h:1/2", "no database 2, only 0"),
        ("redis://h:1,h:2", r"several servers are a cluster; write redis\+cluster"),
        ("sqlite://sessions.db", "write sqlite:///sessions.db"),
        ("sqlite:///", "names no file"),
        ("sqlite:///var/", "names no file"),
        ("sqlite:///:memory:", "memory:// to keep nothing"),
        ("sqlite:///a.db?mode=ro", "takes none"),
        ("redis://h:port/0", "a Redis URL reads"),
    ],
)
def test_a_url_that_names_no_store_is_refused_with_what_would(url, reason):
    with pytest.raises(ConfigurationError, match=reason):
        open_store(url)


def test_a_refused_url_does_not_show_its_password():
    with pytest.raises(ConfigurationError) as refusal:
        open_store("valkey://me:hunter2@h:1/0")
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"cap": 0}, "at least 1"),
        ({"ttl_s": 10, "dedup_ttl_s": 20}, "no longer than"),
        ({"dedup_ttl_s": 0}, "above 0"),
        ({"timeout_s": 0}, "above 0"),
    ],
)
def test_limits_that_cannot_hold_are_refused(limits, reason):
    with pytest.raises(ConfigurationError, match=reason):
        open_store("memory://", **limits)


def test_three_slashes_are_a_relative_path_and_four_an_absolute_one():
    assert sqlite_path("sqlite:///var/a.db") == "var/a.db"
    assert sqlite_path("sqlite:////var/a.db") == "/var/a.db"
    assert sqlite_path("sqlite:///a%20b%3F.db") == "a b?.db"
