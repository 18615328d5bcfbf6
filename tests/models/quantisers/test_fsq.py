from dataclasses import replace

import numpy as np
import pytest
import torch

from models.progress import Progress
from models.quantisers.fsq import STEPS, Tokenizer, fsq
from models.quantisers.registry import QuantiserOptions
from retrieval.quantisers import FiniteScalar, grid_codes

SMALL = QuantiserOptions(quantiser_epochs=6, quantiser_width=16, quantiser_rate=3e-3)


def vectors(width: int = 24, n: int = 600) -> np.ndarray:
    rng = np.random.default_rng(0)
    spread = 2.0 ** -np.arange(width) @ np.eye(width)[:, :]
    return (rng.standard_normal((n, width)) * (0.1 + spread)).astype(np.float32)


@pytest.mark.parametrize("width", [24, 6])
def test_four_tokens_rebuild_the_vector_better_than_its_mean(width: int):
    learnt = fsq(vectors(width), SMALL, seed=1, progress=Progress())
    assert learnt.quantiser.vocabulary == (15_360,) * 4
    assert len(learnt.errors) == 1
    assert learnt.errors[0] < 0.7


def test_the_serving_half_gives_the_tokens_that_training_saw():
    torch.manual_seed(0)
    model = Tokenizer(6, 16)
    weight, bias = (p.detach().numpy() for p in (model.onto.weight, model.onto.bias))
    still = np.zeros(24, dtype=np.float32)
    served = FiniteScalar(weight, bias, still, still + 1, steps=STEPS, tokens=4)
    given = 3 * vectors(n=2000)
    points = model.points(torch.from_numpy(given.reshape(-1, 4, 6))).detach().numpy()
    assert (np.abs(points - np.rint(points)) < 1e-5).all()
    assert (grid_codes(np.rint(points), STEPS) == served.codes(given)).all()


def test_gradients_pass_through_the_rounding():
    torch.manual_seed(0)
    model = Tokenizer(6, 16)
    model(torch.randn(5, 4, 6)).square().sum().backward()
    assert model.onto.weight.grad is not None
    assert model.onto.weight.grad.abs().sum() > 0


def test_the_same_seed_gives_the_same_tokens_and_leaves_the_generator_of_others_alone():
    before, short = torch.get_rng_state(), replace(SMALL, quantiser_epochs=1)
    codes = [fsq(vectors(), short, seed=1, progress=Progress()).quantiser.codes(vectors()) for _ in range(2)]
    assert (codes[0] == codes[1]).all()
    assert (torch.get_rng_state() == before).all()


def test_a_catalogue_of_one_item_is_coded():
    learnt = fsq(vectors(n=1), SMALL, seed=1, progress=Progress())
    assert learnt.quantiser.codes(vectors(n=1)).shape == (1, 4)
