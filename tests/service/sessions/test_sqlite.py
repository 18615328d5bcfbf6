"""What is special to the embedded store: other processes, restarts, the end of a process, the end of a disk."""

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from service.errors import StoreUnavailable
from service.sessions import FrozenList, SessionStore, StoredEvent, open_store
from service.sessions.sqlite import PURGE_EVERY_S, PURGE_LISTS, PURGE_USERS

WRITER = Path(__file__).with_name("session_writer.py")
ROOT = WRITER.parents[3]


def event(item_id: str, at: float = 0.0, event_id: str | None = None) -> StoredEvent:
    return StoredEvent(item_id, "view", None, at, event_id)


def run(path: Path, story: Callable[[SessionStore], Coroutine[Any, Any, None]], **limits: Any) -> None:
    async def told() -> None:
        store = open_store(f"sqlite:///{path}", **limits)
        try:
            await store.open()
            await story(store)
        finally:
            await store.close()

    asyncio.run(told())


def count(path: Path, table: str) -> int:
    db = sqlite3.connect(path)
    found = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    db.close()
    return int(found)


def integrity(path: Path) -> str:
    db = sqlite3.connect(path)
    answer = db.execute("PRAGMA integrity_check").fetchone()[0]
    db.close()
    return str(answer)


@contextmanager
def writer(path: Path, user_id: str, prefix: str, events: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(WRITER), f"sqlite:///{path}", user_id, prefix, str(events)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_a_restart_keeps_histories_and_remembered_ids(tmp_path):
    path = tmp_path / "made" / "on the way" / "sessions.db"

    async def before(store: SessionStore) -> None:
        await store.append("u", [event("a", 1, "e1"), event("b", 2), event("c", 3)])

    async def after(store: SessionStore) -> None:
        assert (await store.append("u", [event("a", 9, "e1")])).outcomes == ("duplicate",)
        assert [stored.item_id for stored in await store.history("u")] == ["b", "c"]

    run(path, before, cap=2)
    run(path, after, cap=2)
    assert [file.name for file in path.parent.iterdir()] == ["sessions.db"], "closing folds the log into the file"


def test_two_processes_that_append_at_once_lose_nothing(tmp_path):
    path = tmp_path / "sessions.db"
    with writer(path, "u", "a", 150) as one, writer(path, "u", "b", 150) as other:
        assert len(one.communicate(timeout=60)[0].split()) == 150
        assert len(other.communicate(timeout=60)[0].split()) == 150
        assert one.returncode == other.returncode == 0

    async def look(store: SessionStore) -> None:
        history = await store.history("u")
        assert {stored.item_id for stored in history} == {f"{who}{i}" for who in "ab" for i in range(150)}
        assert [stored.timestamp for stored in history] == sorted(stored.timestamp for stored in history)

    run(path, look)


def test_gone_every_acknowledged_append_survives_a_killed_process(tmp_path):
    path = tmp_path / "sessions.db"
    with writer(path, "u", "i", 100_000) as process:
        assert process.stdout is not None
        for _ in range(120):
            process.stdout.readline()
        process.kill()  # SIGKILL, in the middle of the stream
        acknowledged = 120 + len(process.stdout.read().split())
    assert integrity(path) == "ok"

    async def look(store: SessionStore) -> None:
        kept = [stored.item_id for stored in await store.history("u")]
        assert kept[:acknowledged] == [f"i{i}" for i in range(acknowledged)]
        assert len(kept) <= acknowledged + 1, "at most the append whose answer was on its way"
        assert (await store.append("u", [event("again", 1e9)])).outcomes == ("accepted",)

    run(path, look, cap=10_000)


def test_locked_writes_fail_with_the_reason_reads_go_on_and_the_loop_stays_free(tmp_path):
    path = tmp_path / "sessions.db"

    async def story(store: SessionStore) -> None:
        await store.append("u", [event("a")])
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        append = asyncio.create_task(store.append("u", [event("b", 1)]))
        for _ in range(20):
            assert len(await store.history("u")) == 1
        assert not append.done(), "it waits for the lock while the loop does other things"
        with pytest.raises(StoreUnavailable, match=r"write lock for too long.*database is locked"):
            await append
        other.execute("COMMIT")
        other.close()
        assert (await store.append("u", [event("b", 1)])).outcomes == ("accepted",)

    run(path, story, timeout_s=1.0)


def test_full_a_full_disk_refuses_with_the_remedy_loses_nothing_and_recovers(tmp_path):
    path = tmp_path / "sessions.db"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def story(store: SessionStore) -> None:
        kept = 0

        async def fill() -> None:
            nonlocal kept
            while True:
                kept = len((await store.append("u", [event("x" * 1000, kept)])).history)

        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))  # every write beyond fails, as on a full disk
        try:
            with pytest.raises(StoreUnavailable, match="its disk"):
                await fill()
            assert kept > 5
            assert len(await store.history("u")) == kept, "what was acknowledged is still readable"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await store.append("u", [event("b", 1e6)])
        assert len(await store.history("u")) == kept + 1

    run(path, story)
    assert integrity(path) == "ok"


def test_gone_a_removed_file_is_made_again(tmp_path, caplog):
    path = tmp_path / "dir" / "sessions.db"

    async def story(store: SessionStore) -> None:
        await store.append("u", [event("a")])
        await store.history("u")
        for file in path.parent.iterdir():
            file.unlink()
        path.parent.rmdir()
        assert await store.history("u") == []
        assert len((await store.append("u", [event("b")])).history) == 1
        assert len(await store.history("u")) == 1

    run(path, story)
    assert "was removed or replaced" in caplog.text


def test_expired_users_and_ids_are_removed_from_the_file_in_passing(tmp_path):
    path = tmp_path / "sessions.db"
    now = 1000.0
    users = PURGE_USERS + 10

    async def story(store: SessionStore) -> None:
        nonlocal now
        await store.append_many({f"u{i}": [event("a", 1, "e1"), event("b", 2), event("c", 3)] for i in range(users)})
        assert count(path, "trimmed_ids") == users
        now += 60  # the ids are forgotten, the histories are not
        for _ in range(2):
            now += PURGE_EVERY_S
            await store.append("visitor", [event("x")])
        assert count(path, "trimmed_ids") == 0
        assert count(path, "users") == users + 1
        now += 100
        for _ in range(3):
            now += PURGE_EVERY_S
            await store.append("visitor", [event("x")])
        assert count(path, "users") == 1
        assert count(path, "events") == 2

    run(path, story, cap=2, ttl_s=100, dedup_ttl_s=50, clock=lambda: now)


def test_expired_lists_and_sets_are_removed_from_the_file_in_passing(tmp_path):
    path = tmp_path / "sessions.db"
    now = 1000.0

    async def story(store: SessionStore) -> None:
        nonlocal now
        for number in range(3):
            await store.keep_list(FrozenList(f"r{number}", "u", b"x"), at=0, ttl_s=10)
        await store.count_distinct("big", [str(n).encode() for n in range(PURGE_LISTS + 10)], ttl_s=10)
        now += 11
        await store.keep_list(FrozenList("last", "u", b"x"), at=0, ttl_s=10)
        assert (count(path, "lists"), count(path, "sets"), count(path, "members")) == (1, 1, 10)
        now += PURGE_EVERY_S
        await store.append("visitor", [event("x")])
        assert (count(path, "sets"), count(path, "members")) == (0, 0)

    run(path, story, clock=lambda: now)
