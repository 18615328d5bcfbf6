"""From a generator to a bundle: that it serves what torch says, and that nothing but a whole one stands at its name."""

import errno
import os
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
import toy

from models import generator_export as exporting
from models.errors import ExportError
from models.generation import in_torch
from models.generator_export import export_generator, join, opened, parity, write_graphs
from models.generators.tiger_decoder import TigerDecoder, TigerDecoderConfig
from models.progress import Progress
from models.semantic_ids import SemanticIdConfig, SemanticIds, assign
from retrieval import bundle as bundles
from retrieval import recommenders
from retrieval.bundle import Bundle
from retrieval.catalog import Catalog
from retrieval.errors import BundleError
from retrieval.filters import NO_FILTER
from retrieval.generative import Generation, Generative
from retrieval.inputs import Request
from retrieval.queries import Query
from retrieval.sequences import History
from retrieval.trie import ConstraintTrie

CONFIG = TigerDecoderConfig(d=8, blocks=1, code_blocks=2, heads=2, window=6, dropout=0.0, expansion=2)
SEARCH = {"beams": 6, "widen": 0, "exact_below": 0, "candidates": "generated"}


def semantic_ids() -> SemanticIds:
    config = SemanticIdConfig(text_width=6, levels=2, codewords=4, text_fields="title,categories")
    return assign(toy.catalog(), config, seed=1, progress=Progress())


def build() -> TigerDecoder:
    """As if trained: every weight away from where it began."""
    torch.manual_seed(0)
    model = TigerDecoder(CONFIG, semantic_ids()).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights += 0.3 * torch.randn_like(weights)
    return model


def histories(count: int = 60) -> list[History]:
    rng = np.random.default_rng(0)
    return [History.of_rows(rng.integers(1, toy.N + 1, rng.integers(1, 10))) for _ in range(count)]


def write(out: Path, model: Any = None, **changes: Any) -> Path:
    """Exports the model of this file, over the toy's twenty items."""
    facts: dict[str, Any] = {
        "name": "tiger-decoder",
        "samples": histories(),
        "data": {"digest": "0" * 64},
        "event_types": ("view",),
        "hyper_parameters": {"d": 8},
        "seed": 7,
        "metrics": {"loo": {"recall@10": 0.5}},
        "generation": SEARCH,
        **changes,
    }
    return export_generator(model or build(), semantic_ids(), toy.catalog(), out=out, **facts)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graphs of the model of this file: exporting takes seconds, so it is done once."""
    directory = tmp_path_factory.mktemp("graphs")
    write_graphs(build(), directory, histories(2))
    return directory


def copied(graphs: Path) -> Any:
    """Stands in for `write_graphs`: those graphs, and what a manifest says of them."""

    def copy(model: Any, directory: Path, _samples: Any) -> dict[str, bundles.Graph]:
        shutil.copytree(graphs, directory, dirs_exist_ok=True)
        return {
            "prefill": bundles.Graph("prefill.onnx", tuple(model.inputs), ", ".join(model.memory_names)),
            "step": bundles.Graph("step.onnx", ("prefix", *model.memory_names), "(B, M, V)"),
        }

    return copy


@pytest.fixture
def quick(graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `export_generator` take those graphs instead of making them again."""
    monkeypatch.setattr(exporting, "write_graphs", copied(graphs))


@pytest.mark.usefixtures("quick")
def test_a_bundle_says_what_it_is(tmp_path: Path) -> None:
    opened = Bundle.open(write(tmp_path / "b"))
    manifest, ids = opened.manifest, semantic_ids()
    assert (manifest.model, manifest.kind, manifest.seed, manifest.window) == ("tiger-decoder", "generative", 7, 6)
    assert manifest.generation == {
        **SEARCH,
        "levels": 3,
        "vocabulary": [4, 4, 4],
        "text_fields": ["title", "categories"],
        "window": 6,
    }
    assert {role: graph.inputs for role, graph in manifest.graphs.items()} == {
        "prefill": ("item_codes",),
        "step": ("prefix", "state", "allowed", "keys", "values"),
    }
    assert manifest.metrics["semantic_ids"]["coded"] == toy.N
    agreement = manifest.metrics["parity"]
    assert agreement["histories"] == 60
    assert 0 <= agreement["largest_difference"] < 1e-5
    assert agreement["identical_top20"] > 0.95
    assert opened.codes is not None
    assert np.array_equal(opened.codes.codes, ids.table.codes)
    assert opened.text_vectors is not None
    assert np.array_equal(opened.text_vectors, ids.vectors)
    assert np.array_equal(opened.item_vectors, ids.vectors)
    assert opened.warmup[0] == [toy.ITEM_IDS[row - 1] for row in histories()[0].newest(6).rows]


