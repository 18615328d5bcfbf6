"""The counts that rankers look up: followers against a dictionary, and files that are not whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.errors import BundleTorn
from retrieval.statistics import Statistics

N = 12


def some(rng: np.random.Generator, n: int = N, pairs: int = 60) -> Statistics:
    keys = [a * (n + 1) + b for a in range(1, n + 1) for b in range(1, n + 1)]
    chosen = np.sort(rng.choice(keys, pairs, replace=False))
    weights = rng.random(pairs).astype(np.float32)
    return Statistics(chosen, weights, rng.random((n + 1, 2)).astype(np.float32), rng.random(n + 1).astype(np.float32))


class TestFollowers:
    """`follow`."""

    @pytest.mark.parametrize("seed", range(5))
    def test_the_weight_of_every_pair(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        made = some(rng)
        known = {divmod(key, N + 1): w for key, w in zip(made.pairs.tolist(), made.weights.tolist(), strict=True)}
        before, after = rng.integers(0, N + 4, (6, 3)), rng.integers(0, N + 4, (6, 20))  # up to three rows came later
        got = made.follow(before, after)
        assert (got.dtype, got.shape) == (np.float32, (6, 3, 20))
        for b in range(6):
            for p in range(3):
                expected = [known.get((int(before[b, p]), row), 0.0) for row in after[b].tolist()]
                assert got[b, p].tolist() == expected
        assert (got > 0).any()

    def test_the_last_item_has_followers_too(self) -> None:
        made = Statistics(
            np.array([N * (N + 1) + N]), np.ones(1, np.float32), np.zeros((N + 1, 1), np.float32), np.zeros(N + 1)
        )
        assert made.follow(np.array([[N, N + 1]]), np.array([[N, 1, 0]])).tolist() == [[[1, 0, 0], [0, 0, 0]]]

    def test_backwards_in_memory(self) -> None:
        made = some(np.random.default_rng(0))
        before, after = np.array([[1, 2, 3]]), np.arange(N + 1)[None]
        np.testing.assert_array_equal(made.follow(before[:, ::-1], after), made.follow(before, after)[:, ::-1])
        np.testing.assert_array_equal(made.follow(before, after[:, ::-1]), made.follow(before, after)[:, :, ::-1])

    def test_empty(self) -> None:
        nothing = Statistics(
            np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((3, 1), np.float32), np.zeros(3, np.float32)
        )
        assert nothing.follow(np.array([[1, 2]]), np.array([[1, 2, 9]])).tolist() == [[[0, 0, 0]] * 2]
        assert some(np.random.default_rng(0)).follow(np.zeros((0, 2), int), np.zeros((0, 4), int)).shape == (0, 2, 4)
        assert some(np.random.default_rng(0)).follow(np.ones((1, 2), int), np.zeros((1, 0), int)).shape == (1, 2, 0)


class TestFiles:
    """`save` and `load`."""

    def test_what_is_saved_is_loaded(self, tmp_path: Path) -> None:
        made = some(np.random.default_rng(1))
        made.rates[3, 1] = made.values[2] = np.nan
        made.save(tmp_path / "statistics.npz")
        back = Statistics.load(tmp_path / "statistics.npz")
        for name in ("pairs", "weights", "rates", "values"):
            one, other = getattr(back, name), getattr(made, name)
            assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes())
        before, after = np.array([[1, 5]]), np.arange(N + 1)[None]
        np.testing.assert_array_equal(back.follow(before, after), made.follow(before, after))

    def test_torn(self, tmp_path: Path) -> None:
        path = tmp_path / "statistics.npz"
        some(np.random.default_rng(1)).save(path)
        whole = path.read_bytes()
        for damage in (b"", whole[:100], whole[:-30], b"not an archive"):
            path.write_bytes(damage)
            with pytest.raises(BundleTorn, match="export the bundle again"):
                Statistics.load(path)
        path.unlink()
        with pytest.raises(BundleTorn):
            Statistics.load(path)

    @pytest.mark.parametrize(
        "changes",
        [
            {"pairs": np.array([3, 2, 9])},
            {"pairs": np.array([2, 2, 9])},
            {"pairs": np.array([-1, 2, 9])},
            {"pairs": np.array([1, 2, 9**9])},
            {"pairs": np.array([1, 2])},
            {"pairs": np.array([1.0, 2.0, 3.0])},
            {"pairs": np.array([[1, 2, 3]])},
            {"weights": np.ones(4, np.float32)},
            {"weights": np.ones(3)},
            {"weights": np.array([1, np.nan, 1], np.float32)},
            {"rates": np.ones(5, np.float32)},
            {"rates": np.ones((4, 1), np.float32)},
            {"values": np.ones((), np.float32)},
            {"values": np.ones((5, 1), np.float32)},
            {"values": np.array(["a", "b"])},
        ],
    )
    def test_arrays_that_do_not_fit_are_refused(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        fields = {
            "pairs": np.array([1, 2, 9]),
            "weights": np.ones(3, np.float32),
            "rates": np.ones((5, 1), np.float32),
            "values": np.ones(5, np.float32),
        }
        np.savez(tmp_path / "whole.npz", **fields)
        Statistics.load(tmp_path / "whole.npz")
        np.savez(tmp_path / "torn.npz", **{**fields, **changes})
        with pytest.raises(BundleTorn, match="do not fit each other"):
            Statistics.load(tmp_path / "torn.npz")
        del fields[next(iter(changes))]
        np.savez(tmp_path / "less.npz", **fields)
        with pytest.raises(BundleTorn, match="cannot be read"):
            Statistics.load(tmp_path / "less.npz")
