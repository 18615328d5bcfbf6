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

    Coordinates are not scaled one by one: a direction in which vectors hardly differ would count as much as any other.
    """
    mean = vectors.mean(axis=0)
    rng = np.random.default_rng(seed)
    codebooks = residual_codebooks(vectors - mean, options.levels, options.codewords, rng)
    quantiser = ResidualCodebooks(codebooks, mean, np.ones_like(mean))
    codes = quantiser.codes(vectors)
    levels = range(1, options.levels + 1)
    errors = tuple(unexplained(vectors, mean + quantiser.decoded(codes, level)) for level in levels)
    progress.say(f"rq_kmeans: unexplained after each level {', '.join(f'{error:.3f}' for error in errors)}")
    return Learnt(quantiser, errors)
