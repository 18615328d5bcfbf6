import numpy as np
import pytest

from models.errors import InvalidOption
from models.quantisers.registry import QuantiserOptions, batch_size, unexplained


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
