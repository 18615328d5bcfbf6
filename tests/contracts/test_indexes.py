"""What every candidate index owes, whatever is inside."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import InvalidInput
from retrieval.faiss_index import FaissIndex
from retrieval.filters import Eligible
from retrieval.index import CandidateIndex, ExactIndex, Found, GrownIndex

N, D = 3_000, 16
NONE = np.zeros(0, np.int64)


def _vectors(n: int = N, seed: int = 0) -> np.ndarray:
    """float32, shape (n + 1, D): clusters of different size and reach, every tenth item a twin of another."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, D)) * rng.lognormal(0, 0.3, size=(40, 1))
    points = centres[rng.integers(0, 40, n)] + rng.normal(scale=0.4, size=(n, D))
    points[::10] = points[rng.integers(0, n, len(points[::10]))]
    return np.concatenate([np.zeros((1, D)), points]).astype(np.float32)


def _old(vectors: np.ndarray) -> int:
    """Of a growing index: most of the rows, all of a few."""
    return len(vectors) - len(vectors) // 50


VECTORS = _vectors()
BUILDS: dict[str, Callable[[np.ndarray], CandidateIndex]] = {
    "exact": ExactIndex,
    "ivf": lambda vectors: FaissIndex.build(vectors, width=6),
    "exact, grown": lambda vectors: GrownIndex(ExactIndex(vectors[:-1]), vectors[-1:]),
    "ivf, grown": lambda vectors: GrownIndex(
        FaissIndex.build(vectors[: _old(vectors)], width=10), vectors[_old(vectors) :]
    ),
}
INDEXES = {name: build(VECTORS) for name, build in BUILDS.items()}
every_index = pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES.keys())
every_build = pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS.keys())


def eligible(mask: np.ndarray) -> Eligible:
    mask = mask.copy()
    mask[0] = False
    return Eligible.of(mask)


ALL = eligible(np.ones(N + 1, bool))


def brute_force(vectors: np.ndarray, query: np.ndarray, k: int, mask: np.ndarray, exclude: np.ndarray) -> Found:
    """The oracle of the oracle: one dot product at a time, sorted by Python."""
    allowed = set(np.flatnonzero(mask).tolist()) - set(exclude.tolist())
    scored = sorted((-max(float(np.vecdot(vectors[row], q)) for q in np.atleast_2d(query)), row) for row in allowed)[:k]
    return np.array([row for _, row in scored], np.int64), np.array([-score for score, _ in scored], np.float32)


def assert_kept(found: Found, query: np.ndarray, k: int, mask: np.ndarray, exclude: np.ndarray) -> None:
    """Eligible, distinct, as many as there can be, scored truly, in order."""
    rows, scores = found
    assert rows.dtype == np.int64
    assert scores.dtype == np.float32
    assert len(rows) == len(scores) == min(k, len(set(np.flatnonzero(mask).tolist()) - set(exclude.tolist())))
    assert len(set(rows.tolist())) == len(rows)
    assert mask[rows].all()
    assert not set(rows.tolist()) & set(exclude.tolist())
    assert np.isfinite(scores).all()
    assert [(-s, r) for s, r in zip(scores, rows, strict=True)] == sorted(
        (-s, r) for s, r in zip(scores, rows, strict=True)
    )
    true = [max(np.vecdot(VECTORS[row], q) for q in np.atleast_2d(query)) for row in rows]
    np.testing.assert_array_equal(scores, np.array(true, np.float32))


@every_index
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.0, 0.001, 0.02, 0.2, 0.6, 1.0]), several=st.booleans())
@settings(max_examples=40, deadline=None)
def test_random_batches_keep_the_promise(index: CandidateIndex, seed: int, share: float, several: bool) -> None:
    rng = np.random.default_rng(seed)
    b = int(rng.integers(1, 6))
    queries = rng.normal(size=(b, 3, D) if several else (b, D)).astype(np.float32)
    k = rng.integers(1, 501, b)
    selection = eligible(rng.random(N + 1) < share)
    exclude = [rng.integers(0, N + 1, rng.integers(0, 300)) for _ in range(b)]
    for at, found in enumerate(index.search(queries, k, selection, exclude)):
        assert_kept(found, queries[at], int(k[at]), selection.mask, exclude[at])


@every_index
def test_batched_answers_equal_single_answers(index: CandidateIndex) -> None:
    rng = np.random.default_rng(1)
    queries = rng.normal(size=(33, D)).astype(np.float32)
    k = rng.integers(1, 200, 33)
    exclude = [rng.integers(0, N + 1, rng.integers(0, 200)) for _ in range(33)]
    selection = eligible(rng.random(N + 1) < 0.7)
    together = index.search(queries, k, selection, exclude)
    for at, (rows, scores) in enumerate(together):
        ((alone, alone_scores),) = index.search(queries[at : at + 1], k[at : at + 1], selection, [exclude[at]])
        np.testing.assert_array_equal(rows, alone)
        np.testing.assert_array_equal(scores, alone_scores)


