import numpy as np

from models.quantisers.clusters import kmeans, residual_codebooks


def blobs(rng: np.random.Generator, k: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    centres = 10 * rng.standard_normal((k, 3))
    return (centres[:, None] + 0.1 * rng.standard_normal((k, each, 3))).reshape(-1, 3), centres


def test_clear_clusters_are_found():
    rng = np.random.default_rng(0)
    points, truth = blobs(rng, 6, 50)
    found = kmeans(points, 6, rng)
    nearest = np.linalg.norm(found[:, None] - truth, axis=2)
    assert nearest.min(axis=0).max() < 0.2
    assert found.dtype == np.float32


def test_fewer_points_than_centres_leave_idle_ones_far_off_and_none_equal():
    points = np.array([[1.0, 2.0], [1.0, 2.0], [3.0, 1.0]])
    found = kmeans(points, 5, np.random.default_rng(0))
    assert len(np.unique(found, axis=0)) == 5
    nearest = np.linalg.norm(points[:, None] - found, axis=2)
    assert nearest.min(axis=1).max() < 1e-6
    assert len(np.unique(nearest.argmin(axis=1))) == 2


def test_no_cluster_is_left_empty_while_points_differ():
    rng = np.random.default_rng(1)
    points = np.concatenate([np.zeros((500, 2)), rng.standard_normal((40, 2))])
    found = kmeans(points, 16, rng)
    owner = np.linalg.norm(points[:, None] - found, axis=2).argmin(axis=1)
    assert len(np.unique(owner)) == 16


def test_each_level_leaves_less():
    rng = np.random.default_rng(2)
    points = rng.standard_normal((400, 4)).astype(np.float32)
    left, sizes = points, [float((points**2).sum())]
    for book in residual_codebooks(points, 3, 8, rng):
        left = left - book[np.linalg.norm(left[:, None] - book, axis=2).argmin(axis=1)]
        sizes.append(float((left**2).sum()))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[3] < 0.5 * sizes[0]
