"""A generator in torch behind the face of its graphs, by a model whose answers are known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from models.generation import TorchDecoder, TorchParallel, in_torch, judged
from models.histories import Histories
from models.metrics import MISS
from models.splits import leave_one_out
from retrieval.codes import NO_CODE, CodeTable
from retrieval.decoder import Parallel
from retrieval.errors import EmptyHistory
from retrieval.inputs import Request, Tables
from retrieval.sequences import History

ITEMS = 12
VOCABULARY = (4, 3)  # row n has the codes of n - 1 in base 3: (0, 0), (0, 1), ...
CODES = np.array([[NO_CODE, NO_CODE], *([n // 3, n % 3] for n in range(ITEMS))])
HISTORY = Request(History.of_rows([5, 2]))


class Successor(torch.nn.Module):
    """Writes the item after the newest one: e^5 times as likely as any other code, at each level."""

    inputs = ("item_codes",)
    memory_names = ("newest",)

    def __init__(self, codes: np.ndarray = CODES) -> None:
        super().__init__()
        self.config = SimpleNamespace(window=4)
        self.tables = Tables(codes=CodeTable(codes, VOCABULARY))
        self.asked: list[torch.Tensor] = []

    def prefill(self, item_codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (item_codes[:, -1],)

    def step(self, prefix: torch.Tensor, newest: torch.Tensor) -> torch.Tensor:
        self.asked.append(prefix)
        wanted = newest[:, 0] * 3 + newest[:, 1] + 1  # place of the successor
        code = torch.where(torch.tensor(prefix.shape[2] == 1), wanted // 3, wanted % 3)
        logits = 5.0 * torch.nn.functional.one_hot(code.clamp(max=3), 4).float()
        logits = logits[:, None].expand(-1, prefix.shape[1], -1).clone()
        if prefix.shape[2] == 2:
            logits[..., 3] = -torch.inf  # the second level has three codewords
        return torch.log_softmax(logits, dim=-1)


class AllAtOnce(Successor):
    """The same without steps."""

    memory_names = ()

    def distributions(self, item_codes: torch.Tensor) -> torch.Tensor:
        (newest,) = self.prefill(item_codes)
        return torch.stack([self.step(torch.zeros(len(newest), 1, t + 1), newest)[:, 0] for t in range(2)], dim=1)


@pytest.fixture(params=[Successor, AllAtOnce])
def model(request: pytest.FixtureRequest) -> Any:
    return request.param()


def test_the_decoder_follows_from_what_the_model_has() -> None:
    assert type(in_torch(Successor())) is TorchDecoder
    assert isinstance(in_torch(AllAtOnce()), TorchParallel)
    assert isinstance(in_torch(AllAtOnce()), Parallel)
    assert not isinstance(in_torch(Successor()), Parallel)


def test_a_model_is_asked_as_it_serves_not_as_it_trains(model: Any) -> None:
    model.train()
    in_torch(model)
    assert not model.training


def test_prefixes_begin_with_the_start(model: Any) -> None:
    decoder = in_torch(model)
    memory = decoder.prefill([HISTORY])
    model.asked.clear()
    decoder.step(memory, np.array([[[2], [1]]]))
    if model.memory_names:
        assert [prefix.tolist() for prefix in model.asked] == [[[[0, 2], [0, 1]]]]
    assert decoder.vocabulary == VOCABULARY


def test_a_level_has_as_many_numbers_as_codewords(model: Any) -> None:
    decoder = in_torch(model)
    memory = decoder.prefill([HISTORY, HISTORY])
    assert decoder.step(memory, np.zeros((2, 1, 0), np.int64)).shape == (2, 1, 4)
    second = decoder.step(memory, np.array([[[0], [1]], [[2], [3]]]))
    assert second.shape in {(2, 2, 3), (2, 1, 3)}
    assert second.dtype == np.float32
    assert np.isfinite(second).all()


def test_an_empty_history_is_not_read(model: Any) -> None:
    decoder = in_torch(model)
    for rows in ([], [0]):
        empty = Request(History.of_rows(rows))
        assert not decoder.reads(empty)
        with pytest.raises(EmptyHistory):
            decoder.prefill([HISTORY, empty])


def test_requests_are_taken_apart(model: Any) -> None:
    decoder = in_torch(model)
    both = decoder.prefill([Request(History.of_rows([1])), Request(History.of_rows([7]))])
    alone = decoder.prefill([Request(History.of_rows([7]))])
    root = np.zeros((1, 1, 0), np.int64)
    assert np.array_equal(decoder.step(both.take(np.array([1])), root), decoder.step(alone, root))


def test_judging_asks_for_lists_without_seen_items(model: Any) -> None:
    """The successor is first, unless the user had it, or nothing in the history can be read."""
    cases = leave_one_out(Histories.from_rows([[9, 3, 4, 5], [1, 6, 2], [3, 1, 2, 1], [7, 8, 8]])).test
    report = judged(model, cases, name="successor", beams=5, ks=(1, 3))
    assert report.ranks[[0, 2, 3]].tolist() == [1, MISS, MISS]
    assert report.ranks[1] > 1
    assert report.seen_targets == 2
    assert report.name == "successor"
    assert "lists of 3 of 5 beams over all items with a code, seen items filtered" in report.protocol
    assert report.n_items == ITEMS


def test_items_without_a_code_are_never_in_a_list(model: Any) -> None:
    bare = CODES.copy()
    bare[5] = NO_CODE
    cases = leave_one_out(Histories.from_rows([[9, 3, 4, 5], [9, 3, 2, 3], [2, 5, 6, 7]])).test
    report = judged(type(model)(bare), cases, name="m", beams=20, ks=(ITEMS,))
    assert report.ranks[0] == MISS
    assert report.coverage[f"coverage@{ITEMS}"] == pytest.approx((ITEMS - 1) / ITEMS)
