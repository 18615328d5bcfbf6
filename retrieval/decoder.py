"""Decoders: what a generator says next, for every prefix of a semantic id that a search holds.

A history is read once, by `prefill`; what that leaves is kept as the request's memory and shared by all its prefixes.
A `step` gives the log-probabilities of one level. Codes are few (three or four), so a step reads the whole prefix again
and nothing has to be carried along or reordered from step to step.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from retrieval import inputs
from retrieval.encoder import check_inputs, open_graph
from retrieval.errors import BundleForeign, EmptyHistory, InvalidInput
from retrieval.inputs import Request, Tables
from retrieval.sequences import BoolArray, FloatArray, History, IntArray

PREFIX = "prefix"  # the input of a step graph that is no output of its prefill
START = 0  # stands before the first code
PREFIXES_AT_ONCE = 4096  # of one run; a search that scores everything holds thousands for each request of its wave


@dataclass(frozen=True, slots=True, eq=False)
class Memory:
    """What a decoder has read of R requests: arrays whose leading dimension is R."""

    arrays: tuple[npt.NDArray[Any], ...]

    def __len__(self) -> int:
        return len(self.arrays[0])

    def take(self, indices: IntArray, /) -> "Memory":
        """Some of the requests, in this order."""
        return Memory(tuple(array[indices] for array in self.arrays))


class Decoder(Protocol):
    """What generative retrieval needs of a model.

    Attributes:
        vocabulary: L numbers: how many codewords V each level has.
    """

    vocabulary: tuple[int, ...]

    def reads(self, request: Request, /) -> bool:
        """Whether its history holds an item that this decoder can read."""
        ...

    def prefill(self, requests: Sequence[Request], /) -> Memory:
        """Reads R histories.

        Raises:
            EmptyHistory: nothing in one of them can be read.
        """
        ...

    def step(self, memory: Memory, prefix: IntArray, /) -> FloatArray:
        """What comes next.

        Args:
            memory: of R requests.
            prefix: int64, shape (R, M, T): T codes chosen so far; at the root M is 1.

        Returns:
            float32, shape (R, M, V), or (R, 1, V) where it does not depend on the prefix: log-probabilities of level T.
        """
        ...


@runtime_checkable
class Parallel(Protocol):
    """A decoder whose levels do not depend on each other."""

    def distributions(self, memory: Memory, /) -> FloatArray:
        """float32, shape (R, L, V): log-probabilities of all levels."""
        ...


class CodedHistories:
    """The input of a generator's graph: histories as codes.

    Events whose item has no code are left out before the window is cut: they would take the place of one that says
    something, and a graph reads -1 as padding.

    Args:
        names: the inputs that the manifest declares; see `retrieval.inputs`.
        length: window length.
        tables: what inputs may gather from, the code table among them.
        trained: the last row that the graph itself knows; it matters to graphs that read `item_rows` only.

    Raises:
        BundleForeign: an input has no builder.
        InvalidInput: there is no code table.
    """

    def __init__(self, names: Sequence[str], length: int, tables: Tables, trained: int) -> None:
        inputs.check(names)
        if tables.codes is None:
            raise InvalidInput("a generator reads codes, and the tables hold none; give it the code table")
        self.names = tuple(names)
        self.length = length
        self.tables = tables
        self.trained = trained
        self._known: BoolArray = tables.codes.coded.copy()
        if "item_rows" in self.names:
            self._known[trained + 1 :] = False

    def reads(self, request: Request) -> bool:
        """Whether anything is left of the history."""
        return bool(self._known[request.history.rows].any())

    def feeds(self, requests: Sequence[Request]) -> dict[str, npt.NDArray[Any]]:
        """Every input of the graph, padded to the longest history.

        Raises:
            EmptyHistory: nothing is left of one.
            InvalidInput: there is no request.
        """
        if not requests:
            raise InvalidInput("no request to decode for")
        read = [replace(r, history=self._history(r)) for r in requests]
        longest = min(self.length, max(len(r.history) for r in read))
        return inputs.build(self.names, read, length=longest, tables=self.tables)

    def _history(self, request: Request) -> History:
        history = request.history.where(self._known[request.history.rows])
        if not len(history):
            raise EmptyHistory("no item of the history has a code; answer it with something else than the generator")
        return history


class _Graphs:
    """What both kinds of decoder share: histories in, over a catalog that may change."""

    def __init__(self, histories: CodedHistories, vocabulary: tuple[int, ...]) -> None:
        self._histories = histories
        self.vocabulary = vocabulary

    def with_tables(self, tables: Tables) -> Self:
        """The same graphs over another catalog."""
        own = self._histories
        moved = copy.copy(self)
        moved._histories = CodedHistories(own.names, own.length, tables, own.trained)
        return moved

    def reads(self, request: Request, /) -> bool:
        """See `Decoder`."""
        return self._histories.reads(request)


class OnnxDecoder(_Graphs):
    """A generator in two graphs: `prefill`, once per request, and `step`, once per code.

    The step graph takes `prefix`, int64 (R, M, T + 1), whose column 0 is always `START` and column j the code of level
    j - 1, and outputs of the prefill under their own names. Its first output is float32 (R, M, V), log-probabilities.

    Args:
        prefill: the `.onnx` file that reads histories.
        step: the `.onnx` file that reads prefixes.
        histories: what the first one is fed.
        vocabulary: V of each level; a graph may give more columns for a level, which are cut off.
        threads: cores that one run may use.
        device: `cpu` or `cuda`.

    Raises:
        BundleForeign: inputs and outputs of the graphs do not fit each other or the manifest, or the device was asked
            for and not taken.
        BundleTorn: a file is no graph.
    """

    def __init__(
        self,
        prefill: Path,
        step: Path,
        *,
        histories: CodedHistories,
        vocabulary: tuple[int, ...],
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        super().__init__(histories, vocabulary)
        self._prefill = open_graph(prefill, threads=threads, device=device)
        self._step = open_graph(step, threads=threads, device=device)
        check_inputs(self._prefill, histories.names)
        outputs = [node.name for node in self._prefill.get_outputs()]
        wanted = {node.name for node in self._step.get_inputs()}
        if PREFIX not in wanted or not wanted - {PREFIX} <= set(outputs):
            raise BundleForeign(
                f"{step.name} reads {sorted(wanted)}; {PREFIX!r} and outputs of {prefill.name} ({outputs}) are there"
            )
        self._kept = [name for name in outputs if name in wanted]
        if not self._kept:
            raise BundleForeign(f"{step.name} reads nothing of what {prefill.name} gives, so no history could matter")

    def prefill(self, requests: Sequence[Request], /) -> Memory:
        """See `Decoder`."""
        return Memory(tuple(self._prefill.run(self._kept, self._histories.feeds(requests))))

    def step(self, memory: Memory, prefix: IntArray, /) -> FloatArray:
        """See `Decoder`."""
        r, m, t = prefix.shape
        codes = np.full((r, m, t + 1), START, dtype=np.int64)
        codes[:, :, 1:] = prefix
        if r * m <= PREFIXES_AT_ONCE:
            return self._run(memory.arrays, codes)
        out = np.empty((r, m, self.vocabulary[t]), dtype=np.float32)
        rows, columns = max(1, PREFIXES_AT_ONCE // m), min(m, PREFIXES_AT_ONCE)
        for a in range(0, r, rows):
            part = tuple(array[a : a + rows] for array in memory.arrays)
            for b in range(0, m, columns):
                out[a : a + rows, b : b + columns] = self._run(part, codes[a : a + rows, b : b + columns])
        return out

    def _run(self, memory: tuple[npt.NDArray[Any], ...], codes: IntArray) -> FloatArray:
        feeds = {PREFIX: codes, **dict(zip(self._kept, memory, strict=True))}
        log_probs: Any = self._step.run(None, feeds)[0]
        return np.asarray(log_probs[..., : self.vocabulary[codes.shape[-1] - 1]], dtype=np.float32)


class ParallelDecoder(_Graphs):
    """A generator in one graph, whose levels do not depend on each other: all distributions in one pass.

    Its first output is float32 (R, L, V), log-probabilities.

    Args:
        distributions: the `.onnx` file.
        histories: what it is fed.
        vocabulary: V of each level; more columns are cut off.
        threads: cores that one run may use.
        device: `cpu` or `cuda`.

    Raises:
        BundleForeign, BundleTorn: see `OnnxDecoder`.
    """

    def __init__(
        self,
        distributions: Path,
        *,
        histories: CodedHistories,
        vocabulary: tuple[int, ...],
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        super().__init__(histories, vocabulary)
        self._session = open_graph(distributions, threads=threads, device=device)
        check_inputs(self._session, histories.names)

    def prefill(self, requests: Sequence[Request], /) -> Memory:
        """See `Decoder`: all that there is to compute."""
        log_probs: Any = self._session.run(None, self._histories.feeds(requests))[0]
        return Memory((np.asarray(log_probs, dtype=np.float32),))

    def step(self, memory: Memory, prefix: IntArray, /) -> FloatArray:
        """See `Decoder`: the same for every prefix."""
        level = prefix.shape[-1]
        return self.distributions(memory)[:, None, level, : self.vocabulary[level]]

    def distributions(self, memory: Memory, /) -> FloatArray:
        """See `Parallel`."""
        return memory.arrays[0]
