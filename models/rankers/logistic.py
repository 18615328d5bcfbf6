"""Logistic regression: the baseline that reads every feature once and mixes none.

    logit = bias + sum over numbers of (weight * x, or a weight of its own where x is absent)
          + sum over categorical fields of the mean weight of the field's words

One regression per task. They share nothing but the loop that fits them, and that loop takes what a place on the page
adds out of them.

Source: Richardson, Dominowska and Ragno (2007), "Predicting Clicks: Estimating the Click-Through Rate for New Ads",
section 4.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from models.errors import InvalidOption
from models.lists import Arrays
from models.progress import Progress
from models.ranker_training import Fitted, RankerTraining, descend, log_odds, network_probabilities, write_network
from models.registry import register
from retrieval.features import Category, FeatureSet
from retrieval.sequences import FloatArray

_READ = ("candidate_numbers", "request_numbers", "candidate_codes", "request_codes")


@dataclass(frozen=True)
class LogisticConfig:
    """Hyper-parameters of the regression; its penalty is the option `decay` of training.

    Attributes:
        codes: whether categories are read beside numbers.
    """

    codes: bool = True


class _Words(nn.Module):
    """The weights of all words of some categorical fields: a field adds the mean over its words that are there."""

    starts: Tensor
    own: Tensor

    def __init__(self, fields: tuple[Category, ...], tasks: int) -> None:
        super().__init__()
        columns = np.array([at for at, field in enumerate(fields) for _ in range(field.width)], dtype=np.int64)
        starts = np.cumsum([0, *(field.size for field in fields)])
        self.table = nn.Embedding(int(starts[-1]), tasks)
        nn.init.zeros_(self.table.weight)
        self.register_buffer("starts", torch.from_numpy(starts[columns]), persistent=False)
        own = torch.from_numpy((columns[:, None] == columns[None, :]).astype(np.float32))
        self.register_buffer("own", own, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """float32 (..., T) of codes int64 (..., M), 0 absent."""
        there = (codes > 0).float()
        shares = there / (there @ self.own).clamp(min=1.0)
        weights: Tensor = self.table(codes + self.starts)
        return (weights * shares[..., None]).sum(dim=-2)


class _Numbers(nn.Module):
    """The weights of some numbers: x adds weight * x, an absent one a weight of its own."""

    def __init__(self, numbers: int, tasks: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2 * numbers, tasks))

    def forward(self, numbers: Tensor) -> Tensor:
        """float32 (..., T) of numbers float32 (..., F), NaN absent."""
        absent = numbers.isnan()
        return torch.cat([torch.where(absent, 0.0, numbers), absent.float()], dim=-1) @ self.weight


@register("logistic")
class Logistic(nn.Module):
    """See the module.

    Args:
        config: hyper-parameters.
        features: what there is to read.

    Raises:
        InvalidOption: nothing is left that tells one candidate from another.
    """

    paper: ClassVar[str] = "Richardson, Dominowska and Ragno, Predicting Clicks, WWW 2007"
    stage: ClassVar[str] = "ranker"
    status: ClassVar[str] = "a baseline: the model of the paper over features of our own"
    Config: ClassVar[type] = LogisticConfig
    recipe: ClassVar[Mapping[str, Any]] = {"learning_rate": 0.01, "decay": 1e-5}

    def __init__(self, config: LogisticConfig, features: FeatureSet) -> None:
        super().__init__()
        self.config, tasks = config, len(features.tasks)
        # A graph has no input that is empty: of what is not declared there is no array.
        self.inputs = tuple(n for n in _READ if getattr(features, n) and (config.codes or n.endswith("_numbers")))
        if not any(name.startswith("candidate") for name in self.inputs):
            raise InvalidOption("a logistic regression needs a number of candidates, or a category and codes=true")
        parts: dict[str, nn.Module] = {}
        for name in self.inputs:
            fields = getattr(features, name)
            parts[name] = _Words(fields, tasks) if name.endswith("_codes") else _Numbers(len(fields), tasks)
        self.parts = nn.ModuleDict(parts)
        self.bias = nn.Parameter(torch.zeros(tasks))

    def forward(self, *feeds: Tensor) -> Tensor:
        """float32 (B, C, T): logits."""
        logits = self.bias
        for name, feed in zip(self.inputs, feeds, strict=True):
            part = self.parts[name](feed)
            logits = logits + (part if name.startswith("candidate") else part[:, None])
        return logits

    def fit(self, train: Arrays, validation: Arrays, how: RankerTraining, progress: Progress) -> Fitted:
        """See `models.registry.Ranker`; begins with how often each task is fulfilled."""
        with torch.no_grad():
            self.bias.copy_(torch.from_numpy(log_odds(train.labels)))
        return descend(self, train, validation, how, progress)

    def probabilities(self, feeds: Mapping[str, npt.NDArray[Any]], /) -> FloatArray:
        """See `models.registry.Ranker`."""
        return network_probabilities(self, feeds)

    def write(self, path: Path, feeds: Mapping[str, npt.NDArray[Any]], /) -> None:
        """See `models.registry.Ranker`."""
        write_network(self, path, feeds)
