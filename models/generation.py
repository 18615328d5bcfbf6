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

    def _feeds(self, requests: Sequence[Request]) -> list[torch.Tensor]:
        return [torch.from_numpy(feed) for feed in self._histories.feeds(requests).values()]

    @torch.inference_mode()
    def prefill(self, requests: Sequence[Request], /) -> Memory:
        """See `Decoder`."""
        return Memory(tuple(part.numpy() for part in self._model.prefill(*self._feeds(requests))))

    @torch.inference_mode()
    def step(self, memory: Memory, prefix: IntArray, /) -> FloatArray:
        """See `Decoder`."""
        level = prefix.shape[-1]
        started = np.concatenate([np.full((*prefix.shape[:2], 1), START, np.int64), prefix], axis=-1)
        parts = [torch.from_numpy(array) for array in memory.arrays]
        found: FloatArray = self._model.step(torch.from_numpy(started), *parts).numpy()
        return found[..., : self.vocabulary[level]]


class TorchParallel(TorchDecoder):
    """The same for a model that gives all its distributions in one pass."""

    @torch.inference_mode()
    def prefill(self, requests: Sequence[Request], /) -> Memory:
        """See `Decoder`."""
        return Memory((self._model.distributions(*self._feeds(requests)).numpy(),))

    def step(self, memory: Memory, prefix: IntArray, /) -> FloatArray:
        """See `Decoder`."""
        level = prefix.shape[-1]
        return self.distributions(memory)[:, None, level, : self.vocabulary[level]]

    def distributions(self, memory: Memory, /) -> FloatArray:
        """See `Parallel`."""
        log_probs: FloatArray = memory.arrays[0]
        return log_probs


def in_torch(model: Any) -> TorchDecoder:
    """The decoder of a registered generator."""
    return TorchDecoder(model) if model.memory_names else TorchParallel(model)


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
    recommender = Generative(in_torch(model), ConstraintTrie.build(table), settings)
    return evaluate_lists(
        recommender,
        cases,
        name=name,
        how=f"of {beams} beams over all items with a code",
        eligible=Eligible.of(table.coded.copy()),
        ks=ks,
        on_progress=on_progress,
    )
