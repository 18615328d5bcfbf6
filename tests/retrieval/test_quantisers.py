from pathlib import Path

import numpy as np
import pytest

from retrieval.errors import BundleForeign, BundleTorn, InvalidInput
from retrieval.quantisers import (
    FiniteScalar,
    Quantiser,
    RandomCodes,
    ResidualCodebooks,
    bounded,
    grid_codes,
    grid_points,
    load_quantiser,
    save_quantiser,
)

D = 6
STEPS = (8, 8, 8, 6, 5)


def array(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def residual(layers: bool = True) -> ResidualCodebooks:
    rng = np.random.default_rng(1)
    stack = [(array(rng, 5, D), array(rng, 5)), (array(rng, 3, 5), array(rng, 3))] if layers else []
    scale = np.abs(array(rng, D)) + 0.5
    return ResidualCodebooks(array(rng, 3, 7, 3 if layers else D), array(rng, D), scale, stack)


def finite(rotation: bool = True) -> FiniteScalar:
    rng = np.random.default_rng(2)
    turn = np.linalg.qr(rng.standard_normal((8, 8)))[0][:D].astype(np.float32) if rotation else None
    ones = np.ones(D, dtype=np.float32)
    return FiniteScalar(array(rng, 5, 2), array(rng, 5), 0 * ones, ones, steps=STEPS, tokens=4, rotation=turn)


QUANTISERS: list[Quantiser] = [
    residual(),
    residual(layers=False),
    finite(),
    finite(rotation=False),
    RandomCodes((5, 9), seed=3),
]


@pytest.mark.parametrize("quantiser", QUANTISERS, ids=lambda q: q.kind)
class TestEveryQuantiser:
    def test_codes_lie_in_the_vocabulary_and_do_not_depend_on_their_company(self, quantiser: Quantiser):
        vectors = array(np.random.default_rng(4), 3000, D)  # more than one slice
        codes = quantiser.codes(vectors)
        assert codes.dtype == np.int32
        assert codes.shape == (3000, len(quantiser.vocabulary))
        assert (codes >= 0).all()
        assert (codes < np.array(quantiser.vocabulary)).all()
        alone = np.concatenate([quantiser.codes(vectors[at : at + 1]) for at in range(0, 3000, 37)])
        assert (alone == codes[::37]).all()

    def test_saved_and_loaded_it_gives_the_same_codes(self, quantiser: Quantiser, tmp_path: Path):
        save_quantiser(quantiser, tmp_path / "quantiser.npz")
        again = load_quantiser(tmp_path / "quantiser.npz")
        vectors = array(np.random.default_rng(5), 200, D)
        assert again.vocabulary == quantiser.vocabulary
        assert (again.codes(vectors) == quantiser.codes(vectors)).all()

    def test_nothing_in_nothing_out(self, quantiser: Quantiser):
        assert quantiser.codes(np.zeros((0, D), dtype=np.float32)).shape == (0, len(quantiser.vocabulary))


class TestResidualCodebooks:
    def test_codes_equal_a_loop_over_codewords(self):
        quantiser = residual()
        vectors = array(np.random.default_rng(6), 50, D)
        for vector, found in zip(quantiser.latent(vectors), quantiser.codes(vectors), strict=True):
            left = vector
            for level, codebook in enumerate(quantiser.codebooks):
                nearest = min(range(7), key=lambda k: float(((left - codebook[k]) ** 2).sum()))
                assert found[level] == nearest
                left = left - codebook[nearest]

    def test_the_encoder_is_linear_layers_with_relu_between(self):
        quantiser = residual()
        vectors = array(np.random.default_rng(7), 4, D)
        (w0, b0), (w1, b1) = quantiser._layers
        x = (vectors - quantiser._mean) / quantiser._scale
        expected = np.maximum(x @ w0.T + b0, 0) @ w1.T + b1
        np.testing.assert_allclose(quantiser.latent(vectors), expected, rtol=1e-4, atol=1e-5)

    def test_of_equally_near_codewords_the_first_is_taken(self):
        twice = np.array([[[0, 1], [0, -1]]], dtype=np.float32)
        still, one = np.zeros(2, dtype=np.float32), np.ones(2, dtype=np.float32)
        assert ResidualCodebooks(twice, still, one).codes(np.array([[5, 0]], dtype=np.float32)).tolist() == [[0]]

    def test_decoding_adds_up_the_levels_asked_for(self):
        quantiser = residual(layers=False)
        codes = np.array([[1, 2, 3]], dtype=np.int32)
        books = quantiser.codebooks
        np.testing.assert_allclose(quantiser.decoded(codes, 2)[0], books[0][1] + books[1][2], rtol=1e-6)
        np.testing.assert_allclose(quantiser.decoded(codes)[0], books[0][1] + books[1][2] + books[2][3], rtol=1e-6)

    def test_shapes_that_do_not_follow_are_refused(self):
        ones = np.ones(D, dtype=np.float32)
        with pytest.raises(InvalidInput, match="do not belong together"):
            ResidualCodebooks(np.ones((2, 3, D + 1), dtype=np.float32), ones, ones)

    def test_vectors_of_another_width_are_refused(self):
        with pytest.raises(InvalidInput, match=r"\(n, 6\) was expected"):
            residual().codes(np.zeros((1, D + 1), dtype=np.float32))


class TestFiniteScalar:
    def test_every_number_is_a_grid_point_and_back(self):
        numbers = np.arange(15_360)
        points = grid_points(numbers, STEPS)
        assert (grid_codes(points, STEPS) == numbers).all()
        assert len(np.unique(points, axis=0)) == 15_360

    def test_rounding_what_is_bounded_gives_each_value_of_its_dimension_and_no_other(self):
        far = np.linspace(-40, 40, 20_001)[:, None].repeat(5, axis=1)
        points = np.rint(bounded(far, STEPS))
        assert [len(np.unique(column)) for column in points.T] == list(STEPS)
        assert (grid_points(grid_codes(points, STEPS), STEPS) == points).all()

    def test_zero_is_the_middle_value(self):
        np.testing.assert_allclose(bounded(np.zeros((1, 5)), STEPS), 0.0, atol=5e-3)

    def test_random_vectors_use_most_codes(self):
        rng = np.random.default_rng(0)
        ones = np.ones(20, dtype=np.float32)
        turn = np.eye(5, dtype=np.float32)
        every = FiniteScalar(turn, 0 * ones[:5], 0 * ones, ones, steps=STEPS, tokens=4)
        assert len(np.unique(every.codes(array(rng, 100_000, 20)))) / 15_360 > 0.9

    def test_a_width_that_four_does_not_divide_is_padded(self):
        quantiser = finite(rotation=False)
        pieces = quantiser.pieces(np.arange(1, D + 1, dtype=np.float32)[None])
        assert pieces[0].tolist() == [[1, 2], [3, 4], [5, 6], [0, 0]]

    def test_shapes_that_do_not_follow_are_refused(self):
        ones = np.ones(D, dtype=np.float32)
        with pytest.raises(InvalidInput, match="was expected"):
            FiniteScalar(np.ones((5, 3), dtype=np.float32), ones[:5], ones, ones, steps=STEPS, tokens=4)


class TestRandomCodes:
    def test_the_seed_decides_and_codes_are_spread_evenly(self):
        vectors = array(np.random.default_rng(8), 4000, D)
        codes = RandomCodes((16, 16), seed=1).codes(vectors)
        assert (codes == RandomCodes((16, 16), seed=1).codes(vectors)).all()
        assert (codes != RandomCodes((16, 16), seed=2).codes(vectors)).any(axis=1).mean() > 0.9
        assert np.bincount(codes[:, 0], minlength=16).min() > 150


class TestLoading:
    def test_a_damaged_file_is_torn(self, tmp_path: Path):
        path = tmp_path / "quantiser.npz"
        for content in (b"", b"no archive"):
            path.write_bytes(content)
            with pytest.raises(BundleTorn, match="export the bundle again"):
                load_quantiser(path)
        save_quantiser(residual(), path)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(BundleTorn):
            load_quantiser(path)

    def test_a_missing_array_is_torn_and_an_unknown_kind_foreign(self, tmp_path: Path):
        path = tmp_path / "quantiser.npz"
        np.savez(path, kind=np.frombuffer(b"residual", dtype=np.uint8))
        with pytest.raises(BundleTorn):
            load_quantiser(path)
        np.savez(path, kind=np.frombuffer(b"dreams", dtype=np.uint8))
        with pytest.raises(BundleForeign, match="dreams"):
            load_quantiser(path)
