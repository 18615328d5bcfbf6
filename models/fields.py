"""Fields as tokens: every categorical field, every number and every event becomes a learnt vector of one width.

A token of a category is the mean of its words' embeddings; code 0 (absent) is nothing among several words, and where
there is but one a word like others. A token of a number is the embedding of its bucket, of which absence (NaN) is one,
and may have a straight line added:

    token(x) = bucket(x) + x * slope

Buckets lie between quantiles of the training data, compared inside the graph, so a server needs no code for them.
Candidates and events read the same tables.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.errors import InvalidOption
from retrieval.features import Category, FeatureSet

NUMBERS = ("buckets", "linear", "both")
ROWS = 100_000  # candidates whose numbers are enough to know the quantiles


class Words(nn.Module):
    """Codes of several fields -> one token each, out of one table.

    Args:
        fields: M categories; a column of codes for each of their widths.
        d: width of a token.
    """

    offsets: Tensor
    real: Tensor

    def __init__(self, fields: Sequence[Category], d: int) -> None:
        super().__init__()
        self.widths = tuple(field.width for field in fields)
        starts = np.cumsum([0, *(field.size for field in fields)])
        self.register_buffer("offsets", torch.from_numpy(starts[:-1].repeat(self.widths)), persistent=False)
        self.table = nn.Parameter(torch.randn(int(starts[-1]), d) * d**-0.5) if fields else None
        # Among several words, absence is nothing; alone it is a word like others.
        real = torch.ones(int(starts[-1]), 1)
        real[[start for start, field in zip(starts, fields, strict=False) if field.width > 1]] = 0.0
        self.register_buffer("real", real, persistent=False)

    def forward(self, codes: Tensor, which: Sequence[int] | None = None) -> list[Tensor]:
        """The tokens of int64 codes (..., columns), in pieces (..., n, d) that make up M along the last axis but one.

        Args:
            codes: of all fields, or of those that `which` names.
            which: positions of fields.
        """
        if self.table is None or which == ():
            return []
        chosen = range(len(self.widths)) if which is None else which
        starts = np.cumsum([0, *self.widths])
        columns = [column for at in chosen for column in range(int(starts[at]), int(starts[at + 1]))]
        looked = F.embedding(codes + (self.offsets if which is None else self.offsets[columns]), self.table * self.real)
        pieces: list[Tensor] = []
        start, narrow = 0, 0  # columns before `start` are done; `narrow` fields of one column wait
        for width in (*(self.widths[at] for at in chosen), 0):
            if width == 1:
                narrow += 1
                continue
            if narrow:
                pieces.append(looked[..., start : start + narrow, :])
                start, narrow = start + narrow, 0
            if width:
                own = slice(start, start + width)
                words = (codes[..., own] > 0).float().sum(dim=-1).clamp(min=1)
                pieces.append((looked[..., own, :].sum(dim=-2) / words[..., None])[..., None, :])
                start += width
        return pieces


class Amounts(nn.Module):
    """Numbers -> one token each; NaN is absence.

    Args:
        n: how many numbers.
        d: width of a token.
        numbers: one of `NUMBERS`.
        buckets: between quantiles.
    """

    boundaries: Tensor
    offsets: Tensor

    def __init__(self, n: int, d: int, *, numbers: str, buckets: int) -> None:
        super().__init__()
        inner = 0 if numbers == "linear" else buckets - 1
        # Below every number, but NaN is not above it: how many boundaries are reached is 0 for NaN alone.
        boundaries = torch.full((n, 1 + inner), -torch.inf)
        boundaries[:, 1:] = torch.linspace(-2, 2, inner)
        self.register_buffer("boundaries", boundaries)
        self.register_buffer("offsets", torch.arange(n) * (2 + inner), persistent=False)
        self.table = nn.Parameter(torch.randn(n * (2 + inner), d) * d**-0.5) if n else None
        self.slopes = nn.Parameter(torch.randn(n, d) * d**-0.5) if n and numbers != "buckets" else None

    def learn(self, values: npt.NDArray[Any]) -> None:
        """Puts the boundaries at the quantiles of values (..., n); a number that is always absent keeps its own."""
        rows = values.reshape(-1, len(self.boundaries))
        rows = rows[~np.isnan(rows).all(axis=1)]
        rows = rows[:: max(1, len(rows) // ROWS)]
        inner = self.boundaries.shape[1] - 1
        for own, column in zip(self.boundaries, rows.T, strict=True):
            known = column[~np.isnan(column)]
            if len(known):
                cuts = np.quantile(known, np.arange(1, inner + 1) / (inner + 1))
                own[1:] = torch.from_numpy(cuts.astype(np.float32))

    def forward(self, values: Tensor) -> list[Tensor]:
        """The tokens (..., n, d) of float32 values (..., n), as one piece or none."""
        if self.table is None:
            return []
        reached = (values[..., None] >= self.boundaries).float().sum(dim=-1).long()
        tokens = F.embedding(reached + self.offsets, self.table)
        if self.slopes is not None:
            # As a product with a matrix that has each slope in its own place: quicker than n products of width d.
            n, d = self.slopes.shape
            spread = (torch.eye(n, device=values.device)[..., None] * self.slopes).flatten(1)
            tokens = tokens + (torch.where(values.isnan(), 0.0, values) @ spread).unflatten(-1, (n, d))
        return [tokens]


class Fields(nn.Module):
    """All tokens of a feature set.

    Args:
        features: what there is.
        d: width of a token.
        numbers: one of `NUMBERS`.
        buckets: per number.

    Attributes:
        of_candidate, of_request: how many tokens there are of each.
        of_event: how many fields an event carries.

    Raises:
        InvalidOption: `numbers` is none of them, or there are fewer than two buckets.
    """

    def __init__(self, features: FeatureSet, d: int, *, numbers: str, buckets: int) -> None:
        super().__init__()
        if numbers not in NUMBERS:
            raise InvalidOption(f"numbers {numbers!r} is none of {', '.join(NUMBERS)}")
        if buckets < 2:
            raise InvalidOption(f"buckets {buckets} must be at least 2")
        self.of_candidate = len(features.candidate_codes) + len(features.candidate_numbers)
        self.of_request = len(features.request_codes) + len(features.request_numbers)
        self.of_event = len(features.event_fields)
        self._carried = features.event_fields
        self.d = d
        self.candidate_words = Words(features.candidate_codes, d)
        self.request_words = Words(features.request_codes, d)
        self.candidate_amounts = Amounts(len(features.candidate_numbers), d, numbers=numbers, buckets=buckets)
        self.request_amounts = Amounts(len(features.request_numbers), d, numbers=numbers, buckets=buckets)

    def learn(self, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        """Puts the buckets' boundaries where the training data have their quantiles."""
        self.candidate_amounts.learn(feeds["candidate_numbers"])
        self.request_amounts.learn(feeds["request_numbers"])

    def candidate(self, codes: Tensor, numbers: Tensor) -> list[Tensor]:
        """Pieces of float32 (B, C, `of_candidate`, d)."""
        return [*self.candidate_words(codes), *self.candidate_amounts(numbers)]

    def request(self, codes: Tensor, numbers: Tensor) -> list[Tensor]:
        """Pieces of float32 (B, `of_request`, d)."""
        return [*self.request_words(codes), *self.request_amounts(numbers)]

    def events(self, codes: Tensor) -> list[Tensor]:
        """Pieces of float32 (B, L, `of_event`, d)."""
        return self.candidate_words(codes, self._carried)
