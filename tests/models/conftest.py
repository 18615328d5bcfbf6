"""What every test of the workshop shares."""

import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import markov
import pytest
import torch

from models.__main__ import main
from retrieval.bundle import Bundle, Graph


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny tensors gain nothing from a second thread, and sums in one order are the same sums."""
    torch.set_num_threads(1)


# Small enough for seconds, and with one thread the same to the last bit.
OPTIONS = ["d=8", "heads=2", "blocks=1", "window=6", "expansion=1", "batch=16", "epochs=3", "threads=1"]
GENERATOR_OPTIONS = [*OPTIONS, "code_blocks=1", "epochs=2", "levels=2", "codewords=4", "text_width=8", "beams=12"]


@pytest.fixture(scope="session")
def sets() -> list[str]:
    """The options of the smallest model, as the command line takes them."""
    return [part for option in OPTIONS for part in ("--set", option)]


@pytest.fixture(scope="session")
def generator_sets() -> list[str]:
    """The options of the smallest generator."""
    return [part for option in GENERATOR_OPTIONS for part in ("--set", option)]


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory, sets: list[str]) -> markov.Chain:
    """One training run by command line, shared by all who only look at its results."""
    return trained(tmp_path_factory.mktemp("chain"), "--model", "sasrec", *sets)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, generator_sets: list[str]) -> markov.Chain:
    """The same log learnt by a generator, whose items have titles."""
    directory = tmp_path_factory.mktemp("written")
    items = markov.write_items(directory / "items.csv", items=30)
    return trained(directory, "--model", "tiger-decoder", "--items", str(items), *generator_sets)


def trained(directory: Path, *more: str) -> markov.Chain:
    """A training run by command line over the log whose structure is known."""
    log, out = markov.write_csv(directory / "log.csv", 60, 8, items=30), directory / "bundle"
    said, printed = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        assert main(["train", "--data", "csv", "--events", str(log), "--out", str(out), *more]) == 0, said.getvalue()
    return markov.Chain(log, out, said.getvalue(), printed.getvalue())


@pytest.fixture
def quick_export(written: markov.Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a generator that was trained in the same way be exported with the graphs of the shared one: seconds less."""
    graphs = Bundle.open(written.bundle).manifest.graphs

    def copy(_model: Any, directory: Path, _samples: Any) -> dict[str, Graph]:
        for graph in graphs.values():
            shutil.copy(written.bundle / graph.file, directory)
        return dict(graphs)

    monkeypatch.setattr("models.generator_export.write_graphs", copy)
