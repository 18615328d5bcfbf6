import numpy as np

from models.progress import Progress
from models.quantisers.registry import QuantiserOptions
from models.quantisers.rq_kmeans import rq_kmeans


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
