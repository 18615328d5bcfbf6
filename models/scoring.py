"""A torch model as a scorer: the same inputs, the same last slot, the same table as a bundle would use."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from retrieval import inputs
from retrieval.inputs import Request
from retrieval.sequences import FloatArray, History


def tensors(model: Any, requests: Sequence[Request], *, length: int) -> tuple[torch.Tensor, ...]:
    """The model's inputs for a batch, in the order of its `forward`."""
    feeds = inputs.build(model.inputs, requests, length=length, tables=getattr(model, "tables", None))
    return tuple(torch.from_numpy(feed) for feed in feeds.values())


class TorchScorer:
    """Scores of every catalog row by a model in evaluation mode.

    Args:
        model: a registered family.
        name: how tables call it.
    """

    def __init__(self, model: Any, *, name: str) -> None:
        self.model = model.eval()
        self.name = name

    @torch.inference_mode()
    def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:
        """float32, shape (B, N + 1): inner products; zero for histories without events."""
        length = min(max((len(h) for h in histories), default=1) or 1, self.model.config.window)
        requests = [Request(h, t) for h, t in zip(histories, times, strict=True)]
        query = self.model(*tensors(self.model, requests, length=length))
        vectors = self.model.item_vectors()
        found = query @ vectors.T if query.ndim == 2 else (query @ vectors.T).amax(dim=1)
        empty = torch.tensor([len(h) == 0 for h in histories])
        return np.asarray(found.masked_fill(empty.unsqueeze(-1), 0.0).numpy(), dtype=np.float32)
