from dataclasses import replace

import numpy as np
import torch

from models.progress import Progress
from models.quantisers.registry import QuantiserOptions
from models.quantisers.rqvae import Autoencoder, exported, revive, rqvae

SMALL = QuantiserOptions(levels=3, codewords=8, quantiser_width=4, quantiser_epochs=12)


def vectors(n: int = 600) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((n, 4)) @ rng.standard_normal((4, 20)) + 3).astype(np.float32)


def test_the_error_falls_with_every_level_and_all_codewords_are_used():
    learnt = rqvae(vectors(), SMALL, seed=1, progress=Progress())
    assert learnt.quantiser.vocabulary == (8, 8, 8)
    assert list(learnt.errors) == sorted(learnt.errors, reverse=True)
    assert learnt.errors[-1] < 0.5
    codes = learnt.quantiser.codes(vectors())
    assert [len(np.unique(level)) for level in codes.T] == [8, 8, 8]


def test_the_serving_half_gives_the_codes_that_training_saw():
    torch.manual_seed(0)
    model = Autoencoder(20, 4, 3, 8)
    torch.nn.init.normal_(model.codebooks, std=0.05)
    mean, scale = vectors().mean(axis=0), vectors().std(axis=0)
    with torch.inference_mode():
        given = torch.from_numpy((vectors() - mean) / scale)
        codes = model.quantise(model.encoder(given))[0].numpy()
    assert len(np.unique(codes)) > 4
    assert (exported(model, mean, scale).codes(vectors()) == codes).all()


def test_idle_codewords_move_to_residuals_and_used_ones_stay():
    codebooks, used = torch.zeros(2, 4, 3), torch.ones(2, 4, dtype=torch.bool)
    used[1, 2:] = False
    residuals = torch.arange(5)[:, None, None] + torch.tensor([10.0, 20.0])[:, None] * torch.ones(2, 3)
    assert revive(codebooks, used, residuals) == 2
    assert not codebooks[0].any()
    assert not codebooks[1, :2].any()
    assert set(codebooks[1, 2:, 0].tolist()) < {20.0, 21.0, 22.0, 23.0, 24.0}
    assert codebooks[1, 2, 0] != codebooks[1, 3, 0]


def test_the_same_seed_gives_the_same_codes_and_leaves_the_generator_of_others_alone():
    before, short = torch.get_rng_state(), replace(SMALL, quantiser_epochs=4)
    codes = [rqvae(vectors(), short, seed=1, progress=Progress()).quantiser.codes(vectors()) for _ in range(2)]
    assert (codes[0] == codes[1]).all()
    assert (torch.get_rng_state() == before).all()


def test_fewer_items_than_codewords_are_coded():
    learnt = rqvae(vectors(3), replace(SMALL, quantiser_epochs=4), seed=1, progress=Progress())
    assert learnt.quantiser.codes(vectors(3)).shape == (3, 3)
