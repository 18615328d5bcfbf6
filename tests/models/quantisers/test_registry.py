import numpy as np
import pytest

from models.errors import InvalidOption
from models.quantisers.registry import QuantiserOptions, batch_size, standard, unexplained


@pytest.mark.parametrize("change", [{"levels": 0}, {"codewords": 1}, {"quantiser_epochs": -1}, {"quantiser_rate": 0.0}])
def test_options_out_of_range_are_refused(change: dict):
    with pytest.raises(InvalidOption, match="must be"):
        QuantiserOptions(**change)


def test_what_is_unexplained_is_a_share_of_the_variance():
    vectors = np.array([[1.0], [3.0]])
    assert unexplained(vectors, vectors) == 0.0
    assert unexplained(vectors, np.array([[2.0], [2.0]])) == 1.0
    assert unexplained(np.ones((2, 1)), np.ones((2, 1))) == 0.0


def test_an_epoch_has_at_least_eight_steps():
    assert [batch_size(n, 256) for n in (1, 5, 80, 100_000)] == [1, 1, 10, 256]


def test_a_dimension_that_hardly_varies_is_not_blown_up():
    vectors = np.array([[1.0, 5.0, 1e-9], [3.0, 5.0, 0.0]], dtype=np.float32)
    mean, spread = standard(vectors)
    assert mean.tolist() == [2.0, 5.0, np.float32(5e-10)]
    assert spread[0] == 1.0
    assert (spread[1:] > 1e-4).all()
    assert (standard(np.ones((1, 2), dtype=np.float32))[1] > 0).all()
