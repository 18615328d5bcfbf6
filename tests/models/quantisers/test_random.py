import numpy as np

from models.progress import Progress
from models.quantisers.random import random
from models.quantisers.registry import QuantiserOptions


def test_neighbours_share_nothing():
    vectors = (1 + 1e-4 * np.random.default_rng(0).standard_normal((600, 4))).astype(np.float32)
    learnt = random(vectors, QuantiserOptions(levels=2, codewords=32), seed=1, progress=Progress())
    codes = learnt.quantiser.codes(vectors)
    assert learnt.quantiser.vocabulary == (32, 32)
    assert np.bincount(codes[:, 0], minlength=32).max() < 40
