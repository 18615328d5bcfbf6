"""A generator in torch behind the face of its graphs, so that one search serves training, evaluation and parity."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from models.evaluate import OnProgress, Report, evaluate_lists
from models.splits import Cases
from retrieval.codes import CodeTable
from retrieval.decoder import START, CodedHistories, Memory
from retrieval.filters import Eligible
from retrieval.generative import Generation, Generative
from retrieval.inputs import Request
from retrieval.sequences import FloatArray, IntArray
from retrieval.trie import ConstraintTrie


class TorchDecoder:
    """A generator as a decoder (see `retrieval.decoder.Decoder`), in evaluation mode.

    Args:
        model: a registered generator.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        self._histories = CodedHistories(
            model.inputs, model.config.window, model.tables, trained=len(model.tables.codes)
        )
        self.vocabulary: tuple[int, ...] = model.tables.codes.vocabulary

    def reads(self, request: Request, /) -> bool:
        """See `Decoder`."""
        return self._histories.reads(request)

    @torch.inference_mode()
    def prefill(self, requests: Sequence[Request], /) -> Memory:
        """See `Decoder`."""
        feeds = [torch.from_numpy(feed) for feed in self._histories.feeds(requests).values()]
        made = self._model.prefill(*feeds) if self._model.memory_names else (self._model.distributions(*feeds),)
        return Memory(tuple(part.numpy() for part in made))

    @torch.inference_mode()
    def step(self, memory: Memory, prefix: IntArray, /) -> FloatArray:
        """See `Decoder`."""
        level = prefix.shape[-1]
        if not self._model.memory_names:
            return self.distributions(memory)[:, None, level, : self.vocabulary[level]]
        started = np.concatenate([np.full((*prefix.shape[:2], 1), START, np.int64), prefix], axis=-1)
        parts = [torch.from_numpy(array) for array in memory.arrays]
        found: FloatArray = self._model.step(torch.from_numpy(started), *parts).numpy()
        return found[..., : self.vocabulary[level]]

    def distributions(self, memory: Memory) -> FloatArray:
        """float32, shape (R, L, V): log-probabilities of all levels, of a model that gives them in one pass."""
        return memory.arrays[0]


def judged(
    model: Any,
    cases: Cases,
    *,
    name: str,
    beams: int,
    ks: Sequence[int] = (10,),
    on_progress: OnProgress | None = None,
) -> Report:
    """The quality of a generator in training: its lists among all coded items, seen ones left out."""
    table: CodeTable = model.tables.codes
    settings = Generation(table.levels, table.vocabulary, beams=beams)
    recommender = Generative(TorchDecoder(model), ConstraintTrie.build(table), settings)
    return evaluate_lists(
        recommender,
        cases,
        name=name,
        how=f"of {beams} beams over all items with a code",
        eligible=Eligible.of(table.coded.copy()),
        ks=ks,
        on_progress=on_progress,
    )
