"""What every model family owes: one suite over all that are registered."""

from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import checkpoint, losses
from models.export import TOLERANCE, parity, write_graph
from models.registry import configure, families
from models.scoring import TorchScorer, tensors
from retrieval.encoder import OnnxEncoder
from retrieval.inputs import Request
from retrieval.sequences import History

ITEMS = 40
WINDOW = 8
EVENT_TYPES = 3


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=sorted(families("encoder")), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    """The name of each registered family."""
    return str(request.param)


def build(name: str, **options: Any) -> Any:
    """A small model of a family, by the options that it has."""
    family = families("encoder")[name]
    torch.manual_seed(0)
    known = {field.name for field in fields(family.Config)}
    wanted = {"window": WINDOW, "d": 16, "dropout": 0.3, **options}
    return family(replace(family.Config(), **{k: v for k, v in wanted.items() if k in known}), ITEMS)


def history(length: int, seed: int = 0) -> History:
    """Random events with types, values and times."""
    rng = np.random.default_rng((seed, length))
    return History(
        rng.integers(1, ITEMS + 1, length),
        rng.integers(0, EVENT_TYPES + 1, length),
        rng.random(length, dtype=np.float32),
        1.7e9 + np.cumsum(rng.integers(1, 10_000, length)).astype(np.float64),
    )


def request(length: int, seed: int = 0) -> Request:
    own = history(length, seed)
    return Request(own, float(own.timestamps[-1]) + 60)


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    """With weights moved from where they start, so that no bias is zero."""
    made = build(name).eval()
    with torch.no_grad():
        for weights in made.parameters():
            if len(weights) != ITEMS + 1:  # item tables, whose first row is padding
                weights += 0.1 * torch.randn_like(weights)
    return made


@pytest.fixture(scope="module")
def encoder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> OnnxEncoder:
    """The graph of the model, run by onnxruntime."""
    path = tmp_path_factory.mktemp("graph") / "encoder.onnx"
    write_graph(model, path, [history(n) for n in (3, 5)])
    return OnnxEncoder(path, names=model.inputs, length=WINDOW)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_shapes_and_types(model: Any) -> None:
    feeds = tensors(model, [request(3), request(5)], length=6)
    hidden, query, vectors = model.hidden(*feeds), model(*feeds), model.item_vectors()
    width = vectors.shape[1]
    assert (vectors.dtype, vectors.shape) == (torch.float32, (ITEMS + 1, width))
    assert (hidden.dtype, hidden.shape) == (torch.float32, (2, 6, width))
    assert query.dtype == torch.float32
    assert query.shape in {(2, width), (2, query.shape[1], width)}
    assert not vectors[0].any()


def test_1_causality_to_the_last_bit(model: Any) -> None:
    """Changing an event leaves the hidden states before it as they are, bit by bit."""
    own = history(WINDOW)
    before = model.hidden(*tensors(model, [Request(own)], length=WINDOW))
    for t in range(WINDOW):
        rows, types, values = own.rows.copy(), own.event_types.copy(), own.values.copy()
        rows[t], types[t], values[t] = rows[t] % ITEMS + 1, (types[t] + 1) % EVENT_TYPES, values[t] + 1
        other = History(rows, types, values, own.timestamps)
        after = model.hidden(*tensors(model, [Request(other)], length=WINDOW))
        assert torch.equal(after[:, :t], before[:, :t]), t
        assert not torch.equal(after[:, t], before[:, t]), t


@pytest.mark.parametrize("length", [1, 2, WINDOW - 1])
def test_2_padding_changes_nothing(model: Any, length: int) -> None:
    one = [request(length)]
    tight, padded = (model(*tensors(model, one, length=n)) for n in (length, WINDOW))
    assert float((tight - padded).abs().max()) < 1e-5
    beside = model(*tensors(model, [*one, request(WINDOW)], length=WINDOW))[:1]
    assert float((tight - beside).abs().max()) < 1e-5


@pytest.mark.parametrize("batch", [1, 32])
@pytest.mark.parametrize("length", [1, 2, WINDOW - 1, WINDOW, WINDOW + 5])
def test_6_the_graph_computes_what_torch_computes(model: Any, encoder: OnnxEncoder, batch: int, length: int) -> None:
    requests = [request(length, seed) for seed in range(batch)]
    ours = model(*tensors(model, requests, length=min(length, WINDOW))).numpy()
    theirs = encoder.encode(requests)
    assert theirs.shape == ours.shape
    assert float(np.abs(ours - theirs).max() / np.abs(ours).max()) < TOLERANCE


def test_6_the_graph_takes_histories_of_all_lengths_in_one_batch(model: Any, encoder: OnnxEncoder) -> None:
    vectors = model.item_vectors().numpy()
    queries, facts = parity(model, encoder, vectors, [history(n, seed) for seed in range(4) for n in range(1, 14)])
    assert len(queries) == facts["histories"] == 52
    assert facts["largest_difference"] < 1e-4
    assert facts["identical_top20"] > 0.9


@pytest.mark.train
def test_one_batch_can_be_learnt_by_heart(name: str) -> None:
    model = build(name, dropout=0.0, attention_dropout=0.0).train()
    requests = [request(5, seed) for seed in range(6)]
    feeds = tensors(model, requests, length=5)
    targets = torch.tensor([3, 1, 4, 11, 5, 9])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    with torch.enable_grad():
        for _ in range(150):
            loss = losses.softmax(model.hidden(*feeds)[:, -1], model.item_vectors(), targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert float(loss.detach()) < 0.1
    scores = TorchScorer(model, name=name).scores([r.history for r in requests], [r.time for r in requests])
    assert scores[:, 1:].argmax(axis=1).tolist() == (targets - 1).tolist()


def test_saved_and_loaded_it_is_the_same_model(name: str, model: Any, tmp_path: Path) -> None:
    arrays = {f"model/{key}": t.numpy() for key, t in model.state_dict().items()}
    checkpoint.save(tmp_path / "c.npz", arrays=arrays, facts={})
    again = build(name).eval()
    for weights in again.parameters():
        torch.nn.init.normal_(weights)
    checkpoint.restore(checkpoint.load(tmp_path / "c.npz")[0], again, None)
    feeds = tensors(model, [request(5)], length=5)
    assert torch.equal(again(*feeds), model(*feeds))
    assert torch.equal(again.item_vectors(), model.item_vectors())


def test_its_options_survive_as_text(name: str) -> None:
    config = build(name).config
    again, left = configure(
        families("encoder")[name].Config(), {key: str(value) for key, value in asdict(config).items()}
    )
    assert again == config
    assert left == {}