@pytest.mark.usefixtures("quick")
def test_what_is_served_is_what_torch_says(tmp_path: Path) -> None:
    """Through manifest, files and `recommenders.load`, beside the model itself."""
    served = recommenders.load(Bundle.open(write(tmp_path / "b")))
    assert served.generative is not None
    model = build()
    table = model.tables.codes
    assert table is not None
    trie = ConstraintTrie.build(table, priority=toy.catalog().popularity)
    judge = Generative(in_torch(model), trie, Generation(3, table.vocabulary, beams=6))
    eligible = served.filters.eligible(NO_FILTER)
    queries = [Query(Request(h), 5, eligible, h.rows) for h in histories(20)]
    for ours, theirs in zip(judge.recommend(queries), served.recommender.recommend(queries), strict=True):
        assert ours.rows.tolist() == theirs.rows.tolist()
        assert np.abs(ours.scores - theirs.scores).max() < 1e-4
        assert set(theirs.sources) == {"generated"}
        assert 20 not in theirs.rows  # the toy's unavailable item


def test_the_graphs_hold_nothing_of_the_machine_that_trained(graphs: Path) -> None:
    root = str(Path(exporting.__file__).parent.parent).encode()
    shapes = {}
    for path in graphs.iterdir():
        assert root not in path.read_bytes()
        for value in onnx.load(path).graph.input:
            shapes[path.stem, value.name] = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
    assert shapes["prefill", "item_codes"] == ["B", "L", 3]
    assert shapes["step", "prefix"] == ["B", "M", "T"]
    assert shapes["step", "keys"] == ["B", 2, 2, "L", 4]


def test_the_shortest_window_and_tuple(tmp_path: Path) -> None:
    config = SemanticIdConfig(text_width=4, levels=1, codewords=4, dedup=False, text_fields="title")
    ids = assign(toy.catalog(), config, seed=1, progress=Progress())
    model = TigerDecoder(TigerDecoderConfig(d=4, blocks=1, code_blocks=1, heads=1, window=1), ids).eval()
    write_graphs(model, tmp_path, [History.of_rows([2])])
    facts = parity(model, opened(model, tmp_path), ConstraintTrie.build(ids.table), histories(4))
    assert facts["histories"] == 4


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("level", "shift", "words"),
    [
        (1, 0.05, r"torch and onnxruntime differ by .* 1e-04 of its size is allowed"),
        (0, float("nan"), "gives no numbers"),
        (2, float("nan"), "gives no numbers"),
    ],
)
def test_graphs_that_compute_something_else_are_no_bundle(tmp_path: Path, level: int, shift: float, words: str) -> None:
    other = build()
    with torch.no_grad():
        other.head[level] += shift * torch.arange(4)
    with pytest.raises(ExportError, match=words):
        write(tmp_path / "b", other)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ([-1.0, -np.inf], [-1.00005, -np.inf], True),
        ([-1e9, -1.0], [-1e9 + 64, -1.0], True),
        ([-1.0, -2.0], [-1.0, -2.001], False),
        ([-1.0, -np.inf], [-1.0, -9.0], False),
        ([-1.0, -9.0], [-1.0, -np.inf], False),
        ([-1.0, np.nan], [-1.0, -9.0], False),
        ([-1.0, np.nan], [-1.0, np.nan], False),
    ],
)
def test_what_counts_as_the_same(ours: list[float], theirs: list[float], same: bool) -> None:
    a, b = np.array(ours, np.float32), np.array(theirs, np.float32)
    if same:
        assert exporting._worst(a, b) < 100
    else:
        with pytest.raises(ExportError):
            exporting._worst(a, b)


