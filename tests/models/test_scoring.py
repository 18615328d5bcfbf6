"""A torch model as a scorer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from models.encoders.sasrec import SASRec, SASRecConfig
from models.scoring import TorchScorer, tensors
from retrieval.inputs import Request
from retrieval.sequences import EMPTY, History

ITEMS = 9


@pytest.fixture
def model() -> SASRec:
    torch.manual_seed(0)
    return SASRec(SASRecConfig(d=8, heads=1, blocks=1, window=4, dropout=0.5), ITEMS)


def test_scores_are_inner_products_without_dropout(model: SASRec) -> None:
    history = History.of_rows([3, 1, 2])
    found = TorchScorer(model.train(), name="m").scores([history], [0.0])
    with torch.inference_mode():
        expected = model.hidden(torch.tensor([[3, 1, 2]]))[0, -1] @ model.item_vectors().T
    assert found.shape == (1, ITEMS + 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected.numpy(), atol=1e-6)


def test_empty_long_and_short_histories_share_a_batch(model: SASRec) -> None:
    scorer = TorchScorer(model, name="m")
    histories = [EMPTY, History.of_rows([5]), History.of_rows([1, 2, 3, 4, 5, 6, 7])]
    together = scorer.scores(histories, [0.0] * 3)
    assert not together[0].any()
    for line, history in zip(together[1:], histories[1:], strict=True):
        np.testing.assert_allclose(line, scorer.scores([history], [0.0])[0], atol=1e-5)
    np.testing.assert_allclose(together[2], scorer.scores([History.of_rows([4, 5, 6, 7])], [0.0])[0], atol=1e-5)


def test_only_empty_histories_score_zero(model: SASRec) -> None:
    assert not TorchScorer(model, name="m").scores([EMPTY, EMPTY], [0.0, 0.0]).any()


def test_of_several_queries_the_best_counts() -> None:
    table = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    queries = torch.tensor([[[1.0, 0.0], [0.0, -1.0]]])

    class Several(torch.nn.Module):
        inputs = ("item_rows",)
        config = SimpleNamespace(window=3)

        def forward(self, _rows: torch.Tensor) -> torch.Tensor:
            return queries

        def item_vectors(self) -> torch.Tensor:
            return table

    assert TorchScorer(Several(), name="m").scores([History.of_rows([1])], [0.0]).tolist() == [[0.0, 1.0, 0.0]]


def test_inputs_come_in_the_order_of_forward() -> None:
    model = SimpleNamespace(inputs=("request_time", "item_rows", "context:hour"))
    request = Request(History.of_rows([4, 7]), time=12.5, context={"hour": 3.0})
    time, rows, hour = tensors(model, [request], length=3)
    assert (time.tolist(), rows.tolist(), hour.tolist()) == ([12.5], [[0, 4, 7]], [3.0])
