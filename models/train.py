"""The training loop, to be read from top to bottom.

One epoch visits every user's windows once, in batches of similar length. After each epoch the model is judged by
NDCG@10 on the validation cases; the best weights so far are kept, and the run ends when they have not improved for
`patience` epochs. A checkpoint is written after every epoch and at least once a minute, so a run killed at any moment
goes on with `resume` and ends as if it had not been killed.
"""

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models import checkpoint, losses
from models.errors import CheckpointError, Diverged, InvalidOption
from models.histories import Histories
from models.progress import Progress
from models.scoring import tensors
from retrieval.errors import InvalidInput
from retrieval.inputs import Request
from retrieval.sequences import PAD_ROW, window

CHECKPOINT = "checkpoint.npz"
CHECKPOINT_EVERY_S = 60.0
POOL = 16  # batches whose windows are sorted by length together: little padding, and still a shuffled epoch


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Which of these a family changes by default stands in its `recipe`.

    Attributes:
        loss: `softmax`, `sampled`, `gbce` or `bce`.
        negatives: per batch for `sampled`, per position for `gbce`.
        calibration: t of gBCE.
        learning_rate: of Adam.
        beta2: of Adam.
        decay: `constant`, or `cosine` down to a twentieth of the rate at the last epoch.
        warmup: batches in which the rate rises to its full height.
        batch: windows per step.
        epochs: at most.
        patience: epochs without a better NDCG@10 before the run ends.
        windows: `last` trains on the newest window of each user, `all` on every stretch of a long history, cut at
            another place each epoch.
        average: decay per step of the exponential moving average of weights that is judged and exported; 0 is off.
        seed: of weights, order, dropout and negatives.
        threads: cores that torch may use.
    """

    loss: str = "softmax"
    negatives: int = 512
    calibration: float = 0.75
    learning_rate: float = 1e-3
    beta2: float = 0.98
    decay: str = "cosine"
    warmup: int = 0
    batch: int = 64
    epochs: int = 40
    patience: int = 8
    windows: str = "all"
    average: float = 0.0
    seed: int = 1
    threads: int = 2

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        choices = {"loss": losses.LOSSES, "decay": ("constant", "cosine"), "windows": ("last", "all")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InvalidOption(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")
        for name in ("batch", "epochs", "patience", "negatives", "threads", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidOption(f"{name} {getattr(self, name)} must be above zero")
        for name in ("beta2", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidOption(f"{name} {getattr(self, name)} must be at least 0 and below 1")
        if not 0 <= self.calibration <= 1:
            raise InvalidOption(f"calibration {self.calibration} must be between 0 and 1")
        if min(self.warmup, self.seed) < 0:
            raise InvalidOption(f"warmup {self.warmup} and seed {self.seed} must not be negative")


@dataclass
class Position:
    """Where a run stands: epochs done, batches done in the running one and their loss, and the best validation."""

    epoch: int = 0
    batch: int = 0
    loss: float = 0.0
    best: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0


def train(
    model: Any,
    histories: Histories,
    *,
    config: TrainConfig,
    judge: Callable[[Any], float] | None,
    directory: Path,
    identity: Mapping[str, Any],
    progress: Progress,
    resume: bool = False,
) -> Position:
    """Trains `model` in place and leaves it with the best weights.

    Args:
        model: a registered family.
        histories: the training part of the data.
        config: how.
        judge: NDCG@10 on validation cases, higher is better; None where nothing is held out, and then every epoch is
            run and the last weights are kept.
        directory: where `checkpoint.npz`, `best.npz` and `log.jsonl` go.
        identity: what the run is made from (model, options, data digest); a checkpoint of another identity is refused.
        progress: where lines and bars go.
        resume: go on from the checkpoint in `directory`.

    Returns:
        Where the run ended.

    Raises:
        Diverged: the loss stopped being a number.
        CheckpointError: nothing to resume, or a checkpoint of another run.
        KeyboardInterrupt: a checkpoint stands, unless not one batch was done.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    directory.mkdir(parents=True, exist_ok=True)
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=(0.9, config.beta2), eps=1e-8)
    average = {name: p.detach().clone() for name, p in model.named_parameters()} if config.average else {}
    at = Position()
    if resume:
        arrays, facts = checkpoint.load(directory / CHECKPOINT)
        if facts["identity"] != json.loads(json.dumps(identity)):
            raise CheckpointError(
                f"the checkpoint in {directory} is of another run ({facts['identity']}); "
                "go on with its options and its data, or start afresh with --overwrite"
            )
        checkpoint.restore(arrays, model, optimiser)
        average = {name: torch.from_numpy(arrays[f"average/{name}"].copy()) for name in average}
        at = Position(**facts["position"])
        progress.say(f"resumed in epoch {at.epoch + 1} after {at.batch} batches, best NDCG@10 {at.best:.4f}")

    loss_of = objective(model, histories, config)

    def save() -> None:
        arrays = checkpoint.state_of(model, optimiser) | {f"average/{n}": p.numpy() for n, p in average.items()}
        checkpoint.save(directory / CHECKPOINT, arrays=arrays, facts={"identity": identity, "position": asdict(at)})

    def keep_best(ndcg: float) -> None:
        at.best, at.best_epoch = ndcg, at.epoch
        arrays = {f"model/{n}": p.detach().numpy() for n, p in model.state_dict().items()}
        checkpoint.save(directory / "best.npz", arrays=arrays, facts={"identity": identity, "position": asdict(at)})

    while at.epoch < config.epochs and (judge is None or at.epoch - at.best_epoch < config.patience):
        started = saved = time.monotonic()
        seconds_before = at.seconds
        batches = plan(histories, config, window_length=model.config.window, epoch=at.epoch)
        usual = sum(int(b[:, 1].sum() - len(b)) for b in batches) / len(batches)  # positions of a batch, on average
        model.train()
        with Interruption() as interruption:
            for batch in progress.bar(batches[at.batch :], f"epoch {at.epoch + 1}", done=at.batch, unit="batch"):
                done = at.epoch * len(batches) + at.batch
                for group in optimiser.param_groups:
                    group["lr"] = rate(config, step=done, steps=config.epochs * len(batches))
                mean, positions = step(model, histories, batch, loss_of)
                optimiser.zero_grad()
                # Batches hold windows of similar length, so their sizes differ; each position shall weigh the same.
                (mean * (positions / usual)).backward()
                optimiser.step()
                if average:
                    # A mean over fewer steps at first, or a short run would be judged by what it began with.
                    move(average, model, min(config.average, (1 + done) / (10 + done)))
                value = float(mean.detach())
                if not math.isfinite(value):
                    raise Diverged(f"the loss is {value} in epoch {at.epoch + 1}; lower --set learning_rate=")
                at.loss, at.batch = at.loss + value, at.batch + 1
                at.seconds = seconds_before + time.monotonic() - started
                if interruption.asked:
                    break
                if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                    save()
                    saved = time.monotonic()
        save()  # before judging too, which may take as long as the epoch and may be interrupted
        if interruption.asked:
            progress.say(f"stopped in epoch {at.epoch + 1} after {at.batch} of {len(batches)} batches")
            raise KeyboardInterrupt
        loss, at.epoch, at.batch, at.loss = at.loss / len(batches), at.epoch + 1, 0, 0.0
        with averaged(model, average):
            ndcg = judge(model) if judge else 0.0
            at.seconds = seconds_before + time.monotonic() - started
            better = judge is None or ndcg > at.best
            if better:
                keep_best(ndcg)
        save()
        line = {"epoch": at.epoch, "loss": loss, "ndcg@10": ndcg, "seconds": round(at.seconds, 1)}
        with (directory / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
        progress.say(
            f"epoch {at.epoch:3d}  loss {loss:.4f}  validation NDCG@10 {ndcg:.4f}{' *' if better else ''}"
            f"  {at.seconds / 60:.1f} min"
        )
    if (directory / "best.npz").is_file():
        arrays, _ = checkpoint.load(directory / "best.npz")
        checkpoint.restore(arrays, model, None)
    return at


Objective = Callable[[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, int]]


def objective(model: Any, histories: Histories, config: TrainConfig) -> Objective:
    """What is minimised: the mean over the positions of a batch, and their number.

    A generator has a loss of its own. An encoder's query of each slot is compared with item vectors, as `config.loss`
    says. Both get the inputs, the rows that follow each slot (B, n), which slots are real, and the users (B,).
    """
    if model.stage == "generator":
        return lambda feeds, targets, real, _users: model.loss(feeds, targets, real)
    items = len(model.item_vectors()) - 1
    owned = np.unique(histories.users() * (items + 1) + histories.rows)
    sampler = losses.Sampler(items, torch.from_numpy(owned))
    loss = losses.objective(config.loss, sampler, negatives=config.negatives, calibration=config.calibration)

    def compared(
        feeds: tuple[torch.Tensor, ...], targets: torch.Tensor, real: torch.Tensor, users: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        hidden = model.hidden(*feeds)[real]  # (P, D)
        mean = loss(hidden, model.item_vectors(), targets[real], users.unsqueeze(-1).expand(real.shape)[real])
        return mean, len(hidden)

    return compared


def step(model: Any, histories: Histories, batch: np.ndarray, loss_of: Objective) -> tuple[torch.Tensor, int]:
    """The mean loss over one batch of windows, and how many positions it has.

    Args:
        batch: int64, shape (B, 3): first event, number of events, user. A window of n events has n - 1 positions.
    """
    length = int(batch[:, 1].max()) - 1
    past = [histories.span(int(s), int(s + n - 1)) for s, n, _ in batch]
    # What a position may know of the moment of asking: the time of the event that it has to predict.
    asked = [float(histories.timestamps[s + n - 1]) for s, n, _ in batch]
    rows = window([histories.rows[s : s + n - 1] for s, n, _ in batch], length=length, fill=PAD_ROW, dtype=np.int64)
    nexts = window([histories.rows[s + 1 : s + n] for s, n, _ in batch], length=length, fill=PAD_ROW, dtype=np.int64)
    feeds = tensors(model, [Request(h, t) for h, t in zip(past, asked, strict=True)], length=length)
    return loss_of(
        feeds, torch.from_numpy(nexts), torch.from_numpy(rows != PAD_ROW), torch.from_numpy(batch[:, 2].copy())
    )


def plan(histories: Histories, config: TrainConfig, *, window_length: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch: the same for the same seed and epoch, whenever it is asked.

    Returns:
        arrays of int64, shape (B, 3): first event, number of events, user.
    """
    rng = np.random.default_rng((config.seed, epoch))
    spans = np.array(list(_spans(histories, config.windows, window_length, rng)), dtype=np.int64).reshape(-1, 3)
    if not len(spans):
        raise InvalidInput("no user has two events in the training part, so nothing can be learnt; bring a longer log")
    spans = spans[rng.permutation(len(spans))]
    batches = []
    for start in range(0, len(spans), POOL * config.batch):
        pool = spans[start : start + POOL * config.batch]
        pool = pool[np.argsort(pool[:, 1], kind="stable")]
        batches += [pool[s : s + config.batch] for s in range(0, len(pool), config.batch)]
    return [batches[i] for i in rng.permutation(len(batches))]


def _spans(histories: Histories, windows: str, length: int, rng: np.random.Generator) -> Iterator[tuple[int, int, int]]:
    """(first event, number of events, user) of every window; n events are n - 1 inputs and their n - 1 targets."""
    for user, (start, end) in enumerate(
        zip(histories.offsets[:-1].tolist(), histories.offsets[1:].tolist(), strict=True)
    ):
        if end - start < 2:
            continue
        if windows == "last" or end - start <= length + 1:
            first = max(start, end - length - 1)
            yield first, end - first, user
            continue
        # Stretches of L targets with a random phase: over the epochs every event stands at every distance from the end.
        cut = end - int(rng.integers(0, length))
        if end - cut >= 1:
            first = max(start, end - length - 1)
            yield first, end - first, user
        while cut - start >= 2:
            first = max(start, cut - length - 1)
            yield first, cut - first, user
            cut -= length


def rate(config: TrainConfig, *, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    fall = 1.0
    if config.decay == "cosine":
        fall = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))
    return config.learning_rate * rise * fall


@torch.no_grad()
def move(average: dict[str, torch.Tensor], model: torch.nn.Module, decay: float) -> None:
    """One step of the moving average: a <- decay a + (1 - decay) w."""
    for name, parameter in model.named_parameters():
        average[name].lerp_(parameter, 1.0 - decay)


class Interruption:
    """Ctrl-C, held back until the step that it meets is done: within a step no checkpoint would be whole.

    A second Ctrl-C is not held back. Where something else than Python's own handler listens, nothing is changed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._is_ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )

    def __enter__(self) -> "Interruption":
        if self._is_ours:
            signal.signal(signal.SIGINT, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _hear(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class averaged:
    """Lends the averaged weights to the model for a block; does nothing where no average is kept."""

    def __init__(self, model: torch.nn.Module, average: Mapping[str, torch.Tensor]) -> None:
        self._model, self._average = model, average
        self._own: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __enter__(self) -> None:
        parameters = dict(self._model.named_parameters())
        for name, mean in self._average.items():
            self._own[name] = parameters[name].detach().clone()
            parameters[name].copy_(mean)

    @torch.no_grad()
    def __exit__(self, *_: object) -> None:
        parameters = dict(self._model.named_parameters())
        for name, own in self._own.items():
            parameters[name].copy_(own)
