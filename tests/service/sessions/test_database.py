"""Files that are no store of ours, and a file that many open at once."""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from service.errors import StoreUnavailable
from service.sessions.database import SCHEMA_VERSION, Database


def opened(path: Path) -> None:
    async def story() -> None:
        database = Database(path, begin="BEGIN", timeout_s=1)
        try:
            await database.open()
        finally:
            await database.close()

    asyncio.run(story())


def test_a_file_with_a_newer_schema_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "sessions.db"
    opened(path)
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(StoreUnavailable, match=r"schema version 4, newer than this service \(3\); upgrade"):
        opened(path)


NEWER = {1: ("items",), 2: ("lists", "sets", "members", "announcements")}  # what each step has made


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_an_older_schema_is_taken_along_with_what_it_holds(tmp_path, version):
    path = tmp_path / "sessions.db"
    opened(path)
    missing = [table for step, tables in NEWER.items() if step >= version for table in tables]
    db = sqlite3.connect(path)
    db.execute("INSERT INTO users VALUES (1, 'anna', 9e9)")
    for table in missing:
        db.execute(f"DROP TABLE {table}")
    db.execute(f"PRAGMA user_version = {version}")
    db.commit()
    db.close()
    opened(path)
    db = sqlite3.connect(path)
    assert db.execute("SELECT user_id FROM users").fetchall() == [("anna",)]
    for table in missing:
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    assert db.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    db.close()


def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "shop.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE orders (id INTEGER)")
    db.close()
    with pytest.raises(StoreUnavailable, match="tables of something else"):
        opened(path)
    db = sqlite3.connect(path)
    assert db.execute("SELECT name FROM sqlite_schema").fetchall() == [("orders",)]
    db.close()


def test_a_file_that_is_no_database_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, " * 100)
    with pytest.raises(StoreUnavailable, match="not a SQLite file"):
        opened(path)


def test_a_place_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable, match="must name a writable place"):
        opened(tmp_path / "file" / "sessions.db")
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        opened(tmp_path)


def test_many_connections_may_open_a_new_file_at_once(tmp_path):
    async def story(path) -> None:
        databases = [Database(path, begin="BEGIN IMMEDIATE", timeout_s=10) for _ in range(8)]
        await asyncio.gather(*(database.open() for database in databases))
        for database in databases:
            await database.close()

    for turn in range(20):
        asyncio.run(story(tmp_path / f"sessions-{turn}.db"))


def test_work_that_waits_together_is_committed_together(tmp_path):
    async def story() -> None:
        database = Database(tmp_path / "sessions.db", begin="BEGIN IMMEDIATE", timeout_s=10)
        await database.open()
        transactions = []

        def work(db: sqlite3.Connection) -> int:
            transactions.append(db.total_changes)
            db.execute("INSERT INTO users (user_id, expires_at) VALUES (?, 0)", (len(transactions),))
            return len(transactions)

        answers = await asyncio.gather(*(database.call(work, operation="append") for _ in range(20)))
        assert answers == list(range(1, 21))

        def fail(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM users")
            raise KeyError("a fault of ours")

        with pytest.raises(KeyError):
            await database.call(fail, operation="append")
        left = await database.call(
            lambda db: db.execute("SELECT count(*) FROM users").fetchone()[0], operation="history"
        )
        assert left == 20, "a failed transaction leaves nothing"
        await database.close()

    asyncio.run(story())
