"""Progress for people: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TextIO, TypeVar

from tqdm import tqdm

T = TypeVar("T")

LINE_EVERY_S = 30.0
REDRAW_EVERY_S = 0.1


class Progress:
    """Where a long command says how far it is.

    Args:
        out: a stream; standard error by default, so that results on standard output stay clean.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._terminal = self._out.isatty()
        self._said = time.monotonic()

    def say(self, line: str) -> None:
        """One line, above a running bar."""
        if self._terminal:
            tqdm.write(line, file=self._out)
        else:
            self._out.write(line + "\n")
            self._out.flush()

    def bar(self, items: Sequence[T], title: str, *, done: int = 0, unit: str = "it") -> Iterator[T]:
        """The items, shown as they go by; away from a terminal one line every half minute."""
        total = done + len(items)
        if self._terminal:
            yield from tqdm(items, desc=title, initial=done, total=total, unit=unit, file=self._out, leave=False)
            return
        said = time.monotonic()
        for at, item in enumerate(items, start=done):
            if time.monotonic() - said > LINE_EVERY_S:
                said = time.monotonic()
                self.say(f"{title}: {at} of {total} ({100 * at // total} %)")
            yield item

    def rows(self, rows: int, share: float) -> None:
        """How much of a file has been read; for `models.events.read_log`."""
        self._now_and_then(f"read {rows:,} rows ({100 * share:.0f} %)")

    def cases(self, done: int, total: int) -> None:
        """How many cases are measured; for `models.evaluate`."""
        self._now_and_then(f"measured {done:,} of {total:,} cases", final=done >= total)

    def _now_and_then(self, line: str, *, final: bool = False) -> None:
        """On a terminal a line that replaces itself, elsewhere one every half minute."""
        now = time.monotonic()
        if self._terminal:
            if final or now - self._said > REDRAW_EVERY_S:
                self._said = now
                self._out.write("\r\x1b[K" + ("" if final else line))
                self._out.flush()
        elif now - self._said > LINE_EVERY_S:
            self._said = now
            self.say(line)
