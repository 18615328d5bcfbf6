import pytest

from models.errors import InvalidOption
from models.folder import Folder
from models.quantisers.registry import PROVIDERS


def test_every_file_of_the_folder_is_found():
    assert {"random", "rq_kmeans"} <= set(PROVIDERS.names())


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(InvalidOption, match=r"quantiser 'dreams' is not known; .*rq_kmeans"):
        PROVIDERS.get("dreams")


def test_a_name_may_stand_once():
    folder: Folder[int] = Folder("models.quantisers", "number")
    folder.register("one")(1)
    with pytest.raises(ValueError, match="registered twice"):
        folder.register("one")(2)
