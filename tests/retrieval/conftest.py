"""Bundles that generate, loaded once."""

from pathlib import Path

import pytest
from toy_generative import toy_generative

from retrieval.bundle import Bundle
from retrieval.recommenders import Served, load


@pytest.fixture(scope="session")
def generative_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sealed bundle with an encoder and a generator; nobody writes into it."""
    return toy_generative(tmp_path_factory.mktemp("bundles") / "generative")


@pytest.fixture(scope="session")
def generating(generative_bundle: Path) -> Served:
    """The same, loaded."""
    return load(Bundle.open(generative_bundle))


@pytest.fixture(scope="session")
def generating_at_once(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A generator whose levels do not depend on each other."""
    return load(Bundle.open(toy_generative(tmp_path_factory.mktemp("bundles") / "parallel", parallel=True)))
