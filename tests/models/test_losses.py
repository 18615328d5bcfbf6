"""Every loss beside the slowest way to write it down, and what the samplers may not draw."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from models import losses
from models.errors import InvalidOption
from models.losses import Sampler

P, N, D = 23, 11, 5


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, a table with a zero row 0, and targets, in float64."""
    made = torch.Generator().manual_seed(0)
    hidden = torch.randn(P, D, generator=made, dtype=torch.float64, requires_grad=True)
    table = torch.randn(N + 1, D, generator=made, dtype=torch.float64)
    table[0] = 0
    return hidden, table.requires_grad_(), torch.randint(1, N + 1, (P,), generator=made)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def score(hidden: torch.Tensor, table: torch.Tensor, p: int, row: int) -> float:
    return sum(x * y for x, y in zip(hidden[p].tolist(), table[row].tolist(), strict=True))


def test_bce_is_its_formula(batch: tuple[torch.Tensor, ...]) -> None:
    hidden, table, targets = batch
    negatives = torch.randint(1, N + 1, (P,), generator=torch.Generator().manual_seed(1))
    slow = 0.0
    for p in range(P):
        plus, minus = (score(hidden, table, p, int(rows[p])) for rows in (targets, negatives))
        slow += -math.log(sigmoid(plus)) - math.log(1 - sigmoid(minus))
    assert float(losses.bce(hidden, table, targets, negatives).detach()) == pytest.approx(slow / P, abs=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.4, 0.75, 1.0])
def test_gbce_is_its_formula(batch: tuple[torch.Tensor, ...], t: float) -> None:
    """With the positive's probability raised to beta before the logarithm, as the paper writes it."""
    hidden, table, targets = batch
    k = 4
    negatives = torch.randint(1, N + 1, (P, k), generator=torch.Generator().manual_seed(1))
    alpha = k / (N - 1)
    beta = alpha * (t * (1 - 1 / alpha) + 1 / alpha)
    slow = 0.0
    for p in range(P):
        inner = math.log(sigmoid(score(hidden, table, p, int(targets[p]))) ** beta)
        inner += sum(math.log(1 - sigmoid(score(hidden, table, p, int(row)))) for row in negatives[p])
        slow -= inner / (k + 1)
    found = losses.gbce(hidden, table, targets, negatives, calibration=t)
    assert float(found.detach()) == pytest.approx(slow / P, abs=1e-12)


def test_gbce_without_calibration_is_bce_with_k_negatives(batch: tuple[torch.Tensor, ...]) -> None:
    hidden, table, targets = batch
    negatives = torch.randint(1, N + 1, (P, 6))
    logits = (hidden.unsqueeze(1) * table[torch.cat([targets.unsqueeze(1), negatives], dim=1)]).sum(-1)
    labels = torch.zeros_like(logits)
    labels[:, 0] = 1
    expected = F.binary_cross_entropy_with_logits(logits, labels)
    found = losses.gbce(hidden, table, targets, negatives, calibration=0.0)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, P, 100])
def test_softmax_and_its_gradients_are_those_of_cross_entropy(
    batch: tuple[torch.Tensor, ...], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK", chunk)
    hidden, table, targets = batch
    theirs = F.cross_entropy(hidden @ table[1:].T, targets - 1)
    ours = losses.softmax(hidden, table, targets)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-12)
    # The factor stands for what the training loop multiplies a loss with.
    expected = torch.autograd.grad(3.0 * theirs, (hidden, table))
    for found, wanted in zip(torch.autograd.grad(3.0 * ours, (hidden, table)), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)
    assert not expected[1][0].any()


