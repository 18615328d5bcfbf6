"""The code table: every item's semantic id, a tuple of L codes.

Codes of existing items never change while a model lives; new items are appended behind them. An item without a code
(nothing is known of its text, say) stands in the table all the same, with -1 throughout: no generator can reach it.
"""

import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from retrieval.errors import BundleTorn, InvalidInput
from retrieval.sequences import PAD_ROW, BoolArray

NO_CODE = -1
Codes = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class CodeTable:
    """Semantic ids by catalog row.

    Attributes:
        codes: int32, shape (N + 1, L), read-only; a row holds codes of its levels, or -1 throughout as row PAD_ROW
            does.
        vocabulary: L numbers: how many codewords V each level has.

    Raises:
        InvalidInput: another shape, a code outside its level, or a row that is half coded.
    """

    codes: Codes
    vocabulary: tuple[int, ...]

    def __post_init__(self) -> None:
        codes = np.array(self.codes, dtype=np.int32)
        if codes.ndim != 2 or not codes.shape[0] or codes.shape[1] != len(self.vocabulary) or not self.vocabulary:
            raise InvalidInput(f"codes have shape {codes.shape}; (N + 1, {len(self.vocabulary)}) was expected")
        empty = (codes == NO_CODE).all(axis=1)
        if not empty[PAD_ROW]:
            raise InvalidInput("row 0 of a code table is padding and has no code; items begin at row 1")
        bad = ~empty & ((codes < 0) | (codes >= np.array(self.vocabulary))).any(axis=1)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InvalidInput(
                f"row {row} has codes {codes[row].tolist()}; each must be at least 0 and below {list(self.vocabulary)}"
            )
        codes.setflags(write=False)
        object.__setattr__(self, "codes", codes)

    def __len__(self) -> int:
        """Items, coded or not."""
        return len(self.codes) - 1

    @property
    def levels(self) -> int:
        """L."""
        return len(self.vocabulary)

    @cached_property
    def coded(self) -> BoolArray:
        """bool, shape (N + 1,): which rows have a code."""
        coded: BoolArray = self.codes[:, 0] != NO_CODE
        return coded

    def extended(self, codes: Codes) -> "CodeTable":
        """The same table with more rows behind: int32, shape (n, L)."""
        return CodeTable(np.concatenate([self.codes, np.asarray(codes, dtype=np.int32)]), self.vocabulary)

    def save(self, path: Path) -> None:
        """Writes one `.npz` file of plain arrays."""
        with path.open("wb") as out:
            np.savez_compressed(out, allow_pickle=False, codes=self.codes, vocabulary=np.array(self.vocabulary))

    @classmethod
    def load(cls, path: Path) -> "CodeTable":
        """Reads what `save` wrote.

        Raises:
            BundleTorn: the file is not such a table.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return cls(stored["codes"], tuple(stored["vocabulary"].tolist()))
        except (OSError, EOFError, ValueError, KeyError, InvalidInput, zipfile.BadZipFile, zlib.error) as error:
            raise BundleTorn(f"{path.name} is not a readable code table ({error}); export the bundle again") from error
