import pytest

from models.errors import InvalidOption
from models.text.registry import PROVIDERS, TextOptions


def test_the_providers_are_found_by_their_files():
    assert "tfidf" in PROVIDERS.names()


@pytest.mark.parametrize("change", [{"text_width": -1}, {"text_tokens": 1}, {"text_layers": 0}, {"text_vocabulary": 9}])
def test_options_out_of_range_are_refused(change: dict):
    with pytest.raises(InvalidOption, match="must be at least"):
        TextOptions(**change)
