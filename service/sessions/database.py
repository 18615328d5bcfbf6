"""One SQLite connection on one thread of its own, for an event loop that must not block.

Work is a function of the connection. Work that waits together shares one transaction, because the commit is what
costs. What SQLite complains about comes out as a `StoreFailure` that names the file and the remedy.
"""

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

from service.errors import StoreUnavailable
from service.sessions.coalescing import Coalescer, StoreFailure

_log = logging.getLogger(__name__)

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

# Step n leads from schema version n to n + 1; a file is taken through those that it has not seen.
_STEPS = (
    """
CREATE TABLE users (
    user_key INTEGER PRIMARY KEY,
    user_id TEXT NOT NULL UNIQUE,
    expires_at REAL NOT NULL
);
CREATE TABLE events (
    user_key INTEGER NOT NULL,
    timestamp REAL NOT NULL,
    arrival INTEGER NOT NULL, -- orders events of equal time
    event_id TEXT,
    payload BLOB NOT NULL,
    PRIMARY KEY (user_key, timestamp, arrival)
) WITHOUT ROWID;
CREATE TABLE trimmed_ids ( -- event ids whose events have left a full history
    user_key INTEGER NOT NULL,
    event_id TEXT NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (user_key, event_id)
) WITHOUT ROWID
""",
    """
CREATE TABLE items (
    item_id TEXT PRIMARY KEY,
    version INTEGER NOT NULL UNIQUE,
    available INTEGER NOT NULL,
    attributes BLOB -- JSON, or NULL where nothing was said of them
) WITHOUT ROWID
""",
    """
CREATE TABLE lists (
    recommendation_id TEXT PRIMARY KEY,
    user_id TEXT, -- NULL: nobody's
    payload BLOB NOT NULL,
    position INTEGER NOT NULL,
    expires_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX lists_by_user ON lists (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX lists_by_expiry ON lists (expires_at);
CREATE TABLE sets (
    set_key INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    expires_at REAL NOT NULL
);
CREATE INDEX sets_by_expiry ON sets (expires_at);
CREATE TABLE members (
    set_key INTEGER NOT NULL,
    member BLOB NOT NULL,
    PRIMARY KEY (set_key, member)
) WITHOUT ROWID;
CREATE TABLE announcements (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) WITHOUT ROWID
""",
)
SCHEMA_VERSION = len(_STEPS)

_REMEDIES = {
    "SQLITE_BUSY": "another process has held its write lock for too long; end that process, or use redis://",
    "SQLITE_FULL": "its disk is full; free some space, nothing else is needed",
    "SQLITE_IOERR": "its disk cannot be written; look for a full quota or a failing disk",
    "SQLITE_READONLY": "it may not be written by this user; correct owner and mode of file and directory",
    "SQLITE_CANTOPEN": "it cannot be opened; the directory must exist and be writable by this user",
    "SQLITE_CORRUPT": "it is damaged; move it away and restart, or restore a copy",
    "SQLITE_NOTADB": "it is not a SQLite file; point SEQUITUR_STORE elsewhere or move it away",
}


