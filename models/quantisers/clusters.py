"""K-means, the start of every learnt codebook."""

import numpy as np
from scipy import sparse

ROUNDS = 30
PER_CODEWORD = 256  # points that are looked at for each codeword: more change little and cost time
FAR = 1e3


def kmeans(points: np.ndarray, k: int, rng: np.random.Generator, *, rounds: int = ROUNDS) -> np.ndarray:
    """Centres of k clusters: float32, shape (k, E), of points (n, E).

    Started by k-means++, refined by Lloyd's rounds until nothing moves; a cluster that loses all its points takes the
    point that is worst served. Where there are fewer different points than centres, the idle centres stand far off,
    where they are nearest to nothing: no two centres are ever equal, so no choice between them hangs on rounding.

    Source: Arthur and Vassilvitskii, k-means++: The Advantages of Careful Seeding, SODA 2007.
    """
    if len(points) > PER_CODEWORD * k:
        points = points[np.sort(rng.choice(len(points), PER_CODEWORD * k, replace=False))]
    points = np.ascontiguousarray(points, dtype=np.float32)
    norms = np.einsum("ne,ne->n", points, points)
    centres = _spread(points, k, rng)
    owner = np.full(len(points), -1)
    for _ in range(rounds):
        distances = norms[:, None] + np.einsum("ke,ke->k", centres, centres) - 2 * points @ centres.T
        nearest = distances.argmin(axis=1)
        if (nearest == owner).all():
            break
        owner = nearest
        sizes = np.bincount(owner, minlength=len(centres))
        members = sparse.csr_array((np.ones(len(points)), (owner, np.arange(len(points)))), (len(centres), len(points)))
        centres = ((members @ points) / np.maximum(sizes, 1)[:, None]).astype(np.float32)
        empty = np.flatnonzero(sizes == 0)
        centres[empty] = points[np.argsort(distances.min(axis=1), kind="stable")[::-1][: len(empty)]]
    idle = np.abs(points).max(initial=1.0) * FAR * np.arange(1, k - len(centres) + 1, dtype=np.float32)
    return np.concatenate([centres, np.repeat(idle[:, None], points.shape[1], axis=1)]).astype(np.float32)


def residual_codebooks(points: np.ndarray, levels: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """float32, shape (levels, k, E): k-means of what the levels before leave over."""
    residual, codebooks = np.asarray(points, dtype=np.float32), []
    for _ in range(levels):
        codebooks.append(kmeans(residual, k, rng))
        distances = (codebooks[-1].astype(np.float64) ** 2).sum(axis=1) - 2.0 * residual @ codebooks[-1].T
        residual = residual - codebooks[-1][distances.argmin(axis=1)]
    return np.stack(codebooks)


def _spread(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """At most k different points, each drawn with a probability that grows with its distance to those before."""
    chosen = [int(rng.integers(len(points)))]
    away = ((points - points[chosen[0]]) ** 2).sum(axis=1, dtype=np.float64)
    while len(chosen) < k and away.sum() > 0:
        chosen.append(int(rng.choice(len(points), p=away / away.sum())))
        away = np.minimum(away, ((points - points[chosen[-1]]) ** 2).sum(axis=1, dtype=np.float64))
    return points[chosen]
