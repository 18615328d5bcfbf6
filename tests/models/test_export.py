"""From a model to a bundle: that it serves, and that nothing but a whole one ever stands at its name."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from models import export as exporting
from models.encoders.sasrec import SASRec, SASRecConfig
from models.errors import ExportError
from models.export import export, git_commit, parity, write_graph
from retrieval import bundle as bundles
from retrieval import index, recommenders, soundness
from retrieval.bundle import Bundle
from retrieval.catalog import Catalog
from retrieval.encoder import OnnxEncoder
from retrieval.errors import BundleError
from retrieval.filters import NO_FILTER
from retrieval.inputs import Request
from retrieval.recommenders import Query
from retrieval.sequences import History

ITEMS = 400
CONFIG = SASRecConfig(d=8, heads=1, blocks=1, window=6, expansion=1)


def build(config: SASRecConfig = CONFIG, items: int = ITEMS) -> SASRec:
    torch.manual_seed(0)
    return SASRec(config, items).eval()


def catalog(items: int = ITEMS) -> Catalog:
    return Catalog.build([f"i{n}" for n in range(1, items + 1)], popularity=np.arange(items, 0, -1))


def histories(count: int = 120, items: int = ITEMS) -> list[History]:
    rng = np.random.default_rng(0)
    return [History.of_rows(rng.integers(1, items + 1, rng.integers(1, 10))) for _ in range(count)]


def write(out: Path, model: Any = None, **changes: Any) -> Path:
    """Exports the model of this file."""
    facts: dict[str, Any] = {
        "name": "sasrec",
        "samples": histories(),
        "data": {"digest": "0" * 64},
        "event_types": ("view",),
        "hyper_parameters": {"d": 8},
        "seed": 7,
        "metrics": {"loo": {"recall@10": 0.5}},
        **changes,
    }
    return export(model or build(), catalog(), out=out, **facts)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of the model of this file: exporting takes seconds, so it is done once."""
    path = tmp_path_factory.mktemp("graph") / "encoder.onnx"
    write_graph(build(), path, histories(2))
    return path


