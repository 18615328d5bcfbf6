"""What every test of the workshop shares."""

import contextlib
import io

import markov
import pytest
import torch

from models.__main__ import main


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny tensors gain nothing from a second thread, and sums in one order are the same sums."""
    torch.set_num_threads(1)


# Small enough for seconds, and with one thread the same to the last bit.
OPTIONS = ["d=8", "heads=2", "blocks=1", "window=6", "expansion=1", "batch=16", "epochs=3", "threads=1"]


@pytest.fixture(scope="session")
def sets() -> list[str]:
    """The options of the smallest model, as the command line takes them."""
    return [part for option in OPTIONS for part in ("--set", option)]


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory, sets: list[str]) -> markov.Chain:
    """One training run by command line, shared by all who only look at its results."""
    directory = tmp_path_factory.mktemp("chain")
    log = markov.write_csv(directory / "log.csv", 60, 8, items=30)
    said, printed = io.StringIO(), io.StringIO()
    command = ["train", "--model", "sasrec", "--data", "csv", "--events", str(log), "--out", str(directory / "bundle")]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        assert main([*command, *sets]) == 0, said.getvalue()
    return markov.Chain(log, directory / "bundle", said.getvalue(), printed.getvalue())