@every_index
def test_several_vectors_count_by_the_best_of_them(index: CandidateIndex) -> None:
    rng = np.random.default_rng(2)
    queries = rng.normal(size=(4, 3, D)).astype(np.float32)
    for query, (rows, scores) in zip(queries, index.search(queries, np.full(4, 10), ALL, [NONE] * 4), strict=True):
        want, _ = brute_force(VECTORS, query, 10, ALL.mask, NONE)
        assert len(set(rows) & set(want)) >= 8  # an approximate index may miss one or two
        np.testing.assert_array_equal(scores, [max(np.vecdot(VECTORS[row], q) for q in query) for row in rows])


@every_index
def test_eligible_items_far_from_the_query_are_still_found(index: CandidateIndex) -> None:
    """The hostile filter: only what the query likes least is allowed, so every promising cell is empty."""
    for keep in (0.5, 0.3, 0.15, 0.02, 0.001):
        for seed in range(5):
            query = np.random.default_rng(seed).normal(size=(1, D)).astype(np.float32)
            scores = VECTORS @ query[0]
            selection = eligible(scores < np.quantile(scores, keep))
            ((rows, found),) = index.search(query, np.array([100]), selection, [NONE])
            assert_kept((rows, found), query[0], 100, selection.mask, NONE)


@every_index
def test_the_whole_neighbourhood_excluded(index: CandidateIndex) -> None:
    query = np.random.default_rng(3).normal(size=(1, D)).astype(np.float32)
    nearest = np.argsort(-(VECTORS @ query[0]))[:1_000]
    ((rows, scores),) = index.search(query, np.array([20]), ALL, [nearest])
    assert_kept((rows, scores), query[0], 20, ALL.mask, nearest)


@every_index
def test_a_k_as_large_as_the_catalog(index: CandidateIndex) -> None:
    query = np.ones((1, D), np.float32)
    ((rows, _),) = index.search(query, np.array([N + 7]), ALL, [NONE])
    assert sorted(rows) == list(range(1, N + 1))


@every_index
def test_all_filtered(index: CandidateIndex) -> None:
    query = np.ones((2, D), np.float32)
    for rows, scores in index.search(query, np.array([5, 9]), eligible(np.zeros(N + 1, bool)), [NONE, NONE]):
        assert len(rows) == len(scores) == 0


@every_index
def test_everything_excluded(index: CandidateIndex) -> None:
    ((rows, scores),) = index.search(np.ones((1, D), np.float32), np.array([5]), ALL, [np.arange(N + 1)])
    assert len(rows) == len(scores) == 0


@every_index
def test_an_empty_batch(index: CandidateIndex) -> None:
    assert index.search(np.zeros((0, D), np.float32), np.zeros(0, np.int64), ALL, []) == []


@every_index
def test_a_zero_query_is_settled_by_row(index: CandidateIndex) -> None:
    ((rows, scores),) = index.search(np.zeros((1, D), np.float32), np.array([30]), ALL, [np.array([2, 2, 0])])
    assert not scores.any()
    assert sorted(rows) == rows.tolist()
    assert_kept((rows, scores), np.zeros(D, np.float32), 30, ALL.mask, np.array([2]))


@every_build
def test_catalog_of_one(build: Callable[[np.ndarray], CandidateIndex]) -> None:
    index = build(_vectors(1))
    ((rows, scores),) = index.search(
        np.ones((1, D), np.float32), np.array([20]), Eligible.of(np.array([0, 1], bool)), [NONE]
    )
    assert rows.tolist() == [1]
    assert scores.shape == (1,)


@every_build
def test_fewer_items_than_k(build: Callable[[np.ndarray], CandidateIndex]) -> None:
    vectors = _vectors(12)
    mask = np.ones(13, bool)
    mask[[0, 4]] = False
    ((rows, _),) = build(vectors).search(
        np.ones((1, D), np.float32), np.array([500]), Eligible.of(mask), [np.array([7])]
    )
    want, _ = brute_force(vectors, np.ones(D, np.float32), 500, mask, np.array([7]))
    np.testing.assert_array_equal(rows, want)
    assert len(rows) == 10


@every_index
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_refused(index: CandidateIndex, bad: float) -> None:
    query = np.ones((1, D), np.float32)
    query[0, 3] = bad
    with pytest.raises(InvalidInput, match="NaN or infinite"):
        index.search(query, np.array([5]), ALL, [NONE])


@every_index
@pytest.mark.parametrize(
    ("queries", "k", "exclude", "says"),
    [
        (np.ones((1, D + 1), np.float32), [5], [NONE], "shape"),
        (np.ones(D, np.float32), [5], [NONE], "shape"),
        (np.ones((2, D), np.float32), [5], [NONE, NONE], "2 queries came with 1 k"),
        (np.ones((1, D), np.float32), [5], [], "0 exclusion lists"),
        (np.ones((1, D), np.float32), [0], [NONE], "k is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(
    index: CandidateIndex, queries: np.ndarray, k: list[int], exclude: list[np.ndarray], says: str
) -> None:
    with pytest.raises(InvalidInput, match=says):
        index.search(queries, np.array(k), ALL, exclude)
