import numpy as np
import pytest
from scipy import sparse

from models.progress import Progress
from models.text.registry import TextOptions
from models.text.tfidf import strongest, tfidf

TEXTS = [f"{colour} {thing} {extra}" for colour in ("red", "blue") for thing in ("lamp", "chair") for extra in "abc"]


def test_alike_texts_have_alike_vectors():
    encoder = tfidf(TEXTS, TextOptions(text_width=4), seed=1, progress=Progress())
    lamp, same, chair = encoder.encode(["red lamp", "the red lamp", "blue chair"])
    assert lamp @ same > 0.99
    assert lamp @ chair < 0.5
    assert encoder.width == 4


def test_the_same_texts_give_the_same_encoder():
    twice = [tfidf(TEXTS, TextOptions(), seed=1, progress=Progress()).encode(TEXTS) for _ in range(2)]
    assert (twice[0] == twice[1]).all()


@pytest.mark.parametrize("texts", [["lamp"], ["red lamp", "blue chair"]])
def test_a_catalogue_of_one_or_two_items_is_enough(texts: list[str]):
    vectors = tfidf(texts, TextOptions(), seed=1, progress=Progress()).encode(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)


def test_texts_without_a_word_are_zero():
    assert not tfidf(["...", "!"], TextOptions(), seed=1, progress=Progress()).encode(["..."]).any()


def test_the_strongest_directions_are_those_of_a_full_decomposition():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((60, 8)) @ np.diag(2.0 ** -np.arange(8)) @ rng.standard_normal((8, 40))
    found = strongest(sparse.csr_array(matrix), 3, rng)
    exact = np.linalg.svd(matrix, full_matrices=False)[2][:3].T
    np.testing.assert_allclose(np.abs((found * exact).sum(axis=0)), 1.0, atol=1e-6)
    assert (found[np.abs(found).argmax(axis=0), range(3)] > 0).all()
