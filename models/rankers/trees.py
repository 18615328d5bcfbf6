"""Gradient-boosted trees: the baseline that finds its own thresholds and products of numbers, by LightGBM.

One forest per task, over numbers of candidates and requests and over codes of small categories. What is absent has a
branch of its own, learnt at each node. Ids of items, large categories, tags and events go unread: trees make little of
them, and what they say reaches trees through numbers such as affinities and transitions.

Codes are read as numbers, in the order of their vocabulary. A set of words would part them better, in a graph that
compares word by word; between two thresholds each word is alone as well.

What is learnt is the order within a list (`lambdarank`), for one candidate of two hundred that is taken says little of
the others' probabilities and much of their order; a line through the held-out lists makes probabilities of it, which
calibration may bend afterwards. Or the probabilities themselves (`binary`).

Where lists have places on a page, what a place adds is learnt by a logistic regression over the same inputs first, and
the trees begin from it: they learn what is left, which is what they say when served. That needs `binary`, which is
taken for such lists whatever was asked for.

Source: Friedman (2001), "Greedy Function Approximation: A Gradient Boosting Machine"; Ke et al. (2017), "LightGBM: A
Highly Efficient Gradient Boosting Decision Tree"; Burges (2010), "From RankNet to LambdaRank to LambdaMART", section 7.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import expit

from models import calibration, tree_graph
from models.errors import InvalidOption, MissingLibrary
from models.lists import Arrays
from models.progress import Progress
from models.ranker_training import Fitted, RankerTraining, ndcg
from models.rankers.logistic import Logistic, LogisticConfig
from models.registry import register
from models.tree_graph import Columns
from retrieval.calibration import Platt
from retrieval.features import FeatureSet
from retrieval.sequences import BoolArray, FloatArray

if TYPE_CHECKING:
    import lightgbm

OBJECTIVES = ("lambdarank", "binary")
STEP = 5  # rounds between two looks at the validation lists; patience counts looks


@dataclass(frozen=True)
class TreesConfig:
    """Hyper-parameters of the forests.

    What serving costs grows with the rounds: two tasks of 31 leaves take about 0.6 ms of one core for 200 candidates
    after 60 rounds, and 1.0 ms after 100.

    Attributes:
        objective: `lambdarank` or `binary`.
        rounds: trees of a task, at most.
        num_leaves: of a tree.
        shrinkage: what each tree's answer is multiplied with, LightGBM's `learning_rate`.
        min_data_in_leaf: candidates.
        feature_fraction: share of the columns that each tree may read, drawn anew.
        max_codes: largest category that is read, counted in codes.
        max_rows: candidates to learn from; where there are more, those without any feedback are drawn, but never fewer
            than there are with feedback.
    """

    objective: str = "lambdarank"
    rounds: int = 60
    num_leaves: int = 31
    shrinkage: float = 0.05
    min_data_in_leaf: int = 200
    feature_fraction: float = 0.7
    max_codes: int = 64
    max_rows: int = 4_000_000

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        if self.objective not in OBJECTIVES:
            raise InvalidOption(f"objective {self.objective!r} is none of {', '.join(OBJECTIVES)}")
        for name, least in (
            ("rounds", 1),
            ("num_leaves", 2),
            ("min_data_in_leaf", 1),
            ("max_codes", 0),
            ("max_rows", 2),
        ):
            if getattr(self, name) < least:
                raise InvalidOption(f"{name} {getattr(self, name)} must be at least {least}")
        for name in ("shrinkage", "feature_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise InvalidOption(f"{name} {getattr(self, name)} must be above 0 and at most 1")


@register("trees")
class Trees:
    """See the module.

    Args:
        config: hyper-parameters.
        features: what there is to read.

    Raises:
        InvalidOption: nothing is left that tells one candidate from another.
    """

    paper: ClassVar[str] = "Ke et al., LightGBM: A Highly Efficient Gradient Boosting Decision Tree, NeurIPS 2017"
    stage: ClassVar[str] = "ranker"
    status: ClassVar[str] = "a baseline: the authors' library over features of our own"
    Config: ClassVar[type] = TreesConfig
    recipe: ClassVar[Mapping[str, Any]] = {"patience": 10}

    def __init__(self, config: TreesConfig, features: FeatureSet) -> None:
        self.config, self.features = config, features
        self.columns = {
            name: columns
            for name in ("candidate_numbers", "request_numbers", "candidate_codes", "request_codes")
            if (columns := _columns(name, features, config.max_codes)).read
        }
        self.inputs = tuple(self.columns)
        if not any(name.startswith("candidate") for name in self.inputs):
            raise InvalidOption(f"trees need a number of candidates, or a category of at most {config.max_codes} codes")
        self._forests: list[lightgbm.Booster | None] = [None] * len(features.tasks)
        self._rounds = [0] * len(features.tasks)
        self._bases = [0.0] * len(features.tasks)
        self._slopes = [1.0] * len(features.tasks)

    def fit(self, train: Arrays, validation: Arrays, how: RankerTraining, progress: Progress) -> Fitted:
        """See `models.registry.Ranker`; each task keeps the rounds with the best order of the validation lists."""
        began, lightgbm = time.monotonic(), _library()
        places = self._places(train, validation, how, progress)
        chosen = drawn(train.labels, how.negatives, self.config.max_rows, np.random.default_rng((how.seed, 2)))
        x, labels = self._matrix(train.feeds, chosen), train.labels[chosen]
        added = places[train.positions[chosen].clip(0, len(places) - 1)].astype(np.float64)
        held_out = _HeldOut.of(self._matrix, validation, places)
        for t, task in enumerate(self.features.tasks):
            known = ~np.isnan(labels[:, t])
            own, offsets = labels[known, t], added[known, t]
            self._forests[t], self._rounds[t] = None, 0
            # As if one of each outcome had been seen beside: finite for a task that never or always happens.
            share = (float(own.sum()) + 1) / (len(own) + 2)
            self._bases[t] = _base(share, offsets)
            if not 0 < own.sum() < len(own):
                progress.say(f"{task.name}: only one outcome, so no trees")
                continue
            rows, objective = x if known.all() else x[known], self.config.objective
            if objective == "binary" or places.any():
                params = self._params(how, "binary")
                data = lightgbm.Dataset(rows, own, init_score=self._bases[t] + offsets, params=params)
                self._forests[t], self._rounds[t] = self._grown(t, data, params, held_out, how, progress)
                continue
            params, lists = self._params(how, objective), np.nonzero(chosen)[0][known]
            data = lightgbm.Dataset(rows, own, group=np.bincount(lists)[np.unique(lists)], params=params)
            forest, rounds = self._grown(t, data, params, held_out, how, progress)
            self._forests[t], self._rounds[t] = forest, rounds
            line = held_out.line(_raw(forest, held_out.x, 0, rounds), t)
            if line is not None:
                self._slopes[t], self._bases[t] = line.slope, line.offset
        facts = {
            "rounds": {task.name: n for task, n in zip(self.features.tasks, self._rounds, strict=True)},
            "rows": len(x),
            "seconds": round(time.monotonic() - began, 1),
        }
        return Fitted(facts, places)

    def probabilities(self, feeds: Mapping[str, npt.NDArray[Any]], /) -> FloatArray:
        """See `models.registry.Ranker`."""
        shape = next(feeds[name].shape[:2] for name in self.inputs if name.startswith("candidate"))
        x = self._matrix(feeds, np.ones(shape, dtype=np.bool_))
        logits = [
            base + slope * (np.zeros(len(x)) if forest is None else _raw(forest, x, 0, rounds))
            for forest, rounds, slope, base in self._made()
        ]
        return np.asarray(expit(np.stack(logits, axis=1)).reshape(*shape, -1), dtype=np.float32)

    def write(self, path: Path, _feeds: Mapping[str, npt.NDArray[Any]], /) -> None:
        """See `models.registry.Ranker`; nothing is traced."""
        forests = [
            [] if forest is None else [_steeper(tree["tree_structure"], slope) for tree in _dumped(forest, rounds)]
            for forest, rounds, slope, _ in self._made()
        ]
        tree_graph.write(path, forests, self._bases, self.columns)

    def _made(self) -> Iterator[tuple[lightgbm.Booster | None, int, float, float]]:
        """Each task's forest, its rounds, and the line that makes logits of what it says."""
        return zip(self._forests, self._rounds, self._slopes, self._bases, strict=True)

    def _params(self, how: RankerTraining, objective: str) -> dict[str, Any]:
        return {
            "objective": objective,
            "num_leaves": self.config.num_leaves,
            "learning_rate": self.config.shrinkage,
            "min_data_in_leaf": self.config.min_data_in_leaf,
            "feature_fraction": self.config.feature_fraction,
            "boost_from_average": False,  # where to begin is given
            "seed": how.seed,
            "num_threads": how.threads,
            "deterministic": True,
            "force_row_wise": True,  # the other way adds up in another order, and which is faster is measured anew
            "verbosity": -1,
        }

    def _grown(
        self,
        t: int,
        data: lightgbm.Dataset,
        params: dict[str, Any],
        held_out: _HeldOut,
        how: RankerTraining,
        progress: Progress,
    ) -> tuple[lightgbm.Booster, int]:
        """The forest of a task, and how many of its rounds to take."""
        forest, name = _library().Booster(params, data), self.features.tasks[t].name
        said = np.zeros(len(held_out.x))
        best, best_rounds, done, finished = -math.inf, 0, 0, False
        while done < self.config.rounds and done - best_rounds < how.patience * STEP and not finished:
            for _ in range(min(STEP, self.config.rounds - done)):
                finished = finished or forest.update()
            grown = forest.current_iteration()
            said += _raw(forest, held_out.x, done, grown - done)
            done = grown
            reached = held_out.ndcg(said, t)
            # A task that nobody fulfilled there has no figure, and takes all rounds.
            better = math.isnan(reached) or reached > best
            if better:
                best, best_rounds = reached, done
            progress.say(f"{name}: round {done:3d}  validation NDCG@10 {reached:.4f} {'*' if better else ' '}")
        return forest.free_dataset(), best_rounds

    def _places(self, train: Arrays, validation: Arrays, how: RankerTraining, progress: Progress) -> FloatArray:
        """float32, shape (P + 1, T): what a place adds to a logit; nothing where no list was shown."""
        if train.positions.max(initial=0) <= 1:
            return np.zeros((2, len(self.features.tasks)), dtype=np.float32)
        progress.say("what places add, by logistic regression")
        unread = {name: () for name in ("candidate_codes", "request_codes") if name not in self.inputs}
        model = Logistic(LogisticConfig(), replace(self.features, event_fields=(), **unread))
        return model.fit(train, validation, replace(how, **Logistic.recipe), progress).places

    def _matrix(self, feeds: Mapping[str, npt.NDArray[Any]], chosen: BoolArray) -> FloatArray:
        """float32, shape (n, F): the columns of the chosen candidates, bool of (B, C), list after list."""
        lists = np.nonzero(chosen)[0]
        parts = [
            feeds[name][..., list(columns.read)][chosen if name.startswith("candidate") else lists]
            for name, columns in self.columns.items()
        ]
        return np.concatenate(parts, axis=1, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """The validation lists.

    Attributes:
        x: float32, shape (n, F): their candidates.
        there: bool, shape (R, C): where those stand.
        labels: float32, shape (R, C, T).
        added: float32, shape (R, C, T): what places add. A list that was shown was clicked by its places too, so an
            order without them would be judged by the wrong clicks.
    """

    x: FloatArray
    there: BoolArray
    labels: FloatArray
    added: FloatArray

    @classmethod
    def of(cls, matrix: Callable[..., FloatArray], lists: Arrays, places: FloatArray) -> _HeldOut:
        there = np.asarray(~np.isnan(lists.labels).all(axis=2))
        added = places[lists.positions.clip(0, len(places) - 1)]
        return cls(matrix(lists.feeds, there), there, lists.labels, added)

    def ndcg(self, said: npt.NDArray[np.float64], t: int) -> float:
        """The mean NDCG@10 of a task over the lists where it was fulfilled; NaN without any.

        Args:
            said: float64, shape (n,): logits of the candidates.
        """
        labels = self.labels[:, :, t]
        scores = np.zeros(labels.shape, dtype=np.float32)
        scores[self.there] = said
        scores = np.where(np.isnan(labels), -np.inf, scores + self.added[:, :, t])
        each = ndcg(scores, np.nan_to_num(labels))
        return float(np.nanmean(each)) if np.isfinite(each).any() else math.nan

    def line(self, said: npt.NDArray[np.float64], t: int) -> Platt | None:
        """What makes logits of what a forest says, float64 of shape (n,); None where no rising line does."""
        labels = self.labels[:, :, t][self.there]
        known = ~np.isnan(labels)
        if not 0 < labels[known].sum() < np.count_nonzero(known):
            return None
        return calibration.platt(expit(said[known]), labels[known])


def drawn(labels: FloatArray, negatives: int, most: int, rng: np.random.Generator) -> BoolArray:
    """bool, shape (R, C): the candidates to learn from.

    Args:
        labels: float32, shape (R, C, T); where all are NaN there is no candidate.
        negatives: of each list, so many without any feedback are drawn; 0 takes all.
        most: of the lists together; see `TreesConfig.max_rows`.
        rng: of the draws.
    """
    has = (labels > 0).any(axis=2)
    others = np.asarray(~has & ~np.isnan(labels).all(axis=2))
    if negatives and others.shape[1] > negatives:
        keys = np.where(others, rng.random(others.shape), np.inf)
        places = np.argsort(keys, axis=1, kind="stable")[:, :negatives]
        kept = np.zeros_like(others)
        np.put_along_axis(kept, places, True, axis=1)
        others &= kept
    fulfilled, count = int(has.sum()), int(others.sum())
    room = max(most - fulfilled, fulfilled)
    if count > room:
        kept = rng.permutation(count) < room
        others[others] = kept
    return has | others


def _library() -> Any:
    """LightGBM, which wants OpenMP of the system.

    Raises:
        MissingLibrary: it cannot be loaded.
    """
    try:
        return importlib.import_module("lightgbm")
    except (ImportError, OSError) as error:
        raise MissingLibrary(
            f"trees are grown by LightGBM, which cannot be loaded ({error}); install the train extra, and the system's "
            "OpenMP (Debian: apt-get install libgomp1)"
        ) from error


def _columns(name: str, features: FeatureSet, max_codes: int) -> Columns:
    """All numbers, and the codes of small categories of one column."""
    fields = getattr(features, name)
    if name.endswith("_numbers"):
        return Columns(len(fields), tuple(range(len(fields))))
    starts = np.cumsum([0, *(category.width for category in fields)]).tolist()
    small = [at for at, category in enumerate(fields) if category.width == 1 and category.size <= max_codes]
    return Columns(starts[-1], tuple(starts[at] for at in small))


def _base(share: float, offsets: npt.NDArray[np.float64]) -> float:
    """The number that, added to all offsets, makes their mean probability a share."""
    if not offsets.any():
        return math.log(share / (1 - share))
    return float(brentq(lambda base: float(expit(base + offsets).mean()) - share, -50.0, 50.0))


def _steeper(node: dict[str, Any], slope: float) -> dict[str, Any]:
    """A tree whose leaves say `slope` times as much."""
    out = {**node, "leaf_value": slope * node["leaf_value"]} if "leaf_value" in node else dict(node)
    for child in {"left_child", "right_child"} & {*node}:
        out[child] = _steeper(node[child], slope)
    return out


def _raw(forest: lightgbm.Booster, x: FloatArray, start: int, rounds: int) -> npt.NDArray[np.float64]:
    """float64, shape (n,): the sum of some rounds' trees; of no round it is 0."""
    if not rounds or not len(x):
        return np.zeros(len(x))
    said = forest.predict(x, raw_score=True, start_iteration=start, num_iteration=rounds, num_threads=1)
    return np.asarray(said, dtype=np.float64)


def _dumped(forest: lightgbm.Booster, rounds: int) -> list[dict[str, Any]]:
    return forest.dump_model(num_iteration=rounds)["tree_info"] if rounds else []
