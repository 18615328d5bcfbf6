"""From a transformer in torch to the text encoder that a bundle carries."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.errors import ExportError
from models.export import trace
from models.text.backbone import Backbone, Pooling, pool
from retrieval.text import OnnxText

INPUTS = ("input_ids", "attention_mask")
TOLERANCE = 1e-4  # of a coordinate of a vector of length one


class Pooled(nn.Module):
    """Ids and mask to one vector per text."""

    def __init__(self, backbone: Backbone, how: Pooling) -> None:
        super().__init__()
        self.backbone, self.how = backbone, how

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """float32 (B, D) of ids and mask int64 (B, T)."""
        return pool(self.backbone(self.backbone.embed(ids), mask)[-1], mask, self.how)


def served(backbone: Backbone, tokenizer: str, *, pooling: Pooling, tokens: int) -> OnnxText:
    """The backbone as a graph beside its tokenizer.

    Args:
        backbone: any of ours; it is put into evaluation mode.
        tokenizer: the JSON of its tokenizer.
        tokens: longest text.

    Raises:
        ExportError: the graph does not compute what the backbone computes.
    """
    module = Pooled(backbone, pooling).eval()
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, backbone.config.vocabulary, (2, 3)))
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    shape = {0: torch.export.Dim("B"), 1: torch.export.Dim("T", max=max(tokens, 4))}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "text.onnx"
        trace(module, (ids, mask), (shape, shape), path, inputs=INPUTS, outputs=("vector",))
        graph = path.read_bytes()
    encoder = OnnxText(tokenizer, graph, tokens=tokens)
    for texts, length in ((1, 1), (3, min(tokens, 5))):
        ids = torch.from_numpy(rng.integers(0, backbone.config.vocabulary, (texts, length)))
        mask = (torch.arange(length) < torch.arange(length, length - texts, -1)[:, None]).long()
        with torch.inference_mode():
            ours = nn.functional.normalize(module(ids, mask), dim=1).numpy()
        largest = float(np.abs(ours - encoder.run(ids.numpy(), mask.numpy())).max())
        if not largest <= TOLERANCE:
            raise ExportError(f"the text graph differs from the model by {largest:.1e}; {TOLERANCE} is allowed")
    return encoder
