"""A ranker's graph is held against the ranker before a bundle gets its name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
import toy_ranker

from models.errors import ExportError
from models.lists import Lists
from models.ranker_export import export_ranker
from retrieval.bundle import Bundle
from retrieval.errors import BundleError
from retrieval.inputs import Request
from retrieval.sequences import History


class Known:
    """The toy's ranker as a family: what its graph says, or nearly that."""

    inputs = ("candidate_numbers",)

    def __init__(self, off: float = 0.0) -> None:
        self.off = off

    def probabilities(self, feeds: dict[str, Any]) -> np.ndarray:
        numbers = np.nan_to_num(feeds["candidate_numbers"])
        said = 1 / (1 + np.exp(-(numbers @ toy_ranker.WEIGHTS + toy_ranker.BIAS)))
        return np.asarray(said + self.off, dtype=np.float32)

    def write(self, path: Path, _feeds: dict[str, Any]) -> None:
        toy_ranker.graph(path)


def samples() -> Lists:
    return Lists(
        toy_ranker.TASKS,
        [Request(History.of_rows([1, 2])), Request(History.of_rows([3]))],
        np.array([0, 3, 5]),
        np.array([1, 2, 3, 4, 5]),
        np.linspace(1, 0, 5, dtype=np.float32),
        np.zeros((5, 2), dtype=np.float32),
        np.zeros(5, dtype=np.int64),
        np.arange(2),
    )


def export(model: Known, retriever: Bundle, out: Path) -> Path:
    return export_ranker(
        model,
        retriever,
        out,
        name="known",
        settings=toy_ranker.ranking(),
        statistics=toy_ranker.statistics(),
        samples=samples(),
        hyper_parameters={"a": 1},
        metrics={"lists": 2},
    )


def test_a_graph_that_agrees_becomes_a_bundle(tmp_path: Path):
    retriever = Bundle.open(toy.write(tmp_path / "toy"))
    made = Bundle.open(export(Known(), retriever, tmp_path / "out"))
    assert made.manifest.metrics["ranking"]["parity"]["largest_difference"] < 1e-5
    assert made.manifest.metrics["ranking"]["lists"] == 2
    assert made.manifest.hyper_parameters["ranking"] == {"a": 1}
    assert made.manifest.model == "toy+known"


def test_a_graph_that_says_something_else_is_refused_and_leaves_nothing(tmp_path: Path):
    retriever = Bundle.open(toy.write(tmp_path / "toy"))
    with pytest.raises(ExportError, match="differ by 1"):
        export(Known(off=0.01), retriever, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_is_refused(tmp_path: Path):
    retriever = Bundle.open(toy.write(tmp_path / "toy"))
    export(Known(), retriever, tmp_path / "out")
    with pytest.raises(BundleError, match="exists"):
        export(Known(), retriever, tmp_path / "out")
