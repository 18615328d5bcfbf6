"""The ranking stage: one run for all candidates of all requests, one probability per task, one score from them.

score = sum over tasks of goal * calibrated probability
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from retrieval import calibration
from retrieval.calibration import Calibration
from retrieval.encoder import open_graph
from retrieval.errors import BundleForeign, BundleTorn, InvalidRule
from retrieval.features import ARRAYS, Candidates, FeatureSet, FeatureTables, build
from retrieval.sequences import FloatArray

CANDIDATES = 200  # what a retriever is asked for where a manifest says nothing else
LARGEST_GOAL = 1e6  # weights beyond leave nothing of the others in float32


@dataclass(frozen=True, slots=True)
class Ranking:
    """How a bundle ranks: its manifest's `ranking`.

    Attributes:
        features: what is read, and the tasks that are predicted.
        goals: weight of each task's probability unless a query says otherwise.
        candidates: how many the first stage is asked for.
        calibration: by task; a task without one is taken as it is.
    """

    features: FeatureSet
    goals: Mapping[str, float]
    candidates: int = CANDIDATES
    calibration: Mapping[str, Calibration] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names, in the order of the ranker's columns."""
        return tuple(task.name for task in self.features.tasks)

    def to_json(self) -> dict[str, Any]:
        """What `parse` reads."""
        return {
            "features": self.features.to_json(),
            "goals": dict(self.goals),
            "candidates": self.candidates,
            "calibration": {name: fitted.to_json() for name, fitted in (self.calibration or {}).items()},
        }

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "Ranking":
        """From a manifest; names that are not listed above are for readers and stay unread.

        Raises:
            BundleTorn: a field is missing or out of range.
        """
        try:
            made = cls(
                FeatureSet.parse(raw["features"]),
                {str(name): float(weight) for name, weight in raw["goals"].items()},
                int(raw["candidates"]),
                {name: calibration.parse(one) for name, one in raw.get("calibration", {}).items()},
            )
            made.weights(made.goals)
        except (KeyError, TypeError, ValueError, AttributeError, InvalidRule) as error:
            raise BundleTorn(f"the manifest's ranking cannot be read ({error}); export the bundle again") from error
        if made.candidates < 1:
            raise BundleTorn(f"the manifest's ranking says {made.candidates} candidates; at least 1 is needed")
        strange = {*(made.calibration or {})} - {*made.tasks}
        if strange:
            raise BundleTorn(f"the manifest calibrates {sorted(strange)}, which are no tasks; export the bundle again")
        return made

    def weights(self, goals: Mapping[str, float]) -> FloatArray:
        """float32, shape (T,): the weight of each task, 0 for those that are not named.

        Raises:
            InvalidRule: a goal is no task, a weight is out of range, or nothing has a weight.
        """
        for name, weight in goals.items():
            if name not in self.tasks:
                raise InvalidRule(f"goal {name!r} is no task of this ranker, which predicts {', '.join(self.tasks)}")
            if not abs(weight) <= LARGEST_GOAL:
                raise InvalidRule(f"goal {name!r} has weight {weight}; at most {LARGEST_GOAL:g} either way is allowed")
        found = np.array([goals.get(name, 0.0) for name in self.tasks], dtype=np.float32)
        if not found.any():
            raise InvalidRule(f"no goal has a weight other than 0; weigh at least one of {', '.join(self.tasks)}")
        return found

    def formula(self, goals: Mapping[str, float]) -> str:
        """How a score comes about, for people: `1 * click + 0.5 * like`."""
        weights = self.weights(goals or self.goals).tolist()
        return " + ".join(f"{w:g} * {name}" for name, w in zip(self.tasks, weights, strict=True) if w)

    def calibrated(self, said: FloatArray) -> FloatArray:
        """float32, shape (n, T): what a ranker said, as probabilities."""
        out = np.array(said, dtype=np.float32)
        for t, name in enumerate(self.tasks):
            if self.calibration and name in self.calibration:
                out[:, t] = self.calibration[name](out[:, t])
        return out


class Ranker(Protocol):
    """Candidates in, one probability per task out."""

    settings: Ranking

    def rank(self, candidates: Sequence[Candidates], /) -> list[FloatArray]:
        """For each list float32 of shape (n, T): calibrated probabilities; rows of PAD_ROW mean nothing."""
        ...


class OnnxRanker:
    """A graph of a bundle, run by onnxruntime over features of one edition of the catalog.

    Args:
        path: the `.onnx` file: some of `retrieval.features.ARRAYS` in, `probabilities` float32 (B, C, T) out.
        names: the inputs that the manifest declares.
        settings: of the manifest.
        tables: of the catalog; `with_tables` gives the same graph over another edition.
        threads: cores that one run may use.
        device: `cpu` or `cuda`.

    Raises:
        BundleForeign: an input that this version cannot build.
        BundleTorn: the file is no graph.
    """

    def __init__(
        self,
        path: Path,
        *,
        names: Sequence[str],
        settings: Ranking,
        tables: FeatureTables,
        threads: int = 1,
        device: str = "cpu",
    ) -> None:
        self._session = open_graph(path, threads=threads, device=device)
        present = tuple(node.name for node in self._session.get_inputs())
        if set(present) != set(names) or not set(names) <= set(ARRAYS):
            raise BundleForeign(
                f"the manifest declares inputs {sorted(names)}, {path.name} has {sorted(present)}; this version builds "
                f"{', '.join(ARRAYS)}"
            )
        self._names, self.settings, self.tables = tuple(names), settings, tables

    def with_tables(self, tables: FeatureTables) -> "OnnxRanker":
        """The same graph over another edition of the catalog."""
        other = copy.copy(self)
        other.tables = tables
        return other

    def uncalibrated(self) -> "OnnxRanker":
        """The same graph, taken at its word."""
        other = copy.copy(self)
        other.settings = replace(self.settings, calibration={})
        return other

    def rank(self, candidates: Sequence[Candidates], /) -> list[FloatArray]:
        """See `Ranker`."""
        longest = max((len(one.rows) for one in candidates), default=0)
        if not longest:
            return [np.zeros((0, len(self.settings.tasks)), dtype=np.float32) for _ in candidates]
        said: Any = self._session.run(None, build(self.tables, candidates, self._names))[0]
        if said.shape != (len(candidates), longest, len(self.settings.tasks)):
            raise BundleTorn(
                f"the ranker gave {said.shape} for {len(candidates)} lists of up to {longest} and "
                f"{len(self.settings.tasks)} tasks; export the bundle again"
            )
        return [self.settings.calibrated(own[: len(one.rows)]) for own, one in zip(said, candidates, strict=True)]
