"""From a stream into files: segments like those that the service writes, and the stream is cut behind them.

The directory itself says how far it has come: a segment's name holds the first and the last entry in it, and compacting
keeps names. So whatever interrupts a drain, the next one goes on behind the last segment that is whole.
"""

import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from redis.exceptions import RedisError

from service.journal.segments import SUFFIX, sync_directory
from service.journal.stream import FIELD, Address, connect
from service.journal.writer import SinkFailure

TOGETHER = 20_000  # entries of a segment
TIMEOUT_S = 30.0


class EntryId(NamedTuple):
    """What Redis calls an entry; it grows."""

    milliseconds: int
    number: int

    def __str__(self) -> str:
        return f"{self.milliseconds}-{self.number}"

    @classmethod
    def of(cls, text: str) -> "EntryId":
        """The id that `text` writes."""
        milliseconds, _, number = text.partition("-")
        return cls(int(milliseconds), int(number))


def drain(
    where: Address, directory: Path, *, together: int = TOGETHER, on_progress: Callable[[int], None] | None = None
) -> int:
    """Moves all entries of a stream into `directory`; how many.

    Raises:
        SinkFailure: Redis is away, or the directory is being drained into already.
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    moved = 0
    with (directory / ".drain").open("wb") as lock, connect(where, timeout_s=TIMEOUT_S) as redis:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SinkFailure(f"{directory} is being drained into already; let that end") from error
        try:
            while found := _next(redis, where.name, directory, together):
                _keep(directory, where.name, found)
                _cut(redis, where.name, EntryId.of(found[-1][0].decode()))
                moved += len(found)
                if on_progress is not None:
                    on_progress(moved)
        except (RedisError, ConnectionError, TimeoutError) as error:
            raise SinkFailure(f"{where.where}: {error}; drain again when Redis is there") from error
    return moved


def reached(directory: Path, name: str) -> EntryId | None:
    """The last entry of a stream that is in `directory`."""
    pattern = re.compile(rf"{re.escape(_stem(name))}-\d+-\d+-(\d+-\d+)\.(jsonl|parquet)")
    return max(
        (EntryId.of(found[1]) for file in directory.iterdir() if (found := pattern.fullmatch(file.name))), default=None
    )


def _next(redis: Any, name: str, directory: Path, together: int) -> list[tuple[bytes, dict[bytes, bytes]]]:
    last = reached(directory, name)
    if last is not None:
        _cut(redis, name, last)  # where the drain before this one came no further than the segment
    found: list[tuple[bytes, dict[bytes, bytes]]] = redis.xrange(name, min="-", max="+", count=together)
    return found


def _cut(redis: Any, name: str, last: EntryId) -> None:
    redis.execute_command("XTRIM", name, "MINID", str(last._replace(number=last.number + 1)))


def _keep(directory: Path, name: str, found: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
    """Writes a segment beside its place and renames it when it is whole."""
    stem = f"{_stem(name)}-{found[0][0].decode()}-{found[-1][0].decode()}"
    partial = directory / f".{stem}.partial"
    with partial.open("wb") as file:
        for _, fields in found:
            line = fields.get(FIELD, b"")
            file.write(line if line.endswith(b"\n") else line + b"\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(directory / (stem + SUFFIX))
    sync_directory(directory)


def _stem(name: str) -> str:
    return f"stream-{quote(name, safe='')}"
