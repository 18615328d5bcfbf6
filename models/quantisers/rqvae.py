"""RQ-VAE: residual codebooks in a space that is learnt, so that three codes can rebuild the vector.

Inputs are standardised by dimension, the encoder learns without codes first, the codebooks start at residual k-means
of what it gives, and a codeword that nobody chose during an epoch moves to where something was badly served: each of
these keeps the codebooks from collapsing, which they otherwise do.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import nn

from models.progress import Progress
from models.quantisers.clusters import residual_codebooks
from models.quantisers.registry import PROVIDERS, Learnt, QuantiserOptions, batch_size, standard, unexplained
from retrieval.quantisers import ResidualCodebooks
from retrieval.sequences import FloatArray

HIDDEN = (512, 256, 128)
WIDTH = 32
BATCH = 256
EPOCHS = 100
WARM_SHARE = 0.1  # of the epochs without codes
COMMITMENT = 0.25


class Autoencoder(nn.Module):
    """Encoder, codebooks, decoder.

    Source: Rajput et al., Recommender Systems with Generative Retrieval, NeurIPS 2023, section 3.1.
    """

    def __init__(self, width: int, latent: int, levels: int, codewords: int) -> None:
        super().__init__()
        self.encoder = _layers([width, *HIDDEN, latent])
        self.decoder = _layers([latent, *reversed(HIDDEN), width])
        self.codebooks = nn.Parameter(torch.zeros(levels, codewords, latent))

    def quantise(self, latent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The codes (n, L), the summed codewords (n, E), the loss of codebooks and encoder, and the residuals before
        each level (n, L, E)."""
        residual, total, loss = latent, torch.zeros_like(latent), latent.new_zeros(())
        codes, residuals = [], []
        for codebook in self.codebooks:
            residuals.append(residual)
            with torch.no_grad():
                nearest = ((codebook**2).sum(1) - 2 * residual @ codebook.T).argmin(1)
            word = codebook[nearest]
            loss = loss + ((residual.detach() - word) ** 2).sum(1).mean()
            loss = loss + COMMITMENT * ((residual - word.detach()) ** 2).sum(1).mean()
            codes.append(nearest)
            total, residual = total + word, residual - word.detach()
        return torch.stack(codes, 1), total, loss, torch.stack(residuals, 1).detach()


@PROVIDERS.register("rqvae")
def rqvae(vectors: FloatArray, options: QuantiserOptions, *, seed: int, progress: Progress) -> Learnt:
    """`levels` codebooks of `codewords` in a latent space of `quantiser_width`."""
    mean, scale = standard(vectors)
    given = torch.from_numpy(((vectors - mean) / scale).astype(np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoder(vectors.shape[1], options.quantiser_width or WIDTH, options.levels, options.codewords)
        resets = _train(model, given, options, np.random.default_rng(seed), progress)
    quantiser = exported(model, mean, scale)
    codes = quantiser.codes(vectors)
    errors = []
    with torch.inference_mode():
        for level in range(1, options.levels + 1):
            summed = torch.from_numpy(quantiser.decoded(codes, level).astype(np.float32))
            errors.append(unexplained(given.numpy(), model.decoder(summed).numpy()))
    progress.say(f"rqvae: unexplained after each level {', '.join(f'{error:.3f}' for error in errors)}")
    return Learnt(quantiser, tuple(errors), {"codewords_reset": resets})


def exported(model: Autoencoder, mean: FloatArray, scale: FloatArray) -> ResidualCodebooks:
    """The half that serves."""
    linear = [layer for layer in model.encoder if isinstance(layer, nn.Linear)]
    layers = [(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in linear]
    return ResidualCodebooks(model.codebooks.detach().numpy().copy(), mean, scale, layers)


def _train(
    model: Autoencoder, given: torch.Tensor, options: QuantiserOptions, rng: np.random.Generator, progress: Progress
) -> int:
    """Trains in place; returns how many idle codewords were moved."""
    epochs = options.quantiser_epochs or EPOCHS
    optimiser = torch.optim.Adam(model.parameters(), lr=options.quantiser_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    warm, resets = max(1, round(WARM_SHARE * epochs)), 0
    for epoch in progress.bar(range(epochs), "rqvae", unit="epoch"):
        if epoch == warm:
            with torch.no_grad():
                start = residual_codebooks(model.encoder(given).numpy(), options.levels, options.codewords, rng)
                model.codebooks.copy_(torch.from_numpy(start))
        used = torch.zeros(options.levels, options.codewords, dtype=torch.bool)
        residuals = None
        for rows in torch.randperm(len(given)).split(batch_size(len(given), BATCH)):
            batch = given[rows]
            latent = model.encoder(batch)
            loss, seen = latent.new_zeros(()), latent
            if epoch >= warm:
                codes, summed, loss, residuals = model.quantise(latent)
                used[torch.arange(options.levels), codes] = True
                seen = latent + (summed - latent).detach()
            loss = loss + ((model.decoder(seen) - batch) ** 2).sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        schedule.step()
        if residuals is not None and epoch < epochs - 1:
            resets += revive(model.codebooks, used, residuals)
    return resets


def revive(codebooks: torch.Tensor, used: torch.Tensor, residuals: torch.Tensor) -> int:
    """Moves codewords that nobody chose onto residuals of the last batch; returns how many."""
    moved = 0
    with torch.no_grad():
        for level, idle in enumerate(~used):
            places = idle.nonzero().flatten()[: len(residuals)]
            codebooks[level, places] = residuals[torch.randperm(len(residuals))[: len(places)], level]
            moved += len(places)
    return moved


def _layers(widths: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    parts: list[nn.Module] = []
    for a, b in pairwise(widths):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])
