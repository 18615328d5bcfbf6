"""What a graph may ask for, by name: one function per input, the same in training and in serving.

A graph declares its inputs in the manifest (`"inputs": ["item_rows", "timestamps", "request_time"]`). Before a run each
name is looked up here and its function builds the array from histories, requests and catalogue. A model that needs a
new kind of input adds one function here and names it; neither the service nor the training loop changes.

A name may carry an argument behind a colon: `context:hour`, `item_vectors:text`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.codes import CodeTable
from retrieval.errors import BundleForeign, InvalidInput
from retrieval.sequences import PAD_ROW, FloatArray, History, window


@dataclass(slots=True, eq=False)
class Request:
    """One thing to encode: a history, the moment of asking, and what the caller said about the moment.

    Not frozen for the reason that is given in `retrieval.queries`, nor is a `History`.

    Attributes:
        history: the user's events, oldest first.
        time: seconds since 1970 at which the answer is wanted.
        context: numbers by name.
        words: words by name: what the caller says of the user or the place, for a ranker's categories.
    """

    history: History
    time: float = 0.0
    context: Mapping[str, float] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tables:
    """What inputs may gather from beside the request.

    Attributes:
        vectors: by name, float32 of shape (N + 1, D'); row 0 is zero. For graphs whose item vectors stay outside, so
            that the catalogue may change without another export.
        codes: the items' semantic ids, for graphs that read items as codes.
    """

    vectors: Mapping[str, FloatArray] = field(default_factory=dict)
    codes: CodeTable | None = None


Builder = Callable[[Sequence[Request], int, Tables, str], npt.NDArray[Any]]
BUILDERS: dict[str, Builder] = {}


def _input(name: str) -> Callable[[Builder], Builder]:
    def add(build: Builder) -> Builder:
        BUILDERS[name] = build
        return build

    return add


@_input("item_rows")
def _item_rows(requests: Sequence[Request], length: int, _tables: Tables, _argument: str) -> npt.NDArray[Any]:
    """int64, shape (B, L): catalog rows, PAD_ROW where the history is shorter."""
    return window([r.history.rows for r in requests], length=length, fill=PAD_ROW, dtype=np.int64)


@_input("event_types")
def _event_types(requests: Sequence[Request], length: int, _tables: Tables, _argument: str) -> npt.NDArray[Any]:
    """int64, shape (B, L): event-type codes, 0 for padding and for types outside the vocabulary."""
    return window([r.history.event_types for r in requests], length=length, fill=0, dtype=np.int64)


@_input("values")
def _values(requests: Sequence[Request], length: int, _tables: Tables, _argument: str) -> npt.NDArray[Any]:
    """float32, shape (B, L): event values; NaN where an event has none, 0 for padding."""
    return window([r.history.values for r in requests], length=length, fill=0.0, dtype=np.float32)


@_input("timestamps")
def _timestamps(requests: Sequence[Request], length: int, _tables: Tables, _argument: str) -> npt.NDArray[Any]:
    """float64, shape (B, L): seconds since 1970, 0 for padding."""
    return window([r.history.timestamps for r in requests], length=length, fill=0.0, dtype=np.float64)


@_input("request_time")
def _request_time(requests: Sequence[Request], _length: int, _tables: Tables, _argument: str) -> npt.NDArray[Any]:
    """float64, shape (B,): the moment the answer is for, seconds since 1970."""
    return np.array([r.time for r in requests], dtype=np.float64)


@_input("context")
def _context(requests: Sequence[Request], _length: int, _tables: Tables, argument: str) -> npt.NDArray[Any]:
    """float32, shape (B,): one named number of the request's context, 0 where the caller gave none."""
    return np.array([r.context.get(argument, 0.0) for r in requests], dtype=np.float32)


@_input("item_vectors")
def _item_vectors(requests: Sequence[Request], length: int, tables: Tables, argument: str) -> npt.NDArray[Any]:
    """float32, shape (B, L, D'): the items' vectors from a table of the bundle, gathered outside the graph."""
    if argument not in tables.vectors:
        known = ", ".join(sorted(tables.vectors)) or "none"
        raise InvalidInput(f"the graph wants item vectors {argument!r}, the bundle holds: {known}; export it again")
    return tables.vectors[argument][_item_rows(requests, length, tables, "")]


@_input("item_codes")
def _item_codes(requests: Sequence[Request], length: int, tables: Tables, _argument: str) -> npt.NDArray[Any]:
    """int64, shape (B, L, C): the C codes of each item; -1 for padding and for items without a code."""
    if tables.codes is None:
        raise InvalidInput("the graph wants item codes, and the bundle holds no code table; export it again")
    return tables.codes.codes[_item_rows(requests, length, tables, "")].astype(np.int64)


def check(names: Sequence[str]) -> None:
    """Refuses a graph whose inputs this version cannot build.

    Raises:
        BundleForeign: an input has no builder here.
    """
    for name in names:
        if name.split(":", 1)[0] not in BUILDERS:
            known = ", ".join(sorted(BUILDERS))
            raise BundleForeign(f"graph input {name!r} is unknown to this version, which builds {known}; upgrade it")


def build(
    names: Sequence[str], requests: Sequence[Request], *, length: int, tables: Tables | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Every input of a graph, for a batch of requests.

    Args:
        names: as the manifest declares them; an argument may follow a colon.
        requests: B requests.
        length: the window length L of this batch, at most that of the manifest.
        tables: what may be gathered from.

    Returns:
        name -> array; the leading dimension of each is B. A colon becomes an underscore, as graph inputs are named.
    """
    tables = tables or Tables()
    feeds = {}
    for name in names:
        kind, _, argument = name.partition(":")
        feeds[name.replace(":", "_")] = BUILDERS[kind](requests, length, tables, argument)
    return feeds
