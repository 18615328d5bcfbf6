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

from service.sessions import (
    NO_EVENTS,
    AppendResult,
    Columns,
    FrozenList,
    ItemChange,
    ItemChanges,
    Outcome,
    StoredEvent,
)
from service.sessions.database import Database
from service.sessions.history import merge, newcomers
from service.sessions.payload import check_text, check_user_id, columns, decode, decode_item, encode, encode_attributes

PURGE_EVERY_S = 1.0
PURGE_USERS = 64  # looked at per purge: 5 million users a day, and never more than some 10 ms inside a transaction
PURGE_LISTS = 1000  # expired frozen lists, and members of expired sets, removed per purge


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

    async def columns(self, user_id: str) -> Columns:
        return await self._reader.call(partial(self._columns, check_user_id(user_id)), operation="history")

    async def erase(self, user_id: str) -> bool:
        was_kept, was_there = await self._writer.call(partial(self._erase, check_user_id(user_id)), operation="erase")
        if was_kept:
            await self._writer.fold()  # erased means gone from the log, too
        return was_there

    async def merge(self, source: str, target: str) -> int:
        if check_user_id(source) == check_user_id(target):
            return 0
        was_kept, moved = await self._writer.call(partial(self._merge, source, target), operation="merge")
        if was_kept:
            await self._writer.fold()
        return moved

    async def keep_list(self, kept: FrozenList, *, at: int, ttl_s: float) -> None:
        check_text(kept.recommendation_id, "recommendation_id")
        if kept.user_id is not None:
            check_user_id(kept.user_id)
        row = (*kept, at, self._clock() + ttl_s)

        def keep(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO lists VALUES (?, ?, ?, ?, ?)", row)
            self._purge(db)

        await self._writer.call(keep, operation="keep_list")

    async def advance_list(self, recommendation_id: str, by: int) -> tuple[bytes, int] | None:
        check_text(recommendation_id, "recommendation_id")
        database = self._writer if by else self._reader
        work = partial(_advance_list, recommendation_id, by, self._clock())
        return await database.call(work, operation="advance_list")

    async def count_distinct(self, name: str, members: Sequence[bytes], *, ttl_s: float) -> int:
        check_text(name, "name")
        now = self._clock()

        def count(db: sqlite3.Connection) -> int:
            size = _count_distinct(name, members, now, now + ttl_s, db)
            self._purge(db)
            return size

        return await self._writer.call(count, operation="count_distinct")

    async def announce(self, name: str, value: bytes) -> None:
        work = partial(_announce, check_text(name, "name"), value)
        await self._writer.call(work, operation="announce")

    async def announced(self, name: str) -> bytes | None:
        return await self._reader.call(partial(_announced, check_text(name, "name")), operation="announced")

    async def change_item(self, change: ItemChange) -> int:
        work = partial(_change_item, change, encode_attributes(change))
        return await self._writer.call(work, operation="change_item")

    async def item_changes(self, since: int = 0) -> ItemChanges:
        return await self._reader.call(partial(_item_changes, since), operation="item_changes")

    async def ping(self) -> None:
        await self._reader.call(_count_tables, operation="ping")

    # What follows runs on a database's thread, inside a transaction.

    def _history(self, user_id: str, db: sqlite3.Connection) -> list[StoredEvent]:
        found = self._kept(user_id, db)
        return decode(*zip(*found, strict=True)) if found else []

    def _columns(self, user_id: str, db: sqlite3.Connection) -> Columns:
        found = self._kept(user_id, db)
        if not found:
            return NO_EVENTS
        timestamps, _, payloads = zip(*found, strict=True)
        return columns(timestamps, payloads)

    def _kept(self, user_id: str, db: sqlite3.Connection) -> list[tuple[float, str | None, bytes]]:
        """Time, event id and payload of a user's events, oldest first."""
        found = db.execute(
            "SELECT timestamp, event_id, payload FROM users JOIN events USING (user_key)"
            " WHERE user_id = ? AND expires_at > ? ORDER BY timestamp DESC, arrival DESC LIMIT ?",
            (user_id, self._clock(), self._cap),
        ).fetchall()
        found.reverse()
        return found

    def _append(self, db: sqlite3.Connection, user_id: str, new: Sequence[_Row], read_back: bool) -> AppendResult:
        user_key, stored = self._stored(db, user_id, self._clock())
        outcomes, kept = self._add(db, user_id, user_key, stored, new)
        if not (read_back and kept):
            return AppendResult(outcomes, [])
        timestamps, _, event_ids, payloads = zip(*kept, strict=True)
        return AppendResult(outcomes, decode(timestamps, event_ids, payloads))

    def _add(
        self, db: sqlite3.Connection, user_id: str, user_key: int | None, stored: Sequence[_Row], new: Sequence[_Row]
    ) -> tuple[tuple[Outcome, ...], list[_Row]]:
        """The outcomes of new events and the history after them."""
        now = self._clock()
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
            until = now + self._dedup_ttl_s
            ids = [(user_key, row.event_id, until) for row in merged.trimmed if row.event_id is not None]
            db.executemany("INSERT OR REPLACE INTO trimmed_ids VALUES (?, ?, ?)", ids)
        return merged.outcomes, merged.history

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

    def _merge(self, source: str, target: str, db: sqlite3.Connection) -> tuple[bool, int]:
        """Whether anything of the source was in the file, and how many events were moved."""
        now = self._clock()
        source_key, leaving = self._stored(db, source, now)
        was_kept = bool(db.execute("UPDATE lists SET user_id = ? WHERE user_id = ?", (target, source)).rowcount)
        if source_key is None:
            return was_kept, 0
        target_key, stored = self._stored(db, target, now)
        new = newcomers(stored, leaving, words=lambda row: (row.timestamp, row.event_id, row.payload))
        outcomes, _ = self._add(db, target, target_key, stored, new)
        db.execute(
            "INSERT INTO trimmed_ids SELECT users.user_key, event_id, trimmed_ids.expires_at FROM trimmed_ids, users"
            " WHERE trimmed_ids.user_key = ? AND user_id = ?"
            " ON CONFLICT (user_key, event_id) DO UPDATE SET expires_at = max(expires_at, excluded.expires_at)",
            (source_key, target),
        )
        _forget(db, source_key)
        return True, outcomes.count("accepted")

    def _erase(self, user_id: str, db: sqlite3.Connection) -> tuple[bool, bool]:
        """Whether anything of a user was in the file, and whether it had not expired."""
        now = self._clock()
        lists = db.execute("DELETE FROM lists WHERE user_id = ? RETURNING expires_at", (user_id,)).fetchall()
        until = [expires_at for (expires_at,) in lists]
        user = db.execute("SELECT user_key, expires_at FROM users WHERE user_id = ?", (user_id,)).fetchone()
        if user is not None:
            user_key, expires_at = user
            _forget(db, user_key)
            until.append(expires_at)
        return bool(until), any(expires_at > now for expires_at in until)

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
        db.execute(
            "DELETE FROM lists WHERE recommendation_id IN"
            " (SELECT recommendation_id FROM lists WHERE expires_at <= ? LIMIT ?)",
            (now, PURGE_LISTS),
        )
        for (set_key,) in db.execute("SELECT set_key FROM sets WHERE expires_at <= ? LIMIT 1", (now,)).fetchall():
            _empty_set(db, set_key, at_most=PURGE_LISTS)


def _was_trimmed(db: sqlite3.Connection, user_key: int | None, now: float, event_id: str) -> bool:
    found = db.execute(
        "SELECT 1 FROM trimmed_ids WHERE user_key = ? AND event_id = ? AND expires_at > ?", (user_key, event_id, now)
    )
    return found.fetchone() is not None


def _forget(db: sqlite3.Connection, user_key: int) -> None:
    for table in ("events", "trimmed_ids", "users"):
        db.execute(f"DELETE FROM {table} WHERE user_key = ?", (user_key,))


def _advance_list(recommendation_id: str, by: int, now: float, db: sqlite3.Connection) -> tuple[bytes, int] | None:
    found = db.execute(
        "SELECT payload, position FROM lists WHERE recommendation_id = ? AND expires_at > ?", (recommendation_id, now)
    ).fetchone()
    if found is None:
        return None
    if by:
        db.execute("UPDATE lists SET position = position + ? WHERE recommendation_id = ?", (by, recommendation_id))
    payload, position = found
    return payload, position


def _count_distinct(name: str, members: Sequence[bytes], now: float, expires_at: float, db: sqlite3.Connection) -> int:
    found = db.execute("SELECT set_key, size, expires_at FROM sets WHERE name = ?", (name,)).fetchone()
    if found is not None and found[2] <= now:
        _empty_set(db, found[0])
        found = None
    if found is not None:
        set_key, size, _ = found
    elif members:
        made = db.execute("INSERT INTO sets (name, size, expires_at) VALUES (?, 0, ?)", (name, expires_at))
        set_key, size = made.lastrowid, 0
    else:
        return 0
    if members:
        added = db.executemany("INSERT OR IGNORE INTO members VALUES (?, ?)", [(set_key, member) for member in members])
        size += added.rowcount
        db.execute("UPDATE sets SET size = ? WHERE set_key = ?", (size, set_key))
    return int(size)


def _empty_set(db: sqlite3.Connection, set_key: int, at_most: int = -1) -> None:
    """Remove a set; with `at_most` only so many of its members, and the set with the last of them."""
    members = "SELECT member FROM members WHERE set_key = ? LIMIT ?"
    db.execute(f"DELETE FROM members WHERE set_key = ? AND member IN ({members})", (set_key, set_key, at_most))
    db.execute(
        "DELETE FROM sets WHERE set_key = ? AND NOT EXISTS (SELECT 1 FROM members WHERE set_key = ?)", (set_key,) * 2
    )


def _announce(name: str, value: bytes, db: sqlite3.Connection) -> None:
    db.execute("INSERT OR REPLACE INTO announcements VALUES (?, ?)", (name, value))


def _announced(name: str, db: sqlite3.Connection) -> bytes | None:
    found = db.execute("SELECT value FROM announcements WHERE name = ?", (name,)).fetchone()
    return bytes(found[0]) if found else None


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
