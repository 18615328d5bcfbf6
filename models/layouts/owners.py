"""Whose a record is by now: erasures and merges, carried out on what came before them."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
import polars as pl

from models.layouts.records import ERASED, MERGED, SEGMENT


class Word(NamedTuple):
    """That what a user left until `time` is another's, or nobody's."""

    time: float
    user_id: str
    into: str | None

    @property
    def line(self) -> bytes:
        """As a segment says it."""
        record = {"kind": ERASED if self.into is None else MERGED, "time": self.time, "user_id": self.user_id}
        return orjson.dumps(record if self.into is None else {**record, "into": self.into}) + b"\n"


class Owners:
    """What has become of users.

    Args:
        words: in the order in which they were said, as far as times are equal.
    """

    def __init__(self, words: Iterable[Word]) -> None:
        self.words = sorted(dict.fromkeys(words), key=lambda word: word.time)
        self._times = [word.time for word in self.words]
        self._places: dict[str, list[int]] = {}
        for place, word in enumerate(self.words):
            self._places.setdefault(word.user_id, []).append(place)

    @classmethod
    def of(cls, files: Iterable[Path]) -> "Owners":
        """Those of all segments among some files; parts hold no words, they are what words left."""
        return cls(word for file in files if file.suffix == SEGMENT for word in _words(file))

    @property
    def names(self) -> list[str]:
        """The users of whom something was said."""
        return list(self._places)

    def owner(self, user_id: str, time: float) -> str | None:
        """Whose a record of `user_id` from `time` is; None where it is nobody's."""
        behind = bisect_left(self._times, time)  # a word counts for what came in the same moment
        while True:
            own = self._places.get(user_id, [])
            at = bisect_left(own, behind)
            if at == len(own):
                return user_id
            word = self.words[own[at]]
            if word.into is None:
                return None
            user_id, behind = word.into, own[at] + 1

    def settled(self, frame: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
        """The `user_id` of each record as it is by now, and whether the record is to go."""
        users = frame["user_id"]
        touched = users.is_in(self.names).fill_null(False).to_numpy()
        gone = np.zeros(len(touched), dtype=np.bool_)
        if not touched.any():
            return users, pl.Series(gone)
        # A page of a list is whose the list was when it was found, whoever that is by now.
        out, times = users.to_list(), frame["since"].fill_null(frame["time"]).to_list()
        for place in np.flatnonzero(touched).tolist():
            out[place] = self.owner(out[place], times[place])
            gone[place] = out[place] is None
        return pl.Series("user_id", out, dtype=pl.String), pl.Series(gone)


def _words(file: Path) -> Iterator[Word]:
    with file.open("rb") as lines:
        for line in lines:
            if b'"erased"' not in line and b'"merged"' not in line:
                continue
            try:
                record = orjson.loads(line)
                if record["kind"] == ERASED:
                    yield Word(float(record["time"]), record["user_id"], None)
                elif record["kind"] == MERGED:
                    yield Word(float(record["time"]), record["user_id"], record["into"])
            except (ValueError, KeyError, TypeError):
                continue  # whoever reads the records says so, with its line
