"""FSQ tokens: four per item, each a point of an 8 x 8 x 8 x 6 x 5 grid, learnt by rebuilding the vector from them.

There is no codebook, so nothing can collapse: the grid stands still, and what is learnt is where on it vectors fall.
The public tokenizer of RecGPT cuts the vector as it comes. Here it is turned by a random rotation first, since the
coordinates of a projected vector are sorted by what they say, and the first piece would say nearly all of it; and the
map onto the grid starts at the principal directions of the pieces rather than at random.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from models.progress import Progress
from models.quantisers.registry import PROVIDERS, Learnt, QuantiserOptions, batch_size, unexplained
from retrieval.quantisers import FiniteScalar, grid_points
from retrieval.sequences import FloatArray

STEPS = (8, 8, 8, 6, 5)
TOKENS = 4
WIDTH = 64
BATCH = 256
EPOCHS = 20
SLICE = 4096


class Tokenizer(nn.Module):
    """Grid points of four pieces, and the vector rebuilt from them.

    Args:
        piece: width of a piece.
        width: of the decoder.

    Source: RecGPT: A Foundation Model for Sequential Recommendation, 2025, and its public code: one linear map for all
        pieces, two layers over the four points, of which the last position is read, L1 loss.
    """

    reach: torch.Tensor
    offset: torch.Tensor
    shift: torch.Tensor
    unit: torch.Tensor

    def __init__(self, piece: int, width: int) -> None:
        super().__init__()
        self.onto = nn.Linear(piece, len(STEPS))
        self.off = nn.Linear(len(STEPS), width)
        self.positions = nn.Parameter(0.02 * torch.randn(TOKENS, width))
        layer = nn.TransformerEncoderLayer(
            width,
            next(h for h in (8, 4, 2, 1) if width % h == 0),
            4 * width,
            0.0,
            "gelu",
            batch_first=True,
            norm_first=True,
        )
        self.decoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.rebuild = nn.Sequential(
            nn.Linear(width, TOKENS * piece), nn.ReLU(), nn.Linear(TOKENS * piece, TOKENS * piece)
        )
        steps = torch.tensor(STEPS, dtype=torch.float32)
        reach = (steps - 1) * (1 - 1e-3) / 2
        offset = torch.where(steps % 2 == 0, 0.5, 0.0)
        for name, value in {"reach": reach, "offset": offset, "shift": torch.tan(offset / reach)}.items():
            self.register_buffer(name, value, persistent=False)
        self.register_buffer("unit", steps // 2, persistent=False)

    def points(self, pieces: torch.Tensor) -> torch.Tensor:
        """float32 (n, T, J): rounded grid points of pieces (n, T, P), with the gradient of the unrounded ones."""
        bounded = torch.tanh(self.onto(pieces) + self.shift) * self.reach - self.offset
        return bounded + (bounded.round() - bounded).detach()

    def decode(self, points: torch.Tensor) -> torch.Tensor:
        """float32 (n, T * P): the vectors that these points stand for."""
        return self.rebuild(self.decoder(self.off(points / self.unit) + self.positions)[:, -1])

    def forward(self, pieces: torch.Tensor) -> torch.Tensor:
        return self.decode(self.points(pieces))


@PROVIDERS.register("fsq")
def fsq(vectors: FloatArray, options: QuantiserOptions, *, seed: int, progress: Progress) -> Learnt:
    """Four tokens of 15,360 values; `levels` and `codewords` do not count here."""
    rng = np.random.default_rng(seed)
    width = vectors.shape[1]
    padded = -(-width // TOKENS) * TOKENS
    mean, scale = vectors.mean(axis=0), np.full(width, max(float(vectors.std()), 1e-6), dtype=np.float32)
    rotation = np.linalg.qr(rng.standard_normal((padded, padded)))[0][:width].astype(np.float32)
    pieces = ((vectors - mean) / scale @ rotation).reshape(len(vectors), TOKENS, -1).astype(np.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Tokenizer(pieces.shape[2], options.quantiser_width or WIDTH)
        _start(model, pieces)
        _train(model, torch.from_numpy(pieces), options, progress)
    weight, bias = (p.detach().numpy().copy() for p in (model.onto.weight, model.onto.bias))
    quantiser = FiniteScalar(weight, bias, mean, scale, steps=STEPS, tokens=TOKENS, rotation=rotation)
    points = torch.from_numpy(grid_points(quantiser.codes(vectors), STEPS).astype(np.float32))
    with torch.inference_mode():
        rebuilt = torch.cat([model.decode(part) for part in points.split(SLICE)]).numpy()
    error = unexplained(vectors, rebuilt @ rotation.T * scale + mean)
    progress.say(f"fsq: unexplained by the four tokens {error:.3f}")
    return Learnt(quantiser, (error,))


def _start(model: Tokenizer, pieces: np.ndarray) -> None:
    """Lets each grid dimension begin at a principal direction of the pieces, in its own spread."""
    flat = pieces.reshape(-1, pieces.shape[2])
    values, directions = np.linalg.eigh(flat.T @ flat / len(flat))
    chosen = directions[:, ::-1][:, : len(STEPS)] / np.sqrt(np.maximum(values[::-1][: len(STEPS)], 1e-6))
    with torch.no_grad():
        model.onto.weight[: chosen.shape[1]] = torch.from_numpy(chosen.T.astype(np.float32))
        model.onto.bias.zero_()


def _train(model: Tokenizer, pieces: torch.Tensor, options: QuantiserOptions, progress: Progress) -> None:
    optimiser = torch.optim.Adam(model.parameters(), lr=options.quantiser_rate)
    for _ in progress.bar(range(options.quantiser_epochs or EPOCHS), "fsq", unit="epoch"):
        for rows in torch.randperm(len(pieces)).split(batch_size(len(pieces), BATCH)):
            optimiser.zero_grad()
            functional.l1_loss(model(pieces[rows]), pieces[rows].flatten(1)).backward()
            optimiser.step()
