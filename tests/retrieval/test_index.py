"""The exact index against a brute force, and how an index is chosen, saved and loaded."""

import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval import index as index_module
from retrieval.errors import BundleForeign, InvalidInput
from retrieval.filters import Eligible
from retrieval.index import (
    GATHER_SHARE,
    SCORED_AT_ONCE,
    SCORES_AT_ONCE,
    TILE_ROWS,
    ExactIndex,
    best,
    choose_index,
    load_index,
    save_index,
)

NONE = np.zeros(0, np.int64)


def everything(n: int) -> Eligible:
    return Eligible.of(np.arange(n + 1) > 0)


def brute_force(vectors: np.ndarray, query: np.ndarray, k: int, mask: np.ndarray, exclude: np.ndarray) -> list[tuple]:
    allowed = set(np.flatnonzero(mask).tolist()) - set(exclude.tolist())
    return sorted((-max(np.vecdot(vectors[row], q) for q in np.atleast_2d(query)), row) for row in allowed)[:k]


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 400),
    d=st.integers(1, 20),
    share=st.floats(0, 1),
    few_values=st.booleans(),
    directly=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_the_exact_index_equals_brute_force(
    seed: int, n: int, d: int, share: float, few_values: bool, directly: bool
) -> None:
    """Rows and scores to the last bit, ties within the list and at its end included."""
    rng = np.random.default_rng(seed)
    draw = (lambda *shape: rng.integers(-1, 2, shape)) if few_values else (lambda *shape: rng.normal(size=shape))
    vectors = draw(n + 1, d).astype(np.float32)
    vectors[0] = 0
    mask = rng.random(n + 1) < share
    mask[0] = False
    b = int(rng.integers(1, 4))
    queries = draw(b, d).astype(np.float32) if rng.random() < 0.7 else draw(b, 2, d).astype(np.float32)
    k = rng.integers(1, n + 3, b)
    exclude = [rng.integers(0, n + 1, rng.integers(0, n + 1)) for _ in range(b)]
    with patch.object(index_module, "SCORED_AT_ONCE", SCORED_AT_ONCE if directly else 0):
        found = ExactIndex(vectors).search(queries, k, Eligible.of(mask.copy()), exclude)
    for at, (rows, scores) in enumerate(found):
        want = brute_force(vectors, queries[at], int(k[at]), mask, exclude[at])
        assert list(zip(-scores, rows, strict=True)) == want


def test_ties_at_the_cut_go_to_the_lower_rows() -> None:
    vectors = np.ones((51, 8), np.float32)
    vectors[10] *= 2
    ((rows, scores),) = ExactIndex(vectors).search(np.ones((1, 8), np.float32), np.array([4]), everything(50), [NONE])
    assert rows.tolist() == [10, 1, 2, 3]
    assert scores.tolist() == [16, 8, 8, 8]


@pytest.mark.parametrize("n", [7, 63, 1001])
@pytest.mark.parametrize("d", [64, 67, 128])
def test_twins_that_a_matrix_product_tells_apart_tie(n: int, d: int) -> None:
    """A product rounds differently at the edges of its blocks; equal vectors are in the order of their rows even so."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        vectors = np.repeat(rng.normal(size=(1, d)), n, axis=0).astype(np.float32)
        queries = rng.normal(size=(3, d)).astype(np.float32)
        for rows, scores in ExactIndex(vectors).search(queries, np.full(3, n // 2), everything(n - 1), [NONE] * 3):
            assert rows.tolist() == list(range(1, n // 2 + 1))
            assert len(set(scores.tolist())) == 1


def test_a_score_does_not_depend_on_its_company() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 67)).astype(np.float32)
    query = rng.normal(size=(1, 67)).astype(np.float32)
    rows, scores = best(vectors, np.arange(300), query, 300)
    for row, score in zip(rows.tolist(), scores, strict=True):
        assert best(vectors, np.array([row]), query, 1)[1][0] == score


def test_more_rows_than_a_tile_and_more_scores_than_are_held_at_once() -> None:
    n = 2 * TILE_ROWS + 5
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(n + 1, 4)).astype(np.float32)
    b = SCORES_AT_ONCE // n + 3
    queries = rng.normal(size=(b, 4)).astype(np.float32)
    found = ExactIndex(vectors).search(queries, np.full(b, 3), everything(n), [NONE] * b)
    assert len(found) == b
    for at in (0, b // 2, b - 1):
        want = np.argsort(-(vectors[1:].astype(np.float64) @ queries[at]))[:3] + 1
        np.testing.assert_array_equal(found[at][0], want)


@pytest.mark.parametrize("count", [1, 100 // GATHER_SHARE - 1, 100 // GATHER_SHARE + 2, 100])
def test_few_and_many_eligible_rows_go_different_ways_to_the_same_answer(count: int) -> None:
    rng = np.random.default_rng(count)
    vectors = rng.normal(size=(101, 6)).astype(np.float32)
    mask = np.zeros(101, bool)
    mask[rng.permutation(np.arange(1, 101))[:count]] = True
    query, exclude = rng.normal(size=6).astype(np.float32), np.flatnonzero(mask)[::3]
    ((rows, _),) = ExactIndex(vectors).search(query[None], np.array([10]), Eligible.of(mask), [exclude])
    assert rows.tolist() == [row for _, row in brute_force(vectors, query, 10, mask, exclude)]


def test_a_small_catalog_is_given_the_exact_index_unmeasured() -> None:
    vectors = np.random.default_rng(0).normal(size=(101, 8)).astype(np.float32)
    index, settings = choose_index(vectors, sample_queries=vectors[1:5], exact_below=101)
    assert index.name == settings["kind"] == "exact"
    assert settings["measured_recall"] == 1.0


def test_saving_and_loading_an_exact_index_needs_no_file(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(11, 8)).astype(np.float32)
    save_index(ExactIndex(vectors), tmp_path / "index.faiss")
    assert list(tmp_path.iterdir()) == []
    assert load_index(tmp_path / "index.faiss", vectors, {}).name == "exact"


def test_an_index_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleForeign, match="'graph' is unknown"):
        load_index(tmp_path / "index.faiss", np.zeros((2, 3), np.float32), {"kind": "graph"})


def test_an_index_of_another_type_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="object cannot be saved"):
        save_index(object(), tmp_path / "index.faiss")  # type: ignore[arg-type]


def test_a_service_with_an_exact_index_never_imports_faiss() -> None:
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom retrieval import recommenders, index\n"
        "index.load_index(Path('none'), np.zeros((2, 3), np.float32), {'kind': 'exact'})\n"
        "sys.exit('faiss' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0
