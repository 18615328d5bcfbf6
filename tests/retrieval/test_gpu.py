"""The graphs on a GPU: they run there and nowhere else, and say what they say on the CPU, which judges them.

Both add in float32 and in another order, so numbers differ in their last bits, and items whose scores differ by no more
than that may change places.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import toy
import toy_ranker
from toy_generative import toy_generative

from retrieval.bundle import Bundle
from retrieval.encoder import open_graph
from retrieval.errors import BundleForeign
from retrieval.filters import Filter
from retrieval.inputs import Request
from retrieval.recommenders import Answer, Query, Served, load
from retrieval.sequences import History

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "artifacts/demo"
# Of a query embedding's length, or of a list's largest score. A GPU that rounded the factors of its products to 10
# bits, as it does by default, would miss it.
TOLERANCE = 1e-4
BATCHES = (1, 8, 64)


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    """Skips where no graph can be opened on a GPU, and says why."""
    try:
        open_graph(DEMO / "encoder.onnx", threads=1, device="cuda")
    except BundleForeign as error:
        pytest.skip(f"no GPU: {error}")


@pytest.fixture(scope="module")
def on_cpu() -> Served:
    return load(Bundle.open(DEMO))


@pytest.fixture(scope="module")
def on_gpu() -> Served:
    return load(Bundle.open(DEMO), device="cuda")


def requests(count: int, items: int, *, longest: int = 60) -> list[Request]:
    """Histories of 1 to `longest` events, most of them longer or shorter than their neighbours."""
    rng = np.random.default_rng(count)
    return [Request(History.of_rows(rng.integers(1, items + 1, rng.integers(1, longest + 1)))) for _ in range(count)]


def lists(served: Served, asked: Sequence[Request], k: int) -> list[Answer]:
    everything = served.filters.eligible(Filter())
    return served.recommender.recommend([Query(r, k, everything, r.history.rows) for r in asked])


def assert_same_but_for_ties(found: Answer, expected: Answer) -> None:
    assert found.sources == expected.sources
    allowed = TOLERANCE * float(np.abs(expected.scores).max())
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=allowed)
    scores, last = dict(zip(expected.rows, expected.scores, strict=True)), expected.scores[-1]
    for row, score in zip(found.rows, found.scores, strict=True):
        # An item that only one list holds tied with the other's last.
        assert abs(scores.get(row, last) - score) <= 2 * allowed


@pytest.mark.parametrize("count", BATCHES)
def test_query_embeddings_are_those_of_the_cpu(on_cpu: Served, on_gpu: Served, count: int) -> None:
    asked = requests(count, len(on_cpu.catalog))
    assert on_cpu.engine.encoder is not None
    assert on_gpu.engine.encoder is not None
    expected, found = on_cpu.engine.encoder.encode(asked), on_gpu.engine.encoder.encode(asked)
    assert found.dtype == np.float32
    apart = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert apart.max() <= TOLERANCE


@pytest.mark.parametrize("count", BATCHES)
def test_lists_are_those_of_the_cpu_but_for_ties(on_cpu: Served, on_gpu: Served, count: int) -> None:
    asked = requests(count, len(on_cpu.catalog))
    for found, expected in zip(lists(on_gpu, asked, 20), lists(on_cpu, asked, 20), strict=True):
        assert len(found) == 20
        assert_same_but_for_ties(found, expected)


def test_a_batch_is_its_requests_one_by_one(on_gpu: Served) -> None:
    asked = requests(64, len(on_gpu.catalog))
    alone = [answer for request in asked for answer in lists(on_gpu, [request], 20)]
    for one, together in zip(alone, lists(on_gpu, asked, 20), strict=True):
        assert_same_but_for_ties(together, one)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(toy_generative, id="generated"),
        pytest.param(lambda path: toy_generative(path, parallel=True), id="generated-at-once"),
        pytest.param(toy_ranker.write, id="ranked"),
    ],
)
def test_generators_and_rankers_agree_too(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    bundle = Bundle.open(write(tmp_path / "toy"))
    asked = requests(8, toy.N, longest=5)
    on_cpu, on_gpu = load(bundle), load(bundle, device="cuda")
    for found, expected in zip(lists(on_gpu, asked, 10), lists(on_cpu, asked, 10), strict=True):
        assert_same_but_for_ties(found, expected)


def test_every_matrix_product_runs_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def traced() -> ort.SessionOptions:
        options = real()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "trace")
        return options

    real = ort.SessionOptions
    monkeypatch.setattr(ort, "SessionOptions", traced)
    session = open_graph(DEMO / "encoder.onnx", threads=1, device="cuda")
    session.run(None, {"item_rows": np.ones((8, 30), dtype=np.int64)})
    events = [event["args"] for event in json.loads(Path(session.end_profiling()).read_text()) if "args" in event]
    products = {(event["op_name"], event["provider"]) for event in events if "MatMul" in event.get("op_name", "")}
    assert products
    assert {provider for _, provider in products} == {"CUDAExecutionProvider"}


def test_the_service_refuses_to_go_without_where_it_was_asked_to_use_one() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "service", "--bundle", str(DEMO), "--port", "0"],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "SEQUITUR_DEVICE": "cuda", "SEQUITUR_STORE": "memory://"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 2
    assert "device 'cuda' needs CUDAExecutionProvider" in run.stderr.splitlines()[-1]