def test_histories_without_any_code_compare_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no sample history holds an item with a code"):
        write(tmp_path / "b", samples=[History.of_rows([0])])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_an_encoder_comes_along_and_answers(tmp_path: Path, toy_bundle: Path) -> None:
    dense = Bundle.open(toy_bundle)
    made = Bundle.open(write(tmp_path / "b", dense=dense))
    assert set(made.manifest.graphs) == {"prefill", "step", "encoder"}
    assert np.array_equal(made.item_vectors, dense.item_vectors)
    assert (made.manifest.window, made.manifest.generation["window"]) == (toy.WINDOW, 6)
    assert made.manifest.index["from"] == dense.name
    served = recommenders.load(made)
    query = Query(Request(History.of_rows([3])), 4, served.filters.eligible(NO_FILTER), np.array([3]))
    (generated,), (retrieved,) = served.recommender.recommend([query]), served.dense.recommend([query])
    assert set(generated.sources) == {"generated"}
    assert set(retrieved.sources) == {"retrieval"}


@pytest.mark.usefixtures("quick")
def test_an_encoder_of_another_catalog_is_refused(tmp_path: Path, toy_bundle: Path) -> None:
    def of(ids: list[str], kind: str = "encoder") -> Any:
        manifest = SimpleNamespace(kind=kind)
        return SimpleNamespace(name="other@1", catalog=Catalog.build(ids), manifest=manifest)

    for ids in (toy.ITEM_IDS[::-1], [*toy.ITEM_IDS, "i21"], toy.ITEM_IDS[:-1]):
        with pytest.raises(ExportError, match=r"bundle other@1 has another catalog than the generator"):
            write(tmp_path / "b", dense=of(ids))
    with pytest.raises(ExportError, match="of kind 'generative'; an encoder was expected"):
        write(tmp_path / "b", dense=of(toy.ITEM_IDS, "generative"))
    assert list(tmp_path.iterdir()) == []
    assert Bundle.open(write(tmp_path / "b", dense=Bundle.open(toy_bundle))).manifest.kind == "generative"


@pytest.mark.usefixtures("quick")
def test_hybrid_candidates_without_an_encoder_are_refused(tmp_path: Path, toy_bundle: Path) -> None:
    alone = Bundle.open(write(tmp_path / "b"))
    with pytest.raises(ExportError, match="hybrid candidates come from an encoder too"):
        join(alone, tmp_path / "c", dense=None, generation={"candidates": "hybrid"})
    join(alone, tmp_path / "c", dense=Bundle.open(toy_bundle), generation={"candidates": "hybrid"})
    assert recommenders.load(Bundle.open(tmp_path / "c")).recommender.name == "hybrid"


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
        (ConstraintTrie, "save"),
        (np, "save"),
        (exporting, "write_graphs"),
        (Path, "write_text"),
        (bundles, "seal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_full_disk_leaves_no_bundle_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    monkeypatch.setattr(owner, name, full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        write(tmp_path / "b")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_killed_while_exporting_leaves_nothing_that_looks_like_a_bundle(
    tmp_path: Path, graphs: Path, request: pytest.FixtureRequest
) -> None:
    code = f"""
        import os, signal, sys
        from pathlib import Path
        sys.path[:0] = {sys.path!r}
        import torch, test_generator_export as own
        torch.set_num_threads(1)
        own.exporting.write_graphs = own.copied(Path(sys.argv[2]))
        own.bundles.seal = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        own.write(Path(sys.argv[1]))
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "b"), str(graphs)]
    killed = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (rest,) = tmp_path.iterdir()
    assert (rest.name.startswith(".b."), rest.suffix) == (True, ".partial")
    assert (rest / "step.onnx").exists()
    for path in (rest, tmp_path / "b"):
        with pytest.raises(BundleError):
            Bundle.open(path)
    request.getfixturevalue("quick")
    assert Bundle.open(write(tmp_path / "b")).manifest.seed == 7
