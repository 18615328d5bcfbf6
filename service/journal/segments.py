"""Lines in files: one segment after the other, each written by one process only.

A segment is locked (`flock`) for as long as it is written, and the lock goes with the process, however that ends:
whoever finds it unlocked may take it away. It gets its name only once it is locked. A batch of lines is one write, so a
killed process leaves at most one torn line, the last of its segment; what was written in part is cut off again.

Written lines survive the death of the process at once, and a power cut after `SYNC_S` or with the end of their segment.
"""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from service.journal.writer import SinkFailure

SUFFIX = ".jsonl"
SEGMENT_BYTES = 64 << 20
SEGMENT_S = 3_600.0  # after which a segment ends, full or not
SYNC_S = 1.0


class Segments:
    """Segments in `directory`, which is made when it is missing.

    Args:
        now: seconds since 1970.
        segment_bytes, segment_s: size and age at which a segment ends.
        sync_s: longest time between a write and its arrival on the disk.
    """

    def __init__(
        self,
        directory: Path,
        *,
        now: Callable[[], float],
        segment_bytes: int = SEGMENT_BYTES,
        segment_s: float = SEGMENT_S,
        sync_s: float = SYNC_S,
    ) -> None:
        self.where = str(directory)
        self._directory = directory
        self._now = now
        self._segment_bytes = segment_bytes
        self._segment_s = segment_s
        self._sync_s = sync_s
        self._file: int | None = None
        self._size = 0
        self._began = self._synced = 0.0
        self._is_dirty = False

    def write(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        try:
            file = self._open()
            left = memoryview(data)
            while left:
                left = left[os.write(file, left) :]
        except OSError as error:
            self._mend()
            raise self._failure(error) from error
        lines.clear()
        self._size += len(data)
        self._is_dirty = True
        self.tend()

    def sync(self) -> None:
        if self._file is None or not self._is_dirty:
            return
        try:
            os.fsync(self._file)
        except OSError as error:
            self._leave()  # what such a file holds, nobody knows
            raise self._failure(error) from error
        self._is_dirty, self._synced = False, self._now()

    def tend(self) -> None:
        if self._file is None:
            return
        now = self._now()
        # Distances, because a clock that is set back must not put an end to endings.
        if self._size >= self._segment_bytes or abs(now - self._began) >= self._segment_s:
            self.close()
        elif self._is_dirty and abs(now - self._synced) >= self._sync_s:
            self.sync()

    def close(self) -> None:
        self.sync()
        self._leave()

    def _open(self) -> int:
        """The segment that is being written, or a new one where that was taken away."""
        if self._file is not None:
            if os.fstat(self._file).st_nlink:
                return self._file
            self._leave()
        self._directory.mkdir(parents=True, exist_ok=True)
        self._began = self._synced = self._now()
        moment = datetime.fromtimestamp(self._began, UTC)
        name = f"{moment:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
        unnamed = self._directory / f".{name}.open"
        file = os.open(unnamed, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o640)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(self._directory / (name + SUFFIX))
        except OSError:
            os.close(file)
            with contextlib.suppress(OSError):
                unnamed.unlink()
            raise
        sync_directory(self._directory)
        self._file, self._size, self._is_dirty = file, 0, False
        return file

    def _mend(self) -> None:
        """Cuts off what was written in part."""
        if self._file is None:
            return
        try:
            os.ftruncate(self._file, self._size)
        except OSError:
            self._leave()  # the torn line stays, the last of its segment

    def _leave(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None

    def _failure(self, error: OSError) -> SinkFailure:
        return SinkFailure(f"{error.strerror or error}; SEQUITUR_LOG must name a writable place with room on its disk")


def sync_directory(directory: Path) -> None:
    """Puts the names in a directory on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
