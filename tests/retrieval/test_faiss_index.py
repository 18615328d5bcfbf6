"""The approximate index: recall, the ways to the exact one, tuning, and what stands on the disk."""

import threading
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from retrieval.errors import BundleTorn, InvalidInput
from retrieval.faiss_index import FaissIndex, recall, tune
from retrieval.filters import Eligible
from retrieval.index import ExactIndex, choose_index, load_index, save_index

N, D = 4_000, 16
NONE = np.zeros(0, np.int64)
ALL = Eligible.of(np.arange(N + 1) > 0)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(30, D))[rng.integers(0, 30, N)] + rng.normal(scale=0.5, size=(N, D))
    return np.concatenate([np.zeros((1, D)), points]).astype(np.float32)


def histories(vectors: np.ndarray, seed: int) -> np.ndarray:
    """float32, shape (200, D): means of a few items each, as histories give them."""
    rng = np.random.default_rng(seed)
    return np.stack([vectors[rng.integers(1, N + 1, 3)].mean(axis=0) for _ in range(200)])


@pytest.fixture(scope="module")
def queries(vectors: np.ndarray) -> np.ndarray:
    return histories(vectors, 1)


def counting(index: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many queries went to FAISS and how many to the exact index."""
    seen = {"faiss": 0, "exact": 0}
    nominate, search = index._nominate, index._exact.search

    def nominated(queries: np.ndarray, *rest: Any) -> Any:
        seen["faiss"] += len(queries)
        return nominate(queries, *rest)

    def searched(queries: np.ndarray, *rest: Any) -> Any:
        seen["exact"] += len(queries)
        return search(queries, *rest)

    monkeypatch.setattr(index, "_nominate", nominated)
    monkeypatch.setattr(index._exact, "search", searched)
    return seen


def test_tuning_reaches_its_target_and_says_how(vectors: np.ndarray, queries: np.ndarray) -> None:
    index, settings = choose_index(vectors, sample_queries=queries, target_recall=0.9, k=20, exact_below=100)
    assert settings["kind"] == index.name == "ivf"
    assert settings["measured_recall"] >= 0.9
    assert settings["parameters"]["width"] == settings["tried"][-1]["width"]
    assert [step["recall"] for step in settings["tried"]] == sorted(step["recall"] for step in settings["tried"])
    # What the manifest states holds for other histories of the same kind, not only for those it was tuned on.
    k, nothing = np.full(200, 20), [NONE] * 200
    for seed in range(2, 6):
        fresh = histories(vectors, seed)
        truth = ExactIndex(vectors).search(fresh, k, ALL, nothing)
        assert recall(index.search(fresh, k, ALL, nothing), truth).mean() >= 0.9


def test_a_target_that_few_cells_cannot_reach_gives_the_exact_index(vectors: np.ndarray, queries: np.ndarray) -> None:
    index, settings = tune(vectors, ExactIndex(vectors), queries, target_recall=1.01, k=20, seed=0, threads=1)
    assert settings["kind"] == index.name == "exact"
    assert settings["measured_recall"] == 1.0
    assert settings["tried"]


def test_tuning_without_samples_is_refused(vectors: np.ndarray) -> None:
    with pytest.raises(InvalidInput, match="no sample query"):
        choose_index(vectors, sample_queries=np.zeros((0, D), np.float32), exact_below=100)


def test_recall_counts_rows_and_forgives_ties() -> None:
    exact = (np.array([1, 2, 3, 4]), np.array([4, 3, 2, 2], np.float32))
    tied = (np.array([1, 2, 3, 9]), np.array([4, 3, 2, 2], np.float32))
    half = (np.array([1, 3, 9, 8]), np.array([4, 2, 1, 0], np.float32))
    none = (NONE, np.zeros(0, np.float32))
    assert recall([tied, half, none], [exact, exact, none]).tolist() == [1.0, 0.5, 1.0]


def test_recall_under_a_filter_stays_near_that_without(vectors: np.ndarray, queries: np.ndarray) -> None:
    index, _ = choose_index(vectors, sample_queries=queries, target_recall=0.95, k=20, exact_below=100)
    mask = np.random.default_rng(0).random(N + 1) < 0.4
    mask[0] = False
    selection, k, exclude = Eligible.of(mask), np.full(200, 20), [np.arange(1, 30)] * 200
    truth = ExactIndex(vectors).search(queries, k, selection, exclude)
    assert recall(index.search(queries, k, selection, exclude), truth).mean() > 0.93


def test_an_open_search_is_left_to_faiss(
    vectors: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = FaissIndex.build(vectors, width=4)
    seen = counting(index, monkeypatch)
    index.search(queries, np.full(200, 10), ALL, [np.arange(20)] * 200)
    assert seen == {"faiss": 200, "exact": 0}


def test_a_strict_filter_goes_to_exact_scoring(
    vectors: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = FaissIndex.build(vectors, width=4)
    seen = counting(index, monkeypatch)
    strict = Eligible.of(np.arange(N + 1) % 40 == 1)
    index.search(queries[:5], np.full(5, 10), strict, [NONE] * 5)
    assert seen == {"faiss": 0, "exact": 5}


def test_a_short_answer_is_searched_wider_and_then_exactly(
    vectors: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = FaissIndex.build(vectors, width=1)
    seen = counting(index, monkeypatch)
    far = vectors @ queries[0] < np.median(vectors @ queries[0])
    far[0] = False
    ((rows, _),) = index.search(queries[:1], np.array([100]), Eligible.of(far), [NONE])
    assert len(rows) == 100
    assert seen["faiss"] >= 2  # the first search came back short


def test_one_long_history_does_not_lengthen_the_others(
    vectors: np.ndarray, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = FaissIndex.build(vectors, width=2)
    lengths: list[tuple[int, int]] = []
    nominate = index._nominate
    monkeypatch.setattr(
        index,
        "_nominate",
        lambda queries, length, *rest: lengths.append((len(queries), length)) or nominate(queries, length, *rest),
    )
    index.search(queries[:4], np.full(4, 10), ALL, [NONE, NONE, np.arange(1, 201), NONE])
    assert sorted(lengths) == [(1, 256), (3, 16)]


def test_what_lies_ahead_changes_nothing_before_it(vectors: np.ndarray, queries: np.ndarray) -> None:
    index = FaissIndex.build(vectors, width=4, k=20)
    mask = np.random.default_rng(3).random(N + 1) < 0.4
    k, ahead = np.arange(1, 41), np.full(40, 80)
    exclude = [np.arange(1, 1 + 7 * b) for b in range(40)]
    for eligible in (ALL, Eligible.of(mask & ALL.mask)):
        for given in (queries[:40], queries[:80].reshape(40, 2, D)):
            found = index.search(given, k, eligible, exclude)
            longer = index.search(given, k, eligible, exclude, ahead)
            for wanted, (rows, scores), (more, more_scores) in zip(k.tolist(), found, longer, strict=True):
                assert len(rows) == wanted < len(more) == len(set(more.tolist()))
                assert more[:wanted].tolist() == rows.tolist()
                assert more_scores[:wanted].tobytes() == scores.tobytes()
                assert (np.diff(more_scores) <= 0).all()


def test_threads_are_set_in_the_thread_that_searches(vectors: np.ndarray, queries: np.ndarray) -> None:
    index = FaissIndex.build(vectors, width=4, threads=1)
    seen = []

    def work() -> None:
        index.search(queries[:2], np.full(2, 5), ALL, [NONE, NONE])
        seen.append(faiss.omp_get_max_threads())

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert seen == [1]


def test_building_is_deterministic(vectors: np.ndarray, queries: np.ndarray) -> None:
    first, second = (FaissIndex.build(vectors, width=3, seed=7) for _ in range(2))
    k, nothing = np.full(200, 10), [NONE] * 200
    for one, other in zip(first.search(queries, k, ALL, nothing), second.search(queries, k, ALL, nothing), strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_saved_and_loaded_it_answers_the_same(tmp_path: Path, vectors: np.ndarray, queries: np.ndarray) -> None:
    index, settings = choose_index(vectors, sample_queries=queries, target_recall=0.9, k=20, exact_below=100)
    save_index(index, tmp_path / "index.faiss")
    again = load_index(tmp_path / "index.faiss", vectors, settings)
    k, nothing = np.full(200, 30), [NONE] * 200
    for one, other in zip(index.search(queries, k, ALL, nothing), again.search(queries, k, ALL, nothing), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


@pytest.mark.parametrize("damage", ["gone", "cut", "garbage", "other vectors", "other kind", "no width"])
def test_an_index_file_that_does_not_fit_is_refused(tmp_path: Path, vectors: np.ndarray, damage: str) -> None:
    path = tmp_path / "index.faiss"
    settings = {"kind": "ivf", "parameters": {"width": 4}, "k": 100}
    save_index(FaissIndex.build(vectors[:500]), path)
    match damage:
        case "gone":
            path.unlink()
        case "cut":
            path.write_bytes(path.read_bytes()[:1000])
        case "garbage":
            path.write_bytes(b"not an index")
        case "other kind":
            faiss.write_index(faiss.IndexFlatL2(D), str(path))
        case "no width":
            settings["parameters"] = {}
    with pytest.raises(BundleTorn, match=r"index\.faiss"):
        load_index(path, vectors if damage == "other vectors" else vectors[:500], settings)
