"""Calibration: from what a ranker says to how often it happens.

Each task has a map of its own, fitted on lists that the ranker did not learn from, and stored in the manifest. All of
them rise, so that a calibrated task orders candidates as the raw one did (isotonic maps may tie what was apart).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.errors import BundleTorn, InvalidInput
from retrieval.sequences import FloatArray

SMALLEST = 1e-7  # probabilities are kept this far from 0 and 1 before their logit is taken
LARGEST = 80.0  # a logit beyond is one of 0 or 1 in float32


def logit(probabilities: FloatArray) -> npt.NDArray[np.float64]:
    """float64, the same shape: log(p / (1 - p))."""
    p = np.clip(probabilities.astype(np.float64), SMALLEST, 1 - SMALLEST)
    return np.asarray(np.log(p) - np.log1p(-p))


@dataclass(frozen=True, slots=True)
class Platt:
    """sigmoid(slope * logit(p) + offset).

    Attributes:
        slope: above 0; below 1 it draws towards a half.
        offset: above 0 it raises all.

    Source:
        Platt (1999), "Probabilistic Outputs for Support Vector Machines", section 2.
    """

    slope: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        """Raises `InvalidInput` where the map would turn the order round."""
        if not 0 < self.slope < math.inf or not math.isfinite(self.offset):
            raise InvalidInput(f"Platt scaling by {self.slope} and {self.offset}: the slope must be above 0")

    def __call__(self, probabilities: FloatArray) -> FloatArray:
        """float32, the same shape."""
        x = np.clip(self.slope * logit(probabilities) + self.offset, -LARGEST, LARGEST)
        return np.asarray(1 / (1 + np.exp(-x)), dtype=np.float32)

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        return {"kind": "platt", **asdict(self)}


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Straight lines between knots that do not fall.

    Attributes:
        said: probabilities as the ranker says them, each above the one before.
        held: what they stand for.

    Source:
        Zadrozny and Elkan (2002), "Transforming Classifier Scores into Accurate Multiclass Probability Estimates",
        section 3.
    """

    said: tuple[float, ...]
    held: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raises `InvalidInput` where the knots are no such line."""
        said, held = np.array(self.said), np.array(self.held)
        rise = len(said) and said.shape == held.shape and (np.diff(said) > 0).all() and (np.diff(held) >= 0).all()
        if not rise or not ((said >= 0) & (said <= 1) & (held >= 0) & (held <= 1)).all():
            raise InvalidInput(
                f"{len(said)} and {len(held)} knots: as many of both, rising, within 0 and 1, were expected"
            )

    def __call__(self, probabilities: FloatArray) -> FloatArray:
        """float32, the same shape."""
        return np.interp(probabilities, self.said, self.held).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        return {"kind": "isotonic", "said": list(self.said), "held": list(self.held)}


Calibration = Platt | Isotonic


def parse(raw: Mapping[str, Any]) -> Calibration:
    """A map from a manifest.

    Raises:
        BundleTorn: no such kind, or numbers that are no map.
    """
    try:
        if raw["kind"] == "platt":
            return Platt(float(raw["slope"]), float(raw["offset"]))
        if raw["kind"] == "isotonic":
            return Isotonic(tuple(map(float, raw["said"])), tuple(map(float, raw["held"])))
    except (KeyError, TypeError, ValueError, InvalidInput) as error:
        raise BundleTorn(f"a calibration of the manifest cannot be read ({error}); export the bundle again") from error
    raise BundleTorn(f"calibration {raw['kind']!r} is none of platt, isotonic; export the bundle again")
