"""Histories in one SQLite file: nothing to install, survives restarts, shared by the workers of one machine.

Writing happens on one thread and reading on another, each with a connection of its own, so the event loop only waits
and a read never queues behind a commit.

The file is in write-ahead mode with `synchronous=NORMAL`: an acknowledged append survives the death of the process,
`kill -9` included. A power cut never damages the file, but may take the appends since the last checkpoint with it.
Whoever cannot accept that wants Redis with `appendfsync always`.
"""

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from service.sessions import AppendResult, ItemChange, ItemChanges, StoredEvent
from service.sessions.database import Database
from service.sessions.history import merge
from service.sessions.payload import check_user_id, decode, decode_item, encode, encode_attributes

PURGE_EVERY_S = 1.0
PURGE_USERS = 64  # looked at per purge: 5 million users a day, and never more than some 10 ms inside a transaction


class _Row(NamedTuple):
    timestamp: float
    arrival: int
    event_id: str | None
    payload: bytes


class SqliteSessionStore:
    """An embedded store in the file at `path`; missing directories are made."""

    name = "sqlite"
    durable = True

    def __init__(
        self,
        path: str | Path,
        *,
        cap: int,
        ttl_s: float,
        dedup_ttl_s: float,
        timeout_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._cap = cap
        self._ttl_s = ttl_s
        self._dedup_ttl_s = dedup_ttl_s
        self._clock = clock
        self._purge_at = clock() + PURGE_EVERY_S
        self._purged_to = 0  # user_key
        file = Path(path).absolute()
        self._writer = Database(file, begin="BEGIN IMMEDIATE", timeout_s=timeout_s)
        self._reader = Database(file, begin="BEGIN", timeout_s=timeout_s)

    async def open(self) -> None:
        await self._writer.open()

    async def close(self) -> None:
        # The reader first: the last connection to close folds the log into the file, and should be the writer.
        await self._reader.close()
        await self._writer.close()

    async def append(self, user_id: str, events: Sequence[StoredEvent]) -> AppendResult:
        return (await self.append_many({user_id: events}))[user_id]

    async def append_many(
        self, batches: Mapping[str, Sequence[StoredEvent]], *, read_back: bool = True
    ) -> Mapping[str, AppendResult]:
        rows = {
            check_user_id(user_id): [_Row(float(e.timestamp), 0, e.event_id, encode(e)) for e in events]
            for user_id, events in batches.items()
        }

        def append_all(db: sqlite3.Connection) -> Mapping[str, AppendResult]:
            results = {user_id: self._append(db, user_id, new, read_back) for user_id, new in rows.items()}
            self._purge(db)
            return results

        return await self._writer.call(append_all, operation="append")

    async def history(self, user_id: str) -> list[StoredEvent]:
        return await self._reader.call(partial(self._history, check_user_id(user_id)), operation="history")

    async def erase(self, user_id: str) -> bool:
        was_there = await self._writer.call(partial(self._erase, check_user_id(user_id)), operation="erase")
        if was_there:
            await self._writer.fold()  # erased means gone from the log, too
        return was_there

    async def change_item(self, change: ItemChange) -> int:
        work = partial(_change_item, change, encode_attributes(change))
        return await self._writer.call(work, operation="change_item")

    async def item_changes(self, since: int = 0) -> ItemChanges:
        return await self._reader.call(partial(_item_changes, since), operation="item_changes")

    async def ping(self) -> None:
        await self._reader.call(_count_tables, operation="ping")

    # What follows runs on a database's thread, inside a transaction.

    def _history(self, user_id: str, db: sqlite3.Connection) -> list[StoredEvent]:
        found = db.execute(
            "SELECT timestamp, event_id, payload FROM users JOIN events USING (user_key)"
            " WHERE user_id = ? AND expires_at > ? ORDER BY timestamp DESC, arrival DESC LIMIT ?",
            (user_id, self._clock(), self._cap),
        ).fetchall()
        return [decode(*fields) for fields in reversed(found)]

    def _append(self, db: sqlite3.Connection, user_id: str, new: Sequence[_Row], read_back: bool) -> AppendResult:
        now = self._clock()
        user_key, stored = self._stored(db, user_id, now)
        arrival = 1 + max((row.arrival for row in stored), default=0)
        arrived = [row._replace(arrival=arrival + i) for i, row in enumerate(new)]
        merged = merge(stored, arrived, cap=self._cap, was_trimmed=partial(_was_trimmed, db, user_key, now))
        if "accepted" in merged.outcomes:
            user_key = db.execute(
                "INSERT INTO users (user_id, expires_at) VALUES (?, ?)"
                " ON CONFLICT (user_id) DO UPDATE SET expires_at = excluded.expires_at RETURNING user_key",
                (user_id, now + self._ttl_s),
            ).fetchone()[0]
            db.executemany(
                "INSERT INTO events VALUES (?, ?, ?, ?, ?)",
                [(user_key, *row) for row in merged.history if row.arrival >= arrival],
            )
            db.executemany(
                "DELETE FROM events WHERE user_key = ? AND timestamp = ? AND arrival = ?",
                [(user_key, row.timestamp, row.arrival) for row in merged.trimmed],
            )
            db.executemany(
                "INSERT OR REPLACE INTO trimmed_ids VALUES (?, ?, ?)",
                [
                    (user_key, row.event_id, now + self._dedup_ttl_s)
                    for row in merged.trimmed
                    if row.event_id is not None
                ],
            )
        history = [decode(row.timestamp, row.event_id, row.payload) for row in merged.history] if read_back else []
        return AppendResult(merged.outcomes, history)

    def _stored(self, db: sqlite3.Connection, user_id: str, now: float) -> tuple[int | None, list[_Row]]:
        user = db.execute("SELECT user_key, expires_at FROM users WHERE user_id = ?", (user_id,)).fetchone()
        if user is None:
            return None, []
        user_key, expires_at = user
        if expires_at <= now:
            _forget(db, user_key)
            return None, []
        rows = db.execute(
            "SELECT timestamp, arrival, event_id, payload FROM events WHERE user_key = ? ORDER BY timestamp, arrival",
            (user_key,),
        )
        return user_key, [_Row(*row) for row in rows]

    def _erase(self, user_id: str, db: sqlite3.Connection) -> bool:
        user = db.execute("SELECT user_key, expires_at FROM users WHERE user_id = ?", (user_id,)).fetchone()
        if user is None:
            return False
        user_key, expires_at = user
        _forget(db, user_key)
        return bool(expires_at > self._clock())

    def _purge(self, db: sqlite3.Connection) -> None:
        """Remove what has expired among the next few users, now and then; nobody else comes for users who left."""
        now = self._clock()
        if now < self._purge_at:
            return
        self._purge_at = now + PURGE_EVERY_S
        users = db.execute(
            "SELECT user_key, expires_at FROM users WHERE user_key > ? ORDER BY user_key LIMIT ?",
            (self._purged_to, PURGE_USERS),
        ).fetchall()
        for user_key, expires_at in users:
            if expires_at <= now:
                _forget(db, user_key)
            else:
                db.execute("DELETE FROM trimmed_ids WHERE user_key = ? AND expires_at <= ?", (user_key, now))
        self._purged_to = users[-1][0] if len(users) == PURGE_USERS else 0


def _was_trimmed(db: sqlite3.Connection, user_key: int | None, now: float, event_id: str) -> bool:
    found = db.execute(
        "SELECT 1 FROM trimmed_ids WHERE user_key = ? AND event_id = ? AND expires_at > ?", (user_key, event_id, now)
    )
    return found.fetchone() is not None


def _forget(db: sqlite3.Connection, user_key: int) -> None:
    for table in ("events", "trimmed_ids", "users"):
        db.execute(f"DELETE FROM {table} WHERE user_key = ?", (user_key,))


def _change_item(change: ItemChange, attributes: bytes | None, db: sqlite3.Connection) -> int:
    changed = db.execute(
        "INSERT INTO items VALUES (?, (SELECT coalesce(max(version), 0) + 1 FROM items), ?, ?)"
        " ON CONFLICT (item_id) DO UPDATE SET version = excluded.version, available = excluded.available,"
        " attributes = coalesce(excluded.attributes, attributes) RETURNING version",
        (change.item_id, change.available, attributes),
    )
    return int(changed.fetchone()[0])


def _item_changes(since: int, db: sqlite3.Connection) -> ItemChanges:
    version = db.execute("SELECT coalesce(max(version), 0) FROM items").fetchone()[0]
    found = db.execute(
        "SELECT item_id, available, attributes FROM items WHERE version > ? ORDER BY version", (since,)
    ).fetchall()
    return ItemChanges(version, [decode_item(item_id, bool(shown), known) for item_id, shown, known in found])


def _count_tables(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
