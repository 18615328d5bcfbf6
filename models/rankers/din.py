"""DIN: each candidate looks through the history for what is like itself, and a network judges what it finds.

Paper: Zhou et al. (2018), "Deep Interest Network for Click-Through Rate Prediction", KDD, arXiv 1706.06978, section 4.
With c the candidate's embedding and e_t those of the events, both the fields that events carry, joined:

    a_t = PReLU(W [e_t, c, e_t * c, e_t - c] + b) . v      pooled = sum over t of a_t e_t

without a softmax, as in the paper: a long history of the same says more than a short one. What is pooled stands beside
the fields of candidate and request in a shared network, with one output per task.

No vector of length 4d is made per candidate and event. The first layer is linear in e_t once c is known, so it is one
product per request of the events with C * H vectors; what is linear in PReLU is summed over H before that:

    W [e, c, e * c, e - c] + b = (W1 + W4 + W3 * c) e + (W2 - W4) c + b

Cost per candidate: L * H * 2d in products and as many numbers as L * H in memory, which the activation needs.

Deviations:
- One slope per layer in PReLU; Dice, which did little better in the paper, is left out.
- Events of all behaviours share the activation unit, are told apart by a learnt vector, and are pooled by behaviour.
- Several tasks; the paper has one. Plain weight decay in place of the regulariser that looks at a batch's features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import InvalidOption
from models.fields import Fields
from models.lists import Arrays
from models.progress import Progress
from models.ranker_training import Fitted, RankerTraining, descend, log_odds, network_probabilities, write_network
from models.registry import register
from retrieval.features import ARRAYS, FeatureSet
from retrieval.sequences import FloatArray


@dataclass(frozen=True)
class DINConfig:
    """Hyper-parameters.

    Attributes:
        d: width of a field's embedding.
        attention: hidden units H of the activation unit.
        hidden: widths of the shared network, separated by commas.
        dropout: in the shared network.
        numbers: `buckets`, `linear` or `both`, see `models.fields`.
        buckets: per number.
    """

    d: int = 16
    attention: int = 16
    hidden: str = "128,64"
    dropout: float = 0.1
    numbers: str = "both"
    buckets: int = 8

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        for name in ("d", "attention"):
            if getattr(self, name) < 1:
                raise InvalidOption(f"{name} {getattr(self, name)} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise InvalidOption(f"dropout {self.dropout} must be at least 0 and below 1")
        if not all(part.strip().isdigit() and int(part) for part in self.hidden.split(",")):
            raise InvalidOption(f"hidden {self.hidden!r}: whole numbers above zero, separated by commas")


class Slope(nn.Module):
    """PReLU with one slope, written so that onnxruntime, whose own PRelu takes six times as long, is quick."""

    def __init__(self) -> None:
        super().__init__()
        self.negative = nn.Parameter(torch.tensor(0.25))

    def forward(self, x: Tensor) -> Tensor:
        """What PReLU gives: x where it is above zero, `negative` times x elsewhere."""
        return x * self.negative + (1 - self.negative) * x.relu()


class ActivationUnit(nn.Module):
    """How much an event counts for a candidate.

    Args:
        width: of e and of c.
        hidden: H.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.first = nn.Linear(4 * width, hidden)
        self.slope = Slope()
        self.last = nn.Linear(hidden, 1, bias=False)

    def forward(self, e: Tensor, c: Tensor) -> Tensor:
        """float32 (B, C, L): the weights of events e (B, L, width) for candidates c (B, C, width)."""
        of_e, of_c, of_product, of_difference = self.first.weight[:, None].chunk(4, dim=2)  # (H, 1, width) each
        asked = of_e + of_difference + of_product * c[:, None]  # (B, H, C, width)
        rest = (of_c - of_difference).squeeze(1) @ c.mT + self.first.bias[:, None]  # (B, H, C)
        asked = torch.cat([asked, rest[..., None]], dim=3)  # what is added is asked for by a coordinate that is 1
        events = torch.cat([e, torch.ones_like(e[..., :1])], dim=2).mT  # (B, width + 1, L)
        hidden = (asked.flatten(1, 2) @ events).relu()  # (B, H * C, L)
        above = self.last.weight @ hidden.unflatten(1, (len(of_e), -1)).flatten(2)  # (B, 1, C * L)
        # PReLU is partly linear, and what is linear needs no hidden units: they are summed before they meet events.
        below = (self.last.weight @ asked.flatten(2)).unflatten(2, (-1, asked.shape[3])).squeeze(1) @ events
        return below * self.slope.negative + (1 - self.slope.negative) * above.view_as(below)

    def plain(self, e: Tensor, c: Tensor) -> Tensor:
        """The same as the formula has it, from a vector of length 4 * width per candidate and event; slow."""
        events, candidates = torch.broadcast_tensors(e[:, None], c[:, :, None])
        joined = torch.cat([events, candidates, events * candidates, events - candidates], dim=3)
        weights: Tensor = self.last(self.slope(self.first(joined)))
        return weights.squeeze(3)