def test_softmax_survives_large_scores() -> None:
    hidden, table = torch.tensor([[200.0]]), torch.tensor([[0.0], [1.0], [-1.0]], requires_grad=True)
    loss = losses.softmax(hidden, table, torch.tensor([2]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(400.0)
    assert table.grad is not None
    assert table.grad.flatten().tolist() == [0.0, 200.0, -200.0]


def test_sampled_softmax_is_its_formula(batch: tuple[torch.Tensor, ...]) -> None:
    hidden, table, targets = batch
    negatives = torch.tensor([2, 5, 9])
    slow = 0.0
    for p in range(P):
        rows = [int(targets[p]), *(row for row in negatives.tolist() if row != int(targets[p]))]
        slow -= math.log(
            math.exp(score(hidden, table, p, rows[0])) / sum(math.exp(score(hidden, table, p, r)) for r in rows)
        )
    assert float(losses.sampled_softmax(hidden, table, targets, negatives).detach()) == pytest.approx(
        slow / P, abs=1e-12
    )


def test_sampled_softmax_with_all_items_is_the_full_softmax(batch: tuple[torch.Tensor, ...]) -> None:
    hidden, table, targets = batch
    everything = Sampler(N, torch.tensor([])).shared(10 * N)
    assert sorted(everything.tolist()) == list(range(1, N + 1))
    sampled = losses.sampled_softmax(hidden, table, targets, everything)
    full = losses.softmax(hidden, table, targets)
    assert float(sampled.detach()) == pytest.approx(float(full.detach()), abs=1e-12)
    wanted = torch.autograd.grad(full, (hidden, table))
    for found, expected in zip(torch.autograd.grad(sampled, (hidden, table)), wanted, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_sampled_softmax_where_every_negative_is_the_target() -> None:
    hidden, table = torch.randn(3, D, requires_grad=True), torch.randn(N + 1, D, requires_grad=True)
    loss = losses.sampled_softmax(hidden, table, torch.full((3,), 4), torch.tensor([4]))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert hidden.grad is not None
    assert torch.isfinite(hidden.grad).all()


def fitted(loss: Callable[[torch.Tensor], torch.Tensor], items: int) -> torch.Tensor:
    """s(r_i) of every item, after one free score per item was fitted to a loss of the table."""
    table = torch.full((items + 1, 1), -2.0, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([table], max_iter=50, line_search_fn="strong_wolfe")

    def again() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss(table)
        value.backward()
        return value.detach()

    optimiser.step(again)
    return torch.sigmoid(table.detach()[1:, 0])


def test_5_calibration_bce_overestimates_and_gbce_at_t_1_does_not() -> None:
    """Point 5 of the sheet, on items that come with probability p and negatives that meet each item equally often.

    The minima can be written down: s = p / (p + 1 / N) for BCE with one negative, which sums to about N / 2, and
    s = p / (p + (N - 1) / N) for gBCE at t = 1, which sums to nearly 1.
    """
    items, k = 60, 20
    p = np.linspace(1, 3, items)
    p /= p.sum()
    often = np.round(400 * p).astype(int)
    p = often / often.sum()
    positives = torch.from_numpy(np.repeat(np.arange(1, items + 1), often))
    every = torch.arange(1, items + 1)

    def bce(table: torch.Tensor) -> torch.Tensor:
        targets, negatives = torch.cartesian_prod(positives, every).T
        return losses.bce(torch.ones(len(targets), 1, dtype=torch.float64), table, targets, negatives)

    def gbce(table: torch.Tensor, t: float) -> torch.Tensor:
        targets = positives.repeat_interleave(items // k)
        negatives = every.reshape(-1, k).repeat(len(positives), 1)
        hidden = torch.ones(len(targets), 1, dtype=torch.float64)
        return losses.gbce(hidden, table, targets, negatives, calibration=t)

    over, calibrated = fitted(bce, items), fitted(partial(gbce, t=1.0), items)
    np.testing.assert_allclose(over, p / (p + 1 / items), atol=1e-3)
    np.testing.assert_allclose(calibrated, p / (p + (items - 1) / items), atol=1e-3)
    assert float(over.sum()) > 25
    assert float(calibrated.sum()) == pytest.approx(1.0, abs=0.02)
    assert 1.1 < float(fitted(partial(gbce, t=0.75), items).sum()) < float(fitted(partial(gbce, t=0.0), items).sum())


def owned_by(*rows: list[int], items: int) -> Sampler:
    """The sampler of users 0, 1, ... who own these rows."""
    keys = [user * (items + 1) + row for user, own in enumerate(rows) for row in own]
    return Sampler(items, torch.tensor(sorted(keys), dtype=torch.int64))


def test_samplers_never_draw_the_padding_row() -> None:
    torch.manual_seed(0)
    sampler = owned_by([1], items=7)
    assert set(sampler.uniform(200, 5).unique().tolist()) == set(range(1, 8))
    assert sorted(sampler.shared(7).tolist()) == list(range(1, 8))
    assert len(set(sampler.shared(4).tolist())) == 4
    assert set(sampler.outside(torch.zeros(500, dtype=torch.int64)).tolist()) == set(range(2, 8))


@given(
    items=st.integers(1, 30),
    owned=st.lists(st.sets(st.integers(1, 30)), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
)
def test_outside_draws_what_the_user_never_had(items: int, owned: list[set[int]], seed: int) -> None:
    torch.manual_seed(seed)
    rows = [sorted(row for row in own if row <= items) for own in owned]
    users = torch.arange(len(rows)).repeat(20)
    drawn = owned_by(*rows, items=items).outside(users).tolist()
    for user, row in zip(users.tolist(), drawn, strict=True):
        assert 1 <= row <= items
        assert row not in rows[user] or len(rows[user]) == items


def test_outside_is_uniform_over_what_is_left() -> None:
    torch.manual_seed(0)
    drawn = owned_by([1, 2], [2, 3, 7, 8], [5], items=8).outside(torch.ones(8000, dtype=torch.int64))
    counts = torch.bincount(drawn, minlength=9).tolist()
    assert [row for row, count in enumerate(counts) if count] == [1, 4, 5, 6]
    assert all(abs(counts[row] - 2000) < 200 for row in (1, 4, 5, 6))


def test_every_named_loss_is_there_and_no_other() -> None:
    torch.manual_seed(0)
    sampler = owned_by([1, 2], items=N)
    hidden, table = torch.randn(4, D), torch.randn(N + 1, D)
    for name in losses.LOSSES:
        objective = losses.objective(name, sampler, negatives=3, calibration=0.5)
        assert math.isfinite(objective(hidden, table, torch.tensor([1, 2, 3, 4]), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(InvalidOption, match="'hinge' is none of bce, gbce, sampled, softmax"):
        losses.objective("hinge", sampler, negatives=3, calibration=0.5)