@pytest.fixture
def quick(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `export` take that graph instead of making it again."""
    monkeypatch.setattr(exporting, "write_graph", lambda _model, path, _samples: shutil.copy(graph, path))


@pytest.mark.usefixtures("quick")
def test_a_bundle_says_what_it_is(tmp_path: Path) -> None:
    opened = Bundle.open(write(tmp_path / "b"))
    manifest = opened.manifest
    assert (manifest.model, manifest.kind, manifest.seed, manifest.window) == ("sasrec", "encoder", 7, 6)
    assert manifest.index["kind"] == "exact"
    assert manifest.graphs["encoder"].inputs == ("item_rows",)
    assert manifest.metrics["loo"] == {"recall@10": 0.5}
    agreement = manifest.metrics["parity"]
    assert agreement["histories"] == 120
    assert 0 <= agreement["largest_difference"] < 1e-5
    assert agreement["identical_top20"] > 0.95
    assert np.array_equal(opened.item_vectors, build().item_vectors().detach().numpy())
    assert not opened.item_vectors[0].any()
    assert opened.warmup[0] == [f"i{row}" for row in histories()[0].newest(6).rows]
    assert len(opened.warmup) == exporting.WARMUP_HISTORIES
    soundness.check(recommenders.load(opened))
    assert opened.warmup_queries is not None
    assert len(opened.warmup_queries) == exporting.WARMUP_HISTORIES


@pytest.mark.usefixtures("quick")
def test_a_bundle_with_an_approximate_index_loads_and_serves(tmp_path: Path) -> None:
    opened = Bundle.open(write(tmp_path / "b", exact_below=100, target_recall=0.5))
    assert opened.manifest.index["kind"] == "ivf"
    assert opened.manifest.index["measured_recall"] >= 0.5
    served = recommenders.load(opened)
    assert served.index.name == "ivf"
    history = History.of_rows([3, 1, 4])
    query = Query(Request(history), 20, served.filters.eligible(NO_FILTER), history.rows)
    (answer,) = served.recommender.recommend([query])
    assert len(set(answer.rows.tolist()) - {3, 1, 4}) == 20
    assert set(answer.sources) == {"retrieval"}


def test_the_graph_holds_nothing_of_the_machine_that_trained(graph: Path) -> None:
    loaded = onnx.load(graph)
    assert str(Path(exporting.__file__).parent.parent).encode() not in graph.read_bytes()
    assert [d.dim_param or d.dim_value for d in loaded.graph.input[0].type.tensor_type.shape.dim] == ["B", "L"]
    assert [node.name for node in loaded.graph.output] == ["query"]


@pytest.mark.parametrize("window", [1, 2])
def test_the_shortest_windows_and_a_single_sample(tmp_path: Path, window: int) -> None:
    model = build(SASRecConfig(d=4, heads=1, blocks=1, window=window, expansion=1), items=3)
    write_graph(model, tmp_path / "g.onnx", [History.of_rows([2])])
    encoder = OnnxEncoder(tmp_path / "g.onnx", names=model.inputs, length=window)
    queries, facts = parity(
        model, encoder, model.item_vectors().detach().numpy(), [History.of_rows(r) for r in ([1], [2, 3], [3, 1, 2])]
    )
    assert queries.shape == (3, 4)
    assert facts["histories"] == 3


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("weights", [0.01, float("nan")])
def test_a_graph_that_computes_something_else_is_no_bundle(tmp_path: Path, weights: float) -> None:
    other = build()
    with torch.no_grad():
        other.blocks[0].wide.bias += weights
    with pytest.raises(ExportError, match=r"torch and onnxruntime differ by .* 1e-04 is allowed"):
        write(tmp_path / "b", other)
    assert list(tmp_path.iterdir()) == []


def test_lists_that_differ_are_counted() -> None:
    """One query of three is turned by less than the tolerance, among items that nearly tie."""
    vectors = np.array([[0, 0]] + [[1, (-1) ** n] for n in range(30)], dtype=np.float32)

    class Model:
        inputs = ("item_rows",)
        config = SimpleNamespace(window=4)

        def __call__(self, rows: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[1.0, 0.0]]).repeat(len(rows), 1)

    class Turned:
        def encode(self, requests: list[Request]) -> np.ndarray:
            return np.array([[1, -5e-5 if r.history.rows[-1] == 2 else 0] for r in requests], np.float32)

    queries, facts = parity(Model(), Turned(), vectors, [History.of_rows([n]) for n in (1, 2, 3)])
    assert queries.tolist() == [[1, 0], [1, np.float32(-5e-5)], [1, 0]]
    assert facts["identical_top20"] == 2 / 3
    assert facts["largest_difference"] == pytest.approx(5e-5)


@pytest.mark.usefixtures("quick")
def test_an_existing_bundle_is_replaced_only_when_asked(tmp_path: Path) -> None:
    out = write(tmp_path / "b")
    before = Bundle.open(out).digest
    with pytest.raises(BundleError, match="--overwrite"):
        write(out, seed=8)
    assert Bundle.open(out).digest == before
    assert Bundle.open(write(out, seed=8, overwrite=True)).manifest.seed == 8


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Catalog, "save"),
        (np, "save"),
        (exporting, "write_graph"),
        (index, "save_index"),
        (Path, "write_text"),
        (bundles, "seal"),
        (os, "fsync"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_full_disk_leaves_no_bundle_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    monkeypatch.setattr(owner, name, full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path / "b", exact_below=100, target_recall=0.5)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("limit", [1_000, 14_000, 20_000])
def test_full_disk_that_the_kernel_reports(tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stands for the disk: writing past it fails as writing to a full one does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"File too large|requested and \d+ written"):
            write(tmp_path / "b", exact_below=100, target_recall=0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["parity", "bundle.seal"])
def test_killed_while_exporting_leaves_nothing_that_looks_like_a_bundle(
    tmp_path: Path, graph: Path, moment: str, request: pytest.FixtureRequest
) -> None:
    code = f"""
        import os, shutil, signal, sys
        from pathlib import Path
        sys.path[:0] = {sys.path!r}
        import torch, test_export
        from models import export as exporting
        torch.set_num_threads(1)
        exporting.write_graph = lambda _model, path, _samples: shutil.copy(sys.argv[2], path)
        exporting.{moment} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        test_export.write(Path(sys.argv[1]))
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "b"), str(graph)]
    killed = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (rest,) = tmp_path.iterdir()
    assert (rest.name.startswith(".b."), rest.suffix) == (True, ".partial")
    with pytest.raises(BundleError):
        Bundle.open(rest)
    with pytest.raises(BundleError, match="there is no bundle directory"):
        Bundle.open(tmp_path / "b")
    request.getfixturevalue("quick")
    assert Bundle.open(write(tmp_path / "b")).manifest.seed == 7


def test_the_commit_is_named_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = git_commit()
    assert found == "unknown" or len(found.removesuffix("-dirty")) == 40
    monkeypatch.setenv("PATH", "")
    assert git_commit() == "unknown"
