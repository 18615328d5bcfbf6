"""Fixtures that every room may use."""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
import toy

ROOT = Path(__file__).resolve().parent.parent

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a sealed toy bundle, shared by the whole run: nobody writes into it."""
    return toy.write(tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Finds real data by its path below the data directory; skips with a reason where it is absent."""
    root = Path(os.environ.get("SEQUITUR_TEST_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = root / name
        if not path.exists():
            pytest.skip(f"real data {name} is not at {root}; set SEQUITUR_TEST_DATA to the directory that holds it")
        return path

    return find


@pytest.fixture(autouse=True, scope="session")
def no_full_collections() -> Iterator[None]:
    """What is imported stays, and a service in this process does not collect it: hundreds of them begin here, and each
    would walk all of torch first. Those that tests start in a process of their own do as always.
    """
    nothing = SimpleNamespace(collect=lambda: 0, freeze=lambda: None, unfreeze=lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.state.gc", nothing)
        gc.collect()
        gc.freeze()
        yield
        gc.unfreeze()


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Takes back what `logs.configure` did to the whole process."""
    root, uvicorn = logging.getLogger(), logging.getLogger("uvicorn")
    handlers, levels = root.handlers[:], (root.level, uvicorn.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    uvicorn.setLevel(levels[1])
