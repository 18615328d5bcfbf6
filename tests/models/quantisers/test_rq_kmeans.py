import numpy as np

from models.progress import Progress
from models.quantisers.registry import QuantiserOptions
from models.quantisers.rq_kmeans import rq_kmeans, whitening


def test_the_error_falls_with_every_level_and_neighbours_share_codes():
    rng = np.random.default_rng(0)
    centres = 5 * rng.standard_normal((8, 6))
    vectors = (centres[:, None] + 0.1 * rng.standard_normal((8, 60, 6))).reshape(-1, 6).astype(np.float32)
    learnt = rq_kmeans(vectors, QuantiserOptions(levels=3, codewords=8), seed=1, progress=Progress())
    assert learnt.quantiser.vocabulary == (8, 8, 8)
    assert list(learnt.errors) == sorted(learnt.errors, reverse=True)
    assert learnt.errors[0] < 0.3
    first = learnt.quantiser.codes(vectors)[:, 0].reshape(8, 60)
    assert all(len(np.unique(group)) == 1 for group in first)


def test_with_a_width_the_principal_directions_count_alike():
    rng = np.random.default_rng(1)
    vectors = (rng.standard_normal((400, 6)) * [9, 5, 1, 0.1, 0, 0] + 2).astype(np.float32)
    learnt = rq_kmeans(vectors, QuantiserOptions(codewords=8, quantiser_width=3), seed=1, progress=Progress())
    spread = learnt.quantiser.latent(vectors).std(axis=0)
    np.testing.assert_allclose(spread, 1.0, rtol=1e-3)
    assert spread.shape == (3,)
    assert list(learnt.errors) == sorted(learnt.errors, reverse=True)


def test_directions_along_which_nothing_varies_are_left_out():
    assert whitening(np.outer([1.0, -1.0, 2.0], [3.0, 4.0]).astype(np.float32), 2).shape == (1, 2)
    assert np.isfinite(whitening(np.zeros((1, 2), dtype=np.float32), 2)).all()
