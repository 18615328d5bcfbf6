"""Every quantiser by name: a function that learns one from vectors and gives the half that serves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from models.errors import InvalidOption
from models.folder import Folder
from models.progress import Progress
from retrieval.quantisers import Quantiser
from retrieval.sequences import FloatArray


@dataclass(frozen=True)
class QuantiserOptions:
    """What the quantisers can be told.

    Attributes:
        levels: codes of an item, without the one that numbers twins.
        codewords: V, codewords of each level; FSQ has its grid instead.
        quantiser_width: E, the width in which residuals are quantised, or that of the decoder of FSQ; 0 leaves it to
            the quantiser.
        quantiser_epochs: passes over the vectors; 0 leaves it to the quantiser.
        quantiser_rate: learning rate of its Adam.
    """

    levels: int = 3
    codewords: int = 256
    quantiser_width: int = 0
    quantiser_epochs: int = 0
    quantiser_rate: float = 1e-3

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        for name, least in {"levels": 1, "codewords": 2, "quantiser_width": 0, "quantiser_epochs": 0}.items():
            if getattr(self, name) < least:
                raise InvalidOption(f"{name} {getattr(self, name)} must be at least {least}")
        if not 0 < self.quantiser_rate < float("inf"):
            raise InvalidOption(f"quantiser_rate {self.quantiser_rate} must be above zero")


@dataclass(frozen=True, eq=False)
class Learnt:
    """A quantiser and how it was learnt.

    Attributes:
        quantiser: as a bundle would carry it.
        errors: by level, the squared error that is left of the vectors after it, as a share of their variance; one
            number where levels are not an order. Empty where nothing is reconstructed.
        facts: anything else worth a line in a report.
    """

    quantiser: Quantiser
    errors: tuple[float, ...] = ()
    facts: Mapping[str, Any] | None = None


class QuantiserProvider(Protocol):
    """Learns a quantiser."""

    def __call__(self, vectors: FloatArray, options: QuantiserOptions, *, seed: int, progress: Progress) -> Learnt:
        """The quantiser for vectors of this kind: float32, shape (n, D), none of them zero."""
        ...


PROVIDERS: Folder[QuantiserProvider] = Folder("models.quantisers", "quantiser")


def standard(vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and spread of each dimension, float32 of shape (D,) each, to standardise vectors (n, D) with.

    A dimension that hardly varies is not blown up: its spread counts as a thousandth of the average one at least.
    """
    spread = vectors.std(axis=0)
    return vectors.mean(axis=0), np.maximum(spread, max(1e-3 * float(spread.mean()), 1e-12)).astype(np.float32)


def unexplained(vectors: FloatArray, rebuilt: Any) -> float:
    """The squared error of (n, D) rebuilt vectors as a share of the variance of the vectors; 0 where all are equal."""
    spread = float(((vectors - vectors.mean(axis=0)) ** 2).sum())
    return float(((vectors - rebuilt) ** 2).sum()) / spread if spread else 0.0


def batch_size(n: int, largest: int) -> int:
    """Vectors of one training step: an epoch over a small catalog has eight steps too, or it would learn nothing."""
    return max(1, min(largest, -(-n // 8)))