@register("din")
class DIN(nn.Module):
    """The ranker.

    Args:
        config: hyper-parameters.
        features: what it reads; events must carry a field.
    """

    paper: ClassVar[str] = "Zhou et al., Deep Interest Network for Click-Through Rate Prediction, KDD 2018"
    stage: ClassVar[str] = "ranker"
    status: ClassVar[str] = "a baseline; held against its equations, not against its figures"
    Config: ClassVar[type] = DINConfig
    recipe: ClassVar[Mapping[str, Any]] = {}
    inputs: ClassVar[tuple[str, ...]] = ARRAYS
    carried: Tensor

    def __init__(self, config: DINConfig, features: FeatureSet) -> None:
        super().__init__()
        self.config = config
        self.behaviours = len(features.behaviours)
        if not features.event_fields:
            raise InvalidOption("DIN holds a candidate's fields against those of events, and these events carry none")
        self.fields = Fields(features, config.d, numbers=config.numbers, buckets=config.buckets)
        self.register_buffer("carried", torch.tensor(features.event_fields), persistent=False)
        width = self.fields.of_event * config.d
        self.kinds = nn.Parameter(torch.randn(self.behaviours, width) * width**-0.5)
        self.unit = ActivationUnit(width, config.attention)
        widths = [int(part) for part in config.hidden.split(",")]
        self.first = nn.Linear(self.fields.of_candidate * config.d + self.behaviours * width, widths[0])
        # What the request says is the same for all its candidates, and is added to them after one product.
        requests = self.fields.of_request * config.d
        self.first_of_request = nn.Linear(requests, widths[0], bias=False) if requests else None
        layers: list[nn.Module] = [Slope(), nn.Dropout(config.dropout)]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), Slope(), nn.Dropout(config.dropout)]
        self.rest = nn.Sequential(*layers)
        self.heads = nn.Linear(widths[-1], len(features.tasks))

    def forward(self, *feeds: Tensor) -> Tensor:
        """float32 (B, C, T): logits."""
        candidate_codes, candidate_numbers, request_codes, request_numbers, event_codes, event_behaviours = feeds
        tokens = torch.cat(self.fields.candidate(candidate_codes, candidate_numbers), dim=2)
        c = tokens.index_select(2, self.carried).flatten(2)  # the fields that events carry
        e = torch.cat(self.fields.events(event_codes), dim=2).flatten(2)
        e = e + F.embedding((event_behaviours - 1).clamp(min=0), self.kinds)
        every = torch.arange(1, self.behaviours + 1, device=event_behaviours.device)
        belongs = (event_behaviours[..., None] == every).float()  # (B, L, F): zero for padding, which adds nothing
        apart = (e[:, :, None] * belongs[..., None]).flatten(2)  # (B, L, F * width)
        pooled = self.unit(e, c) @ apart  # (B, C, F * width)
        hidden = self.first(torch.cat([tokens.flatten(2), pooled], dim=2))
        if self.first_of_request is not None:
            request = torch.cat(self.fields.request(request_codes, request_numbers), dim=1).flatten(1)
            hidden = hidden + self.first_of_request(request)[:, None]
        logits: Tensor = self.heads(self.rest(hidden))
        return logits

    def fit(self, train: Arrays, validation: Arrays, how: RankerTraining, progress: Progress) -> Fitted:
        """Learns; see `models.registry.Ranker`."""
        self.fields.learn(train.feeds)
        with torch.no_grad():
            self.heads.bias.copy_(torch.from_numpy(log_odds(train.labels)))
        return descend(self, train, validation, how, progress)

    def probabilities(self, feeds: Mapping[str, npt.NDArray[Any]], /) -> FloatArray:
        """float32, shape (B, C, T)."""
        return network_probabilities(self, feeds)

    def write(self, path: Path, feeds: Mapping[str, npt.NDArray[Any]], /) -> None:
        """The ONNX graph."""
        write_network(self, path, feeds)
