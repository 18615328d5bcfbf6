"""Losses for next-item training: one function each, formula and source in its docstring.

All of them take the P supervised positions of a batch, flattened: hidden (P, D), the item table (N + 1, D) with the
padding row 0, and the target rows (P,). They return a mean over positions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import InvalidOption

LOSSES = ("bce", "gbce", "sampled", "softmax")
CHUNK = 2048  # positions whose logits exist at the same time in the full softmax: (2048, N) floats stay near the cache


@dataclass(frozen=True)
class Sampler:
    """Uniform negatives from rows 1 to N, outside the user's own items where a loss asks for it.

    Attributes:
        items: N.
        owned: sorted int64 keys `user * (N + 1) + row` of every training event, for exclusion.
    """

    items: int
    owned: Tensor

    def shared(self, count: int) -> Tensor:
        """int64 (count,): distinct rows, the same for every position of a batch."""
        return torch.randperm(self.items)[: min(count, self.items)] + 1

    def uniform(self, positions: int, count: int) -> Tensor:
        """int64 (P, count): independent rows, positives not excluded."""
        return torch.randint(1, self.items + 1, (positions, count))

    def outside(self, users: Tensor) -> Tensor:
        """int64 (P,): for each position a uniform row that its user never had in training.

        The j-th free row of a user is j + 1 plus how many owned rows lie below it, so nothing has to be drawn twice. A
        user who had everything gets any row.
        """
        first = users * (self.items + 1)
        start = torch.searchsorted(self.owned, first)
        free = self.items - (torch.searchsorted(self.owned, first + self.items + 1) - start)
        j = (torch.rand(users.shape, dtype=torch.float64) * free).long()
        below = torch.searchsorted(self._free_below, first + j, right=True) - start
        return torch.where(free > 0, j + 1 + below, torch.randint(1, self.items + 1, users.shape))

    @cached_property
    def _free_below(self) -> Tensor:
        """int64: for each owned key `user * (N + 1)` plus the number of free rows below its row; sorted too."""
        users = self.owned // (self.items + 1)
        place = torch.arange(len(self.owned)) - torch.searchsorted(users, users)
        return self.owned - 1 - place


def bce(hidden: Tensor, table: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Binary cross-entropy with one negative: -log s(r+) - log(1 - s(r-)), s the logistic function.

    Args:
        negatives: int64 (P,).

    Source:
        Kang and McAuley (2018), "Self-Attentive Sequential Recommendation", equation 7.
    """
    positive = (hidden * table[targets]).sum(-1)
    negative = (hidden * table[negatives]).sum(-1)
    return (F.softplus(-positive) + F.softplus(negative)).mean()


def gbce(hidden: Tensor, table: Tensor, targets: Tensor, negatives: Tensor, *, calibration: float) -> Tensor:
    """Generalised binary cross-entropy: -(beta log s(r+) + sum log(1 - s(r-))) / (k + 1).

    With alpha = k / (N - 1), beta = 1 - t (1 - alpha): t = 0 is plain BCE, t = 1 gives calibrated probabilities.

    Args:
        negatives: int64 (P, k), drawn with the positives in.
        calibration: t, between 0 and 1.

    Source:
        Petrov and Macdonald (2023), "gSASRec", RecSys, equations 8 to 11. The form with softplus is the same function
        and needs no clamping.
    """
    k = negatives.shape[1]
    alpha = k / max(len(table) - 2, 1)
    beta = 1.0 - calibration * (1.0 - alpha)
    positive = (hidden * table[targets]).sum(-1)
    negative = torch.bmm(table[negatives], hidden.unsqueeze(-1)).squeeze(-1)  # (P, k)
    return ((beta * F.softplus(-positive) + F.softplus(negative).sum(-1)) / (k + 1)).mean()


def sampled_softmax(hidden: Tensor, table: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """Softmax cross-entropy over the target and negatives that all positions of the batch share.

    A negative that is the position's own target is taken out of its sum. Sharing turns the logits into one matrix
    product. The sample is uniform without replacement, so no correction is needed.

    Args:
        negatives: int64 (k,).

    Source:
        Klenitskiy and Vasilev (2023), "Turning Dross Into Gold Loss", RecSys, section 3.3, with negatives shared by
        the batch instead of by the sequence.
    """
    positive = (hidden * table[targets]).sum(-1, keepdim=True)  # (P, 1)
    logits = hidden @ table[negatives].T  # (P, k)
    logits = logits.masked_fill(negatives == targets.unsqueeze(-1), float("-inf"))
    return (torch.logsumexp(torch.cat([positive, logits], dim=-1), dim=-1) - positive.squeeze(-1)).mean()


def softmax(hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy over the whole catalogue: log sum_j exp(r_j) - r+, rows 1 to N.

    Source:
        Klenitskiy and Vasilev (2023), "Turning Dross Into Gold Loss", RecSys, section 3.2.
    """
    loss: Tensor = _FullSoftmax.apply(hidden, table, targets)
    return loss


class _FullSoftmax(torch.autograd.Function):
    """The full softmax in slices, with its gradient computed on the way: P x N logits never exist at once."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        total = hidden.new_zeros(())
        grad_hidden = torch.empty_like(hidden)
        grad_table = torch.zeros_like(table)
        n = len(targets)
        items = table[1:]
        for start in range(0, n, CHUNK):
            h, target = hidden[start : start + CHUNK], targets[start : start + CHUNK] - 1
            logits = h @ items.T
            line = torch.arange(len(h))
            highest = logits.amax(dim=-1, keepdim=True)
            positive = logits[line, target]
            weights = logits.sub_(highest).exp_()
            mass = weights.sum(dim=-1, keepdim=True)
            total += (mass.log() + highest).sum() - positive.sum()
            weights /= mass * n
            weights[line, target] -= 1.0 / n
            grad_hidden[start : start + CHUNK] = weights @ items
            grad_table[1:].addmm_(weights.T, h)
        ctx.save_for_backward(grad_hidden, grad_table)
        return total / n

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden, grad_table = ctx.saved_tensors
        return grad_hidden * grad, grad_table * grad, None


Objective = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def objective(name: str, sampler: Sampler, *, negatives: int, calibration: float) -> Objective:
    """The loss of that name, with its negatives drawn: a function of hidden, table, targets and users.

    Args:
        name: `bce`, `gbce`, `sampled` or `softmax`.
        negatives: k, for `gbce` and `sampled`.
        calibration: t of gBCE.

    Raises:
        InvalidOption: no such loss.
    """
    choices: dict[str, Objective] = {
        "bce": lambda h, e, y, u: bce(h, e, y, sampler.outside(u)),
        "gbce": lambda h, e, y, _u: gbce(h, e, y, sampler.uniform(len(y), negatives), calibration=calibration),
        "sampled": lambda h, e, y, _u: sampled_softmax(h, e, y, sampler.shared(negatives)),
        "softmax": lambda h, e, y, _u: softmax(h, e, y),
    }
    if name not in choices:
        raise InvalidOption(f"loss {name!r} is none of {', '.join(LOSSES)}")
    return choices[name]
