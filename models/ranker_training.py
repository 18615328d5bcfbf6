"""How rankers learn: options, what fitting leaves behind, and the loop that all networks share.

    loss = sum over tasks of weight * mean binary cross-entropy of (logit + what its place on the page adds)

What a place adds is one number per place and task, learnt beside the model and left behind: a served list is scored as
if each candidate stood first. Lists that were never shown have no places, and nothing is added.

Source of the additive place: Guo et al. (2019), "PAL: A Position-bias Aware Learning Framework for CTR Prediction in
Live Recommender Systems", section 3, in its additive form (logits instead of probabilities).
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from models.calibration import group_auc, shifted
from models.errors import Diverged, EmptyLog, InvalidOption
from models.export import trace
from models.lists import Arrays
from models.progress import Progress
from models.train import Interruption, averaged, move
from retrieval.sequences import FloatArray

LAST_POSITION = 500  # places further down count as this one
PLACES_RATE = 0.05  # learning rate of what places add: they must be there before the model has learnt to do without


@dataclass(frozen=True)
class RankerTraining:
    """How to fit a ranker. Trees and regressions leave the options of gradient descent unread.

    Attributes:
        learning_rate: of Adam.
        decay: L2 weight decay.
        batch: lists per step.
        epochs: at most.
        patience: epochs without a better validation figure before the run ends.
        negatives: candidates without any feedback that are drawn from each list anew in each epoch; 0 takes all.
        task_weights: weight of each task's loss in the order of the tasks; empty means 1 each.
        average: decay per step of the moving average of weights that is judged and kept; 0 is off. A few thousand lists
            are learnt by heart within an epoch or two, and the mean over steps forgets what single lists said.
        listwise: weight of a softmax cross-entropy over each list (its first task) beside the pointwise losses.
        seed: of weights, order, dropout and drawn candidates.
        threads: cores that may be used.
    """

    learning_rate: float = 1e-3
    decay: float = 1e-5
    batch: int = 16
    epochs: int = 40
    patience: int = 5
    negatives: int = 0
    task_weights: str = ""
    average: float = 0.99
    listwise: float = 0.0
    seed: int = 1
    threads: int = 2

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        for name in ("learning_rate", "batch", "epochs", "patience", "threads"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidOption(f"{name} {getattr(self, name)} must be above zero")
        for name in ("decay", "negatives", "listwise", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidOption(f"{name} {getattr(self, name)} must not be negative")
        if not 0 <= self.average < 1:
            raise InvalidOption(f"average {self.average} must be at least 0 and below 1")

    def weights(self, tasks: int) -> list[float]:
        """The weight of each task.

        Raises:
            InvalidOption: not one number each.
        """
        if not self.task_weights:
            return [1.0] * tasks
        try:
            found = [float(part) for part in self.task_weights.split(",")]
        except ValueError:
            found = []
        if len(found) != tasks or not all(0 <= weight < math.inf for weight in found):
            raise InvalidOption(f"task_weights {self.task_weights!r}: {tasks} numbers of 0 or more were expected")
        return found


@dataclass(frozen=True, eq=False)
class Fitted:
    """What fitting leaves behind, beside the model.

    Attributes:
        facts: for the manifest: epochs, best epoch, seconds.
        places: float32, shape (P + 1, T): what a place adds to a logit; 0 for places 0 (unknown) and 1.
    """

    facts: Mapping[str, Any]
    places: FloatArray


def descend(model: Any, train: Arrays, validation: Arrays, how: RankerTraining, progress: Progress) -> Fitted:
    """Fits a network in place, and leaves it with the weights of the best epoch.

    Args:
        model: a module whose `forward(*feeds)` gives logits (B, C, T), its feeds those of `model.inputs`.

    Raises:
        EmptyLog: there is no list to learn from.
        Diverged: the loss stopped being a number.
    """
    if not len(train):
        raise EmptyLog("there is no list to learn from; give a log with more users, or a longer part of it to training")
    torch.set_num_threads(how.threads)
    torch.manual_seed(how.seed)
    tasks = train.labels.shape[2]
    weights = torch.tensor(how.weights(tasks))
    last = min(LAST_POSITION, int(train.positions.max(initial=0)))
    places = torch.nn.Parameter(torch.zeros(last + 1, tasks))
    groups: list[dict[str, Any]] = [
        {"params": list(model.parameters()), "weight_decay": how.decay},
        {"params": [places], "lr": max(how.learning_rate, PLACES_RATE)},
    ]
    optimiser = torch.optim.Adam(groups, lr=how.learning_rate)
    mean_places = places.detach().clone()
    average = {name: p.detach().clone() for name, p in model.named_parameters()} if how.average else {}
    best, best_epoch, kept = -math.inf, 0, None
    began, epoch, steps = time.monotonic(), 0, 0
    while epoch < how.epochs and epoch - best_epoch < how.patience:
        model.train()
        total, batches = 0.0, plan(len(train), how.batch, seed=how.seed, epoch=epoch)
        rng = np.random.default_rng((how.seed, epoch, 1))
        with Interruption() as interruption:
            for which in progress.bar(batches, f"epoch {epoch + 1}", unit="batch"):
                feeds, labels, positions = drawn(train, which, how.negatives, rng)
                logits = model(*tensors(model.inputs, feeds))
                at = torch.from_numpy(positions.clip(0, last))
                # Places 0 (unknown) and 1 (what serving means) add nothing.
                logits = logits + torch.where((at > 1)[..., None], places[at], 0.0)
                loss = losses(logits, torch.from_numpy(labels), weights, how.listwise)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                # A mean over fewer steps at first, or a short run would be judged by what it began with.
                share = min(how.average, (1 + steps) / (10 + steps))
                if average:
                    move(average, model, share)
                mean_places.lerp_(places.detach(), 1.0 - share)
                steps += 1
                total += float(loss.detach())
                if not math.isfinite(total):
                    raise Diverged(f"the loss is {total} in epoch {epoch + 1}; lower --set learning_rate=")
                if interruption.asked:
                    raise KeyboardInterrupt
        epoch += 1
        with averaged(model, average):
            reached = grade(model.probabilities, validation, mean_places.numpy())
            better = reached > best
            if better:
                best, best_epoch = reached, epoch
                kept = copy.deepcopy(model.state_dict()), mean_places.clone()
        minutes = (time.monotonic() - began) / 60
        progress.say(
            f"epoch {epoch:3d}  loss {total / len(batches):.5f}  validation AUC {reached:.4f} "
            f"{'*' if better else ' '} {minutes:5.1f} min"
        )
    added = np.zeros(places.shape, dtype=np.float32)
    if kept is not None:
        model.load_state_dict(kept[0])
        added[2:] = kept[1].numpy()[2:]
    model.eval()
    return Fitted({"epochs_run": epoch, "best_epoch": best_epoch, "seconds": round(time.monotonic() - began, 1)}, added)


def log_odds(labels: FloatArray) -> FloatArray:
    """float32, shape (T,): of each task's share among known labels (R, C, T), where a network's last bias may start."""
    known = (~np.isnan(labels)).sum(axis=(0, 1))
    # As if one success and one failure had been seen beside: finite for a task that never or always happens.
    share = (np.nansum(labels, axis=(0, 1)) + 1) / (known + 2)
    return np.log(share / (1 - share)).astype(np.float32)


def losses(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, listwise: float) -> torch.Tensor:
    """One number: the weighted pointwise losses, and the listwise one.

    Args:
        logits: (B, C, T).
        labels: (B, C, T), NaN where nobody knows.
        weights: (T,).
        listwise: weight of the softmax cross-entropy of the first task over each list.
    """
    known = ~labels.isnan()
    target = torch.where(known, labels, 0.0)
    each = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    means = torch.where(known, each, 0.0).sum(dim=(0, 1)) / known.sum(dim=(0, 1)).clamp(min=1)
    loss = (weights * means).sum()
    if listwise:
        first = torch.where(known[..., 0], logits[..., 0], -math.inf)
        wanted = target[..., 0]
        has = wanted.sum(dim=1) > 0
        if has.any():
            log_shares = functional.log_softmax(first[has], dim=1)
            own = torch.where(wanted[has] > 0, log_shares, 0.0).sum(dim=1) / wanted[has].sum(dim=1)
            loss = loss - listwise * own.mean()
    return loss


def plan(lists: int, batch: int, *, seed: int, epoch: int) -> list[npt.NDArray[np.int64]]:
    """The batches of one epoch: the same for the same seed and epoch."""
    order = np.random.default_rng((seed, epoch)).permutation(lists)
    return [order[start : start + batch] for start in range(0, lists, batch)]


def drawn(
    arrays: Arrays, which: npt.NDArray[np.int64], negatives: int, rng: np.random.Generator
) -> tuple[dict[str, npt.NDArray[Any]], FloatArray, npt.NDArray[np.int64]]:
    """Feeds, labels and places of some lists; all candidates with feedback, and `negatives` of the others at random."""
    feeds, labels, positions = arrays.batch(which), arrays.labels[which], arrays.positions[which]
    if not negatives or labels.shape[1] <= negatives:
        return feeds, labels, positions
    has = (labels > 0).any(axis=2)
    absent = np.isnan(labels).all(axis=2)
    key = rng.random(has.shape) - 2.0 * has + 2.0 * absent  # what has feedback first, what is not there last
    width = min(labels.shape[1], negatives + int(has.sum(axis=1).max()))
    # In the order of the list, so that equal draws are equal arrays whatever the sort does.
    places = np.sort(np.argpartition(key, width - 1, axis=1)[:, :width], axis=1)
    lines = np.arange(len(which))[:, None]
    cut = {name: feed[lines, places] if name.startswith("candidate") else feed for name, feed in feeds.items()}
    return cut, labels[lines, places], positions[lines, places]


def tensors(inputs: Sequence[str], feeds: Mapping[str, npt.NDArray[Any]]) -> list[torch.Tensor]:
    """The feeds of a network, in the order of its `forward`."""
    return [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in inputs]


@torch.no_grad()
def network_probabilities(model: Any, feeds: Mapping[str, npt.NDArray[Any]]) -> FloatArray:
    """float32, shape (B, C, T): what a network says, in evaluation mode."""
    was = model.training
    model.eval()
    said: FloatArray = torch.sigmoid(model(*tensors(model.inputs, feeds))).numpy()
    model.train(was)
    return said


def grade(
    probabilities: Callable[[Mapping[str, npt.NDArray[Any]]], FloatArray],
    arrays: Arrays,
    places: FloatArray | None = None,
) -> float:
    """The mean over tasks of the mean AUC within lists that hold both outcomes; 0 where there is none.

    A hundred held-out lists say little of the first ten places, and much of the order as a whole.

    Args:
        probabilities: of a batch of feeds.
        arrays: lists.
        places: what each place adds, as `Fitted` has it. Lists that were shown have clicks of their places too: judged
            without them, a model would be the better the more of that bias it has taken for taste.
    """
    said = np.zeros(arrays.labels.shape, dtype=np.float32)
    for start in range(0, len(arrays), 64):
        which = np.arange(start, min(start + 64, len(arrays)))
        said[which] = probabilities(arrays.batch(which))
    if places is not None:
        said = shifted(said, places[arrays.positions.clip(0, len(places) - 1)])
    lists = np.broadcast_to(np.arange(len(arrays))[:, None], arrays.labels.shape[:2])
    aucs = []
    for t in range(arrays.labels.shape[2]):
        known = ~np.isnan(arrays.labels[:, :, t])
        if known.any():
            aucs.append(group_auc(said[:, :, t][known], arrays.labels[:, :, t][known], lists[known]))
    found = [auc for auc in aucs if not math.isnan(auc)]
    return float(np.mean(found)) if found else 0.0


def ndcg(scores: FloatArray, gains: FloatArray, k: int = 10) -> FloatArray:
    """float32, shape (B,): NDCG@k with linear gains; NaN for lists without any.

    Source:
        Järvelin and Kekäläinen (2002), "Cumulated gain-based evaluation of IR techniques", section 2.
    """
    places = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    discounts = 1 / np.log2(np.arange(2, places.shape[1] + 2))
    got = (np.take_along_axis(gains, places, axis=1) * discounts).sum(axis=1)
    ideal = (-np.sort(-gains, axis=1)[:, : places.shape[1]] * discounts).sum(axis=1)
    return np.where(ideal > 0, got / np.where(ideal > 0, ideal, 1), np.nan).astype(np.float32)


class _Probabilities(torch.nn.Module):
    """A network with the sigmoid that serving wants."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *feeds: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.model(*feeds))


def write_network(model: Any, path: Path, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes a network's ONNX graph with dynamic B, C and L.

    Args:
        feeds: an example with at least two requests, two candidates and two events.
    """
    b, c, length = (torch.export.Dim(name) for name in ("B", "C", "L"))
    shapes: dict[str, dict[int, Any]] = {
        "candidate_codes": {0: b, 1: c},
        "candidate_numbers": {0: b, 1: c},
        "request_codes": {0: b},
        "request_numbers": {0: b},
        "event_codes": {0: b, 1: length},
        "event_behaviours": {0: b, 1: length},
    }
    model.eval()
    trace(
        _Probabilities(model),
        tuple(tensors(model.inputs, feeds)),
        tuple(shapes[name] for name in model.inputs),
        path,
        inputs=model.inputs,
        outputs=("probabilities",),
    )
