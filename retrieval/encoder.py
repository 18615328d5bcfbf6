"""Sequence encoders: a batch of requests in, query embeddings out.

An encoder returns one query vector per request, shape (B, D), or several, shape (B, Q, D); an item's score is then the
best of its inner products with them.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from retrieval import inputs
from retrieval.errors import BundleForeign, BundleTorn, EmptyHistory, InvalidInput
from retrieval.inputs import Request, Tables
from retrieval.sequences import PAD_ROW, FloatArray

# A GPU rounds the factors of a matrix product to 10 bits unless it is told not to, and would then give other lists than
# the CPU does.
PROVIDERS: Mapping[str, tuple[str, dict[str, str]]] = {
    "cpu": ("CPUExecutionProvider", {}),
    "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
}


# What one run of a graph costs in itself, as slots of a window that it could encode in the same time on one core: 75 us
# against 2.3 us for each slot of the demo's encoder, a little more with what has to be done around it. Larger models
# cost more per slot, so that for them it is too many, which only leaves a batch together that could be cut.
RUN_SLOTS = 48


class SequenceEncoder(Protocol):
    """What retrieval needs of a model."""

    def encode(self, requests: Sequence[Request]) -> FloatArray:
        """Query embeddings of B requests with non-empty histories: float32, shape (B, D) or (B, Q, D)."""
        ...


def best_device() -> str:
    """`cuda` where this onnxruntime was built for it, else `cpu`; whether there is a GPU shows when it is opened."""
    return "cuda" if PROVIDERS["cuda"][0] in ort.get_available_providers() else "cpu"


def open_graph(path: Path, *, threads: int, device: str) -> ort.InferenceSession:
    """A graph, ready to run.

    Args:
        path: the `.onnx` file.
        threads: cores that one run may use.
        device: `cpu` or `cuda`.

    Raises:
        BundleForeign: the device was asked for and not taken.
        BundleTorn: the file is no graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads of onnxruntime spin by default, which takes the cores from everything else in the process.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = PROVIDERS[device][0]
    taken = ort.get_available_providers()
    if wanted in taken:
        try:
            session = ort.InferenceSession(str(path), options, providers=[PROVIDERS[device]])
        except Exception as error:  # onnxruntime raises a dozen undocumented classes here
            raise BundleTorn(f"{path.name} is not a graph that onnxruntime can open: {error}") from error
        taken = session.get_providers()  # the CPU's alone where there is no GPU
    if wanted not in taken:
        raise BundleForeign(
            f"device {device!r} needs {wanted}, onnxruntime offers {taken}; install the gpu extra or use cpu"
        )
    return session


def check_inputs(session: ort.InferenceSession, names: Sequence[str]) -> None:
    """Refuses a graph whose inputs are not those that the manifest declares.

    Raises:
        BundleForeign: others.
    """
    expected = {name.replace(":", "_") for name in names}
    present = {node.name for node in session.get_inputs()}
    if expected != present:
        raise BundleForeign(f"the manifest declares inputs {sorted(expected)}, the graph has {sorted(present)}")


class OnnxEncoder:
    """A graph of a bundle, run by onnxruntime.

    Batches are padded to their longest history, not to L: attention costs the square of what is padded. Where lengths
    differ so much that padding takes longer than another run, a batch is run in parts of similar length; a GPU does not
    feel the padding.

    Args:
        path: the `.onnx` file.
        names: the inputs that the manifest declares, see `retrieval.inputs`.
        length: window length L.
        tables: what inputs may gather from.
        threads: cores that one run may use.
        device: `cpu` or `cuda`.

    Raises:
        BundleForeign: an input has no builder, or the device was asked for and not taken.
        BundleTorn: the file is no graph.
    """

    def __init__(
        self,
        path: Path,
        *,
        names: Sequence[str],
        length: int,
        tables: Tables | None = None,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        inputs.check(names)
        self._session = open_graph(path, threads=threads, device=device)
        self._names = tuple(names)
        self._tables = tables or Tables()
        self._run_slots = math.inf if device != "cpu" else RUN_SLOTS * max(1, threads)
        self.length = length
        check_inputs(self._session, names)
        self._outputs = [self._session.get_outputs()[0].name]

    def encode(self, requests: Sequence[Request]) -> FloatArray:
        """Query embeddings, see `SequenceEncoder.encode`.

        Raises:
            EmptyHistory: a request has nothing to encode.
            InvalidInput: there is no request.
        """
        if not requests:
            raise InvalidInput("no request to encode")
        lengths = [len(request.history.rows) for request in requests]
        if min(lengths) == 0:
            raise EmptyHistory("a request without history has nothing to encode; answer it from the popular items")
        longest = min(max(lengths), self.length)
        if len(requests) * (longest - min(lengths)) <= self._run_slots:  # no cut can save so much
            return self._run(requests, longest)
        order = sorted(range(len(requests)), key=lengths.__getitem__)
        parts = alike([min(lengths[b], self.length) for b in order], self._run_slots)
        if len(parts) == 1:
            return self._run(requests, longest)
        encoded = [
            self._run([requests[b] for b in order[part.start : part.stop]], min(lengths[order[part[-1]]], self.length))
            for part in parts
        ]
        every = np.concatenate(encoded)
        out = np.empty_like(every)
        out[order] = every
        return out

    def _run(self, requests: Sequence[Request], length: int) -> FloatArray:
        feeds = inputs.build(self._names, requests, length=length, tables=self._tables)
        query: Any = self._session.run(self._outputs, feeds)[0]
        return np.asarray(query, dtype=np.float32)


def alike(lengths: Sequence[int], run_slots: float) -> list[range]:
    """Cuts a batch where another run costs less than the padding that it saves: best cut first, then in both parts.

    Args:
        lengths: of B histories, rising.
        run_slots: what a run costs in itself, see `RUN_SLOTS`.

    Returns:
        ranges that follow each other, from 0 to B.
    """
    parts: list[range] = []
    open_ = [range(len(lengths))]
    while open_:
        part = open_.pop()
        longest = lengths[part[-1]]
        saved, at = max([((at - part.start) * (longest - lengths[at - 1]), at) for at in part[1:]], default=(0, 0))
        if saved > run_slots:
            open_ += [range(at, part.stop), range(part.start, at)]
        else:
            parts.append(part)
    return parts


class MeanEncoder:
    """The mean of the items' vectors, the newest counting most: no graph, for floors and for tests.

    Args:
        vectors: float32, shape (N + 1, D).
        decay: weight of an event relative to the one after it.
    """

    def __init__(self, vectors: FloatArray, *, decay: float = 0.8, length: int = 50) -> None:
        self._vectors = vectors
        self._decay = decay
        self.length = length

    def encode(self, requests: Sequence[Request]) -> FloatArray:
        """Query embeddings, see `SequenceEncoder.encode`."""
        rows = inputs.build(["item_rows"], requests, length=self.length)["item_rows"]
        weights = np.where(rows == PAD_ROW, 0.0, self._decay ** np.arange(self.length)[::-1]).astype(np.float32)
        if not weights.any(axis=1).all():
            raise EmptyHistory("a request without history has nothing to encode; answer it from the popular items")
        mean: FloatArray = np.einsum("bl,bld->bd", weights / weights.sum(axis=1, keepdims=True), self._vectors[rows])
        return mean.astype(np.float32)
