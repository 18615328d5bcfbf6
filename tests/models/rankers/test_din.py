"""DIN: its activation unit against the formula, what pooling promises, and the graph."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import made_lists
import numpy as np
import pytest
import torch

from models.errors import InvalidOption
from models.progress import Progress
from models.ranker_training import RankerTraining, tensors
from models.rankers.din import DIN, ActivationUnit, DINConfig
from retrieval.encoder import open_graph

SMALL = {"d": 4, "attention": 6, "hidden": "16,8"}
Maker = Callable[..., DIN]


@pytest.fixture
def make() -> Maker:
    """A small model in evaluation mode, its weights moved from where they start so that no bias is zero."""

    def made(**options: Any) -> DIN:
        torch.manual_seed(0)
        model = DIN(DINConfig(**{**SMALL, **options}), made_lists.features()).eval()
        with torch.no_grad():
            for weights in model.parameters():
                weights += 0.1 * torch.randn_like(weights)
        return model

    return made


def said(model: DIN, feeds: dict[str, np.ndarray]) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(*tensors(model.inputs, feeds))
    return out


def test_the_activation_unit_is_the_formula() -> None:
    torch.manual_seed(0)
    unit = ActivationUnit(5, 7)
    e, c = torch.randn(3, 4, 5), torch.randn(3, 6, 5)
    for slope in (0.25, -0.5, 1.5):
        with torch.no_grad():
            unit.slope.negative.fill_(slope)
            weights = unit(e, c)
            assert weights.shape == (3, 6, 4)
            assert float((weights - unit.plain(e, c)).abs().max()) < 1e-5
            by_hand = torch.cat([e[1, 2], c[1, 3], e[1, 2] * c[1, 3], e[1, 2] - c[1, 3]]) @ unit.first.weight.T
            by_hand = torch.nn.functional.prelu(by_hand + unit.first.bias, torch.tensor([slope])) @ unit.last.weight[0]
            assert float(weights[1, 3, 2]) == pytest.approx(float(by_hand), abs=1e-5)


def test_padding_changes_nothing(make: Maker) -> None:
    model, feeds = make(), made_lists.feeds(3, 4, 5)
    padded = {**feeds}
    for at in (0, 3, 7):
        padded["event_behaviours"] = np.insert(padded["event_behaviours"], at, 0, axis=1)
        padded["event_codes"] = np.insert(padded["event_codes"], at, 4, axis=1)
    assert float((said(model, padded) - said(model, feeds)).abs().max()) < 1e-5


def test_order_is_nothing_and_behaviours_and_counts_are_something(make: Maker) -> None:
    model, feeds = make(), made_lists.feeds(2, 4, 6)
    feeds["event_behaviours"][:] = [0, 1, 1, 1, 2, 2]
    before = said(model, feeds)
    order = [0, 2, 3, 1, 5, 4]
    mixed = {**feeds, "event_codes": feeds["event_codes"][:, order]}
    assert float((said(model, mixed) - before).abs().max()) < 1e-5
    swapped = {**feeds, "event_behaviours": np.array([[0, 2, 2, 1, 1, 1]] * 2)}
    assert float((said(model, swapped) - before).abs().max()) > 1e-4
    # No softmax: the same event twice counts twice.
    twice = {
        **feeds,
        "event_behaviours": np.array([[1, 1, 1, 1, 2, 2]] * 2),
        "event_codes": feeds["event_codes"].copy(),
    }
    twice["event_codes"][:, 0] = twice["event_codes"][:, 1]
    assert float((said(model, twice) - before).abs().max()) > 1e-4


def test_absent_numbers_and_empty_histories_are_digested(make: Maker) -> None:
    model, feeds = make(), made_lists.feeds(2, 3, 4)
    feeds["event_behaviours"][:] = 0
    feeds["candidate_numbers"][:] = np.nan
    feeds["request_numbers"][:] = np.nan
    assert said(model, feeds).isfinite().all()


def test_the_candidate_matters_to_itself_alone(make: Maker) -> None:
    model, feeds = make(), made_lists.feeds(2, 3, 4)
    before = said(model, feeds)
    feeds["candidate_codes"][0, 1, 0] = feeds["candidate_codes"][0, 1, 0] % made_lists.ITEMS + 1
    moved = (said(model, feeds) - before).abs().amax(dim=2)
    assert float(moved[0, 1]) > 1e-4
    assert float(moved[0, [0, 2]].max()) < 1e-6
    assert float(moved[1].max()) < 1e-6


def test_gradients_reach_every_weight() -> None:
    torch.manual_seed(0)
    model = DIN(DINConfig(**{**SMALL, "dropout": 0.0}), made_lists.features())
    model(*tensors(model.inputs, made_lists.feeds(6, 8, 6))).square().sum().backward()
    assert [name for name, w in model.named_parameters() if w.grad is None or not w.grad.any()] == []


def test_the_graph_computes_what_torch_computes(make: Maker, tmp_path: Path) -> None:
    model = make()
    model.write(tmp_path / "ranker.onnx", made_lists.feeds(2, 3, 4))
    session = open_graph(tmp_path / "ranker.onnx", threads=1, device="cpu")
    assert [node.name for node in session.get_inputs()] == list(model.inputs)
    for b, c, length in ((1, 1, 1), (1, 7, 2), (5, 2, 9), (3, 11, 1)):
        feeds = made_lists.feeds(b, c, length)
        (theirs,) = session.run(["probabilities"], feeds)
        assert theirs.shape == (b, c, 3)
        assert float(np.abs(theirs - model.probabilities(feeds)).max()) < 1e-5


@pytest.mark.train
def test_it_learns_what_each_task_wants() -> None:
    torch.manual_seed(0)
    model = DIN(DINConfig(d=8, dropout=0.0), made_lists.features())
    train, held_out = made_lists.known(600), made_lists.known(100, seed=1)
    how = RankerTraining(learning_rate=0.01, batch=20, epochs=6, patience=6, threads=1)
    model.fit(train, held_out, how, Progress(StringIO()))
    probabilities = model.probabilities(held_out.batch(np.arange(len(held_out))))
    for task, (least, most) in enumerate([(0.75, 1.0), (0.8, 1.0), (0.4, 0.6)]):
        own, labels = probabilities[..., task].ravel(), held_out.labels[..., task].ravel()
        pairs = own[labels > 0][:, None] - own[labels == 0][None, :]
        assert least < float((pairs > 0).mean() + 0.5 * (pairs == 0).mean()) < most


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d": 0}, "d 0 must be at least 1"),
        ({"dropout": -0.1}, "dropout -0.1 must be at least 0 and below 1"),
        ({"hidden": "a"}, "hidden 'a': whole numbers above zero"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        DINConfig(**options)


def test_events_without_fields_are_refused() -> None:
    with pytest.raises(InvalidOption, match="these events carry none"):
        DIN(DINConfig(), made_lists.features(event_fields=()))
