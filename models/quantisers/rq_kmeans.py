"""Residual k-means: level by level the nearest of V cluster centres of what is left. No network, seconds."""

import numpy as np

from models.progress import Progress
from models.quantisers.clusters import residual_codebooks
from models.quantisers.registry import PROVIDERS, Learnt, QuantiserOptions, unexplained
from retrieval.quantisers import ResidualCodebooks
from retrieval.sequences import FloatArray


@PROVIDERS.register("rq_kmeans")
def rq_kmeans(vectors: FloatArray, options: QuantiserOptions, *, seed: int, progress: Progress) -> Learnt:
    """Codebooks of cluster centres, around the mean of the vectors and in their own scale.

    With a `quantiser_width`, clusters are those of that many principal directions, each brought to the same spread:
    more items get three codes of their own, and fewer that share the first code share a category.
    """
    mean, ones = vectors.mean(axis=0), np.ones(vectors.shape[1], dtype=np.float32)
    given = vectors - mean
    layers = []
    if options.quantiser_width:
        weight = whitening(given, options.quantiser_width)
        given = given @ weight.T
        layers = [(weight, np.zeros(len(weight), dtype=np.float32))]
    codebooks = residual_codebooks(given, options.levels, options.codewords, np.random.default_rng(seed))
    quantiser = ResidualCodebooks(codebooks, mean, ones, layers)
    codes = quantiser.codes(vectors)
    levels = range(1, options.levels + 1)
    errors = tuple(unexplained(given, quantiser.decoded(codes, level)) for level in levels)
    progress.say(f"rq_kmeans: unexplained after each level {', '.join(f'{error:.3f}' for error in errors)}")
    return Learnt(quantiser, errors)


def whitening(centred: FloatArray, width: int) -> FloatArray:
    """float32, shape (E, D): the principal directions of vectors (n, D) around zero, each over its spread.

    At most `width`, and none along which nothing varies; one at least.
    """
    _, sizes, directions = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
    kept = max(1, min(width, int((sizes > 1e-6 * sizes[0]).sum())))
    spread = np.maximum(sizes[:kept] / np.sqrt(len(centred)), 1e-12)
    found: FloatArray = (directions[:kept] / spread[:, None]).astype(np.float32)
    return found