class Database:
    """The file at `path`, opened on a thread of its own.

    Args:
        path: made with its directories when missing, also when it vanishes later.
        begin: how a transaction starts: `BEGIN` to read one snapshot, `BEGIN IMMEDIATE` to write, so that two
            processes queue for the lock instead of colliding in the middle.
        timeout_s: longest time that any call waits.
    """

    def __init__(self, path: Path, *, begin: Literal["BEGIN", "BEGIN IMMEDIATE"], timeout_s: float) -> None:
        self._path = path
        self._begin = begin
        # The lock is given up a little before the caller gives up, so that the caller hears the real reason.
        self._busy_s = timeout_s * 0.8
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sessions-sqlite")
        self._calls: Coalescer[Work[Any], Any] = Coalescer(self._together, timeout_s=timeout_s)

    async def open(self) -> None:
        """Open the file, or say what is wrong with it."""
        await self._apart(self._connected, operation="open")

    async def call(self, work: Work[T], *, operation: str) -> T:
        """The result of `work`, committed."""
        answer: T = await self._calls.call(work, operation=operation)
        return answer

    async def fold(self) -> None:
        """Move the write-ahead log into the file and empty it, as far as no reader still needs it."""
        await self._apart(self._checkpoint, operation="erase")

    async def close(self) -> None:
        """Finish what waits, then close the file."""
        if not self._calls.is_closed:
            await self._calls.close()
            await self._on_thread(self._disconnect)
            self._thread.shutdown()

    async def _apart(self, function: Callable[[], object], *, operation: str) -> None:
        """Run what cannot be part of a transaction."""
        try:
            await self._on_thread(function)
        except StoreFailure as error:
            raise StoreUnavailable(operation, str(error)) from error

    async def _on_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _together(self, works: Sequence[Work[Any]]) -> list[Any]:
        return await self._on_thread(lambda: self._transaction(works))

    # What follows runs on the thread.

    def _transaction(self, works: Sequence[Work[Any]]) -> list[Any]:
        connection = self._connected()
        try:
            connection.execute(self._begin)
            answers = [work(connection) for work in works]
            connection.execute("COMMIT")
        except BaseException as error:
            # Closing rolls back, also where a ROLLBACK would fail, and the next call starts from a clean connection.
            self._disconnect()
            if isinstance(error, sqlite3.Error):
                raise self._failure(error) from error
            raise
        return answers

    def _checkpoint(self) -> None:
        connection = self._connected()
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _connected(self) -> sqlite3.Connection:
        """The open connection; a new one when the file was removed or replaced since."""
        if self._connection is not None:
            try:
                if os.stat(self._path).st_ino == self._inode:
                    return self._connection
            except FileNotFoundError:
                pass
            _log.warning("%s was removed or replaced while in use; the histories in it are gone", self._path)
            self._disconnect()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self._path, timeout=self._busy_s, isolation_level=None)
            self._prepare(self._connection)
            self._inode = os.stat(self._path).st_ino
        except sqlite3.Error as error:
            self._disconnect()
            raise self._failure(error) from error
        except OSError as error:
            self._disconnect()
            raise StoreFailure(f"{self._path}: {error.strerror}; SEQUITUR_STORE must name a writable place") from error
        except StoreFailure:
            self._disconnect()
            raise
        return self._connection

    def _prepare(self, db: sqlite3.Connection) -> None:
        mode = _write_ahead(db, patience_s=self._busy_s)
        if mode != "wal":
            raise StoreFailure(
                f"{self._path}: its file system offers no write-ahead log (journal mode {mode}); use a local disk"
            )
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA secure_delete = ON")  # erased is overwritten, not only unlinked
        db.execute("PRAGMA journal_size_limit = 16777216")  # bytes; a burst must not leave a large log behind
        if self._version(db) < SCHEMA_VERSION:
            db.execute("BEGIN IMMEDIATE")
            # Only under the lock: before it, another process may make our tables between two looks.
            version = self._version(db)
            if version == 0 and db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                raise StoreFailure(f"{self._path} holds tables of something else; point SEQUITUR_STORE to another file")
            for step in _STEPS[version:]:
                for statement in step.split(";"):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            db.execute("COMMIT")

    def _version(self, db: sqlite3.Connection) -> int:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise StoreFailure(
                f"{self._path} has schema version {version}, newer than this service ({SCHEMA_VERSION}); "
                "upgrade the service or point SEQUITUR_STORE to another file"
            )
        return version

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _failure(self, error: sqlite3.Error) -> StoreFailure:
        name = getattr(error, "sqlite_errorname", "")
        remedy = next((text for prefix, text in _REMEDIES.items() if name.startswith(prefix)), "see the SQLite message")
        return StoreFailure(f"{self._path}: {remedy} ({error})")


def _write_ahead(db: sqlite3.Connection, *, patience_s: float) -> str:
    """The journal mode after asking for write-ahead logging.

    Several workers that open a new file at once get in each other's way here, and SQLite's own busy time-out does
    not cover this one statement; hence the loop.
    """
    give_up = time.monotonic() + patience_s
    while True:
        try:
            return str(db.execute("PRAGMA journal_mode = WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > give_up:
                raise
            time.sleep(0.005)
