"""Hashed TF-IDF and its strongest directions: the baseline that a text model has to beat, learnt in seconds."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from models.progress import Progress
from models.text.registry import PROVIDERS, TextOptions
from retrieval.text import HashedText, terms

BUCKETS = 1 << 17
LEAST_TEXTS = 2  # a term of one text alone says nothing about how texts are alike
WIDTH = 128
OVERSAMPLED = 16
POWER_ROUNDS = 4


@PROVIDERS.register("tfidf")
def tfidf(texts: Sequence[str], options: TextOptions, *, seed: int, progress: Progress) -> HashedText:
    """Hashed words and pairs, weighted by rarity, on the `text_width` directions with the largest singular values."""
    counts = sparse.csr_array(_counts([terms(text, BUCKETS) for text in texts]))
    frequency = np.bincount(counts.indices, minlength=BUCKETS)
    kept = np.flatnonzero(frequency >= min(LEAST_TEXTS, len(texts)))
    kept = kept if len(kept) else np.flatnonzero(frequency)
    if not len(kept):  # not a word in any text
        return HashedText(np.full(1, -1, dtype=np.int32), np.zeros((1, 1), dtype=np.float32))
    rarity = np.log((1 + len(texts)) / (1 + frequency[kept])) + 1.0
    weighted = counts[:, kept]
    weighted.data = 1.0 + np.log(weighted.data)
    weighted = weighted @ sparse.diags_array(rarity)
    lengths = np.sqrt((weighted**2).sum(axis=1))
    weighted = sparse.diags_array(1.0 / np.maximum(lengths, 1e-12)) @ weighted
    width = min(options.text_width or WIDTH, *weighted.shape)
    directions = strongest(weighted, width, np.random.default_rng(seed))
    progress.say(f"tfidf: {len(kept):,} words and pairs in {len(texts):,} texts, {width} directions")
    places = np.full(BUCKETS, -1, dtype=np.int32)
    places[kept] = np.arange(len(kept))
    return HashedText(places, (rarity[:, None] * directions).astype(np.float32))


def strongest(matrix: sparse.csr_array, width: int, rng: np.random.Generator) -> np.ndarray:
    """float64, shape (F, width): the right singular vectors of the largest singular values of a matrix (n, F).

    Each vector's largest coordinate is positive, so that the same matrix always gives the same vectors.

    Source: Halko, Martinsson, Tropp, Finding Structure with Randomness, SIAM Review 2011, algorithms 4.4 and 5.1.
    """
    sketch = matrix @ rng.standard_normal((matrix.shape[1], min(width + OVERSAMPLED, *matrix.shape)))
    basis = np.linalg.qr(sketch)[0]
    for _ in range(POWER_ROUNDS):
        basis = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])[0]
    found = np.linalg.svd((matrix.T @ basis).T, full_matrices=False)[2][:width].T
    largest = np.abs(found).argmax(axis=0)
    return found * np.sign(found[largest, np.arange(found.shape[1])])


def _counts(counted: Sequence[Counter[int]]) -> sparse.csr_array:
    """How often each bucket stands in each text: (n, BUCKETS)."""
    ends = np.cumsum([0, *map(len, counted)])
    columns = np.array([bucket for one in counted for bucket in one], dtype=np.int64)
    values = np.array([count for one in counted for count in one.values()], dtype=np.float64)
    return sparse.csr_array((values, columns, ends), shape=(len(counted), BUCKETS))
