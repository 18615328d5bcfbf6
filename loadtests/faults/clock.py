"""The service with a wall clock that can be set: `python -m loadtests.faults.clock FILE [arguments of the service]`.

The eight bytes of the file are seconds that are added to `time.time()`, whoever asks, from the moment they are
written. Clocks that only run forward are left alone, as they are where a machine's clock is set.
"""

import mmap
import runpy
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_FORM = struct.Struct("d")


class Offset:
    """Seconds that two processes share in a file."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_FORM.pack(0.0))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), _FORM.size)

    def set(self, seconds: float) -> None:
        """From now on."""
        _FORM.pack_into(self._shared, 0, seconds)

    def get(self) -> float:
        """What was set last."""
        (seconds,) = _FORM.unpack_from(self._shared)
        return float(seconds)

    def added_to(self, clock: Callable[[], float]) -> Callable[[], float]:
        """A clock that is off by it."""
        return lambda: clock() + self.get()


def main(arguments: Sequence[str]) -> None:
    """Runs the service; its own exit status is that of the process."""
    # Before the service is imported: it takes the clock as the default of a parameter.
    time.time = Offset(Path(arguments[0])).added_to(time.time)
    sys.argv = ["service", *arguments[1:]]
    runpy.run_module("service", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
