"""Estimates of a policy from the log of another, held against what its own log says.

    python -m models off-policy --events data/obd-small

Where two policies ran side by side, each has a log of its own, and the mean click there is what an estimate from the
other log ought to find. That mean is itself uncertain: it rests on as many clicks as its log holds.

Source:
    Saito, Aihara, Matsutani and Narita (2020), arXiv 2008.07146, section 5: the relative estimation error.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from models import comparison
from models.bandit import (
    READINGS,
    BanditLog,
    Likeness,
    learn_policy,
    likeness,
    predict_rewards,
    read_bandit,
    refuse_uneven,
    uniform,
)
from models.export import git_commit
from models.intake import OnBadRow
from models.off_policy import Estimate, Feedback, Values, direct, doubly_robust, ips, on_policy, snips
from models.progress import Progress
from retrieval.errors import InvalidInput

RANDOM, SAMPLER = "random", "bts"
CAMPAIGNS = ("men", "women")
SLICES_S = (None, 6 * 3600.0)  # the sampler's probabilities swing within a day; single hours hold too few rows

_HEAD = (
    *("campaign", "policy", "log", "estimator", "clicks/1,000, variance", "bootstrap"),
    *("effective rows", "error", "apart", "truth within"),
)


@dataclass(frozen=True)
class Line:
    """One estimate of one policy in one campaign.

    Attributes:
        campaign: in which.
        policy: which is estimated.
        log: the policy whose log was used.
        estimate: what came out.
        truth: the mean of the policy's own log.
    """

    campaign: str
    policy: str
    log: str
    estimate: Estimate
    truth: Estimate

    @property
    def relative_error(self) -> float | None:
        """|estimate - truth| / truth; None where the truth is 0."""
        return abs(self.estimate.value - self.truth.value) / self.truth.value if self.truth.value else None

    @property
    def distance(self) -> float | None:
        """Estimate less truth, in standard errors of that difference; None where that error is 0."""
        error = np.hypot(self.estimate.standard_error, self.truth.standard_error)
        return float((self.estimate.value - self.truth.value) / error) if error else None

    @property
    def holds(self) -> dict[str, bool]:
        """Whether the truth lies within the interval, for both kinds."""
        ends = {"variance": self.estimate.interval, "bootstrap": self.estimate.bootstrap}
        return {name: low <= self.truth.value <= high for name, (low, high) in ends.items()}


@dataclass(frozen=True)
class Weighing:
    """What the weights from one policy's log to another policy look like.

    Attributes:
        campaign, policy, log: as in `Line`.
        mean: 1 but for chance where the logged propensities are right.
        largest: of the weights.
        clip: at which the clipped estimators cut them.
    """

    campaign: str
    policy: str
    log: str
    mean: float
    largest: float
    clip: float

    def __str__(self) -> str:
        """One sentence."""
        return (
            f"{self.policy} from the log of {self.log}, {self.campaign}: weights have mean {self.mean:.2f}, the "
            f"largest is {self.largest:,.1f}, clipped at {self.clip:,.0f}"
        )


@dataclass(frozen=True)
class Choice:
    """One way to learn the sampler's policy, how like it is, and what it does to the estimate."""

    campaign: str
    likeness: Likeness
    estimate: Estimate


@dataclass(frozen=True)
class BanditComparison:
    """All estimates beside the truth.

    Attributes:
        lines: campaign by campaign; a policy's own log first.
        weighings: one per campaign and direction.
        choices: ways to learn the sampler's policy.
        propensity_loss: by campaign, the log loss of the logged propensities themselves: nothing learnt can be better.
        digest: of all files read.
    """

    lines: Sequence[Line]
    weighings: Sequence[Weighing]
    choices: Sequence[Choice]
    propensity_loss: dict[str, float]
    digest: str

    def to_json(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        return {
            "lines": [
                asdict(line) | {"relative_error": line.relative_error, "distance": line.distance, "holds": line.holds}
                for line in self.lines
            ],
            "weights": [asdict(weighing) for weighing in self.weighings],
            "choices": [asdict(choice) for choice in self.choices],
            "propensity_loss": self.propensity_loss,
        }

    def __str__(self) -> str:
        """Two Markdown tables and a line on each direction's weights; rewards are clicks per 1,000 impressions."""
        estimates = _table(
            _HEAD,
            [_cells(line) for line in self.lines],
        )
        choices = _table(
            ["campaign", "policy read as", "slices", "log loss", "distance", "ips, clicks/1,000"],
            [
                [
                    choice.campaign,
                    choice.likeness.reading,
                    "none" if choice.likeness.slice_s is None else f"{choice.likeness.slice_s / 3600:g} h",
                    f"{choice.likeness.log_loss:.3f}",
                    f"{choice.likeness.distance:.3f}",
                    _value(choice.estimate),
                ]
                for choice in self.choices
            ],
        )
        bound = ", ".join(f"{campaign} {loss:.3f}" for campaign, loss in self.propensity_loss.items())
        return "\n".join(
            [
                *estimates,
                "",
                *(f"* {weighing}." for weighing in self.weighings),
                "",
                f"Ways to learn the policy of {SAMPLER} from its log, judged on rows held out (log loss of the logged "
                f"propensities themselves: {bound}):",
                "",
                *choices,
            ]
        )

    def append(self, path: Path, *, command: str) -> None:
        """Adds the tables to a results file."""
        comparison.append_results(
            path,
            self,
            title="off-policy estimates, Open Bandit sample",
            date=datetime.now(UTC).date().isoformat(),
            command=command,
            commit=git_commit(),
            data_digest=self.digest,
        )


def compare_bandits(
    directory: Path,
    campaigns: Sequence[str] = CAMPAIGNS,
    *,
    seed: int = 0,
    on_bad_row: OnBadRow = "fail",
    progress: Progress,
) -> BanditComparison:
    """Estimates both policies of every campaign from each other's logs.

    Args:
        directory: with `random` and `bts` in it.
        campaigns: names of their files.
        seed: of the bootstrap and of the folds.

    Raises:
        InvalidInput: no campaign is named, or the two logs of one are not of the same items.
        InvalidPolicy: the log of `random` is not of uniform chance.
        DataError: a file cannot be read.
        NoOverlap: one policy shows nothing of what the other does.
    """
    names = tuple(dict.fromkeys(campaigns))
    if not names:
        raise InvalidInput("no campaign is named; name some, for example men,women")
    lines, weighings, choices, losses, digests = [], [], [], {}, []
    for campaign in names:
        logs = {policy: read_bandit(directory, policy, campaign, on_bad_row=on_bad_row) for policy in (RANDOM, SAMPLER)}
        even, sampled = logs[RANDOM], logs[SAMPLER]
        if even.items != sampled.items:
            raise InvalidInput(f"the item contexts of {RANDOM} and {SAMPLER} in {campaign} list different items")
        refuse_uneven(even)
        for log in (even, sampled):
            digests.append(log.digest)
            progress.say(f"{campaign}, log of {log.policy}: {len(log):,} impressions, {log.clicks.sum():,.0f} clicks")
            for reason, skipped in log.report.skipped.items():
                progress.say(f"  skipped {skipped.count:,}: {reason}; {skipped.examples[0]}")
        learnt = learn_policy(sampled)
        for log, target, rows in ((even, sampled, learnt.rows(even)), (sampled, even, uniform(sampled))):
            feedback = _feedback(log, rows)
            truth = on_policy(target.clicks, seed=seed)
            clip = float(np.sqrt(len(log)))
            lines.append(Line(campaign, target.policy, target.policy, truth, truth))
            lines += [
                Line(campaign, target.policy, log.policy, estimate, truth)
                for estimate in estimates(feedback, predict_rewards(log, seed=seed), clip=clip, seed=seed)
            ]
            weights = feedback.weights()
            weighings.append(
                Weighing(campaign, target.policy, log.policy, float(weights.mean()), float(weights.max()), clip)
            )
        for slice_s in SLICES_S:
            for reading in READINGS:
                rows = learn_policy(sampled, reading, slice_s).rows(even)
                estimate = ips(_feedback(even, rows), seed=seed)
                choices.append(Choice(campaign, likeness(sampled, reading, slice_s), estimate))
        losses[campaign] = float(-np.log(sampled.propensities).mean())
    return BanditComparison(lines, weighings, choices, losses, hashlib.sha256("".join(digests).encode()).hexdigest())


def estimates(feedback: Feedback, predicted: Values, *, clip: float, seed: int = 0) -> list[Estimate]:
    """Every estimator on the same feedback, the weighted ones also with clipped weights."""
    return [
        ips(feedback, seed=seed),
        ips(feedback, clip=clip, seed=seed),
        snips(feedback, seed=seed),
        snips(feedback, clip=clip, seed=seed),
        direct(feedback, predicted, seed=seed),
        doubly_robust(feedback, predicted, seed=seed),
        doubly_robust(feedback, predicted, clip=clip, seed=seed),
    ]


def _feedback(log: BanditLog, policy: Values) -> Feedback:
    return Feedback(log.actions, log.clicks, log.propensities, policy)


def _cells(line: Line) -> list[str]:
    estimate = line.estimate
    cells = [line.campaign, line.policy, line.log, estimate.name, _value(estimate), _interval(estimate.bootstrap)]
    if line.policy == line.log:
        return [*cells, f"{estimate.effective_size:,.0f}", "", "", "is the truth"]
    holding = [name for name, is_held in line.holds.items() if is_held]
    return [
        *cells,
        f"{estimate.effective_size:,.0f}",
        "" if line.relative_error is None else f"{line.relative_error:.1%}",
        "" if line.distance is None else f"{line.distance:+.2f}",
        {0: "no", 1: f"{''.join(holding)} only", 2: "yes"}[len(holding)],
    ]


def _value(estimate: Estimate) -> str:
    return f"{1000 * estimate.value:.2f} {_interval(estimate.interval)}"


def _interval(ends: tuple[float, float]) -> str:
    return f"[{1000 * ends[0]:.2f}, {1000 * ends[1]:.2f}]"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, its columns aligned so that a terminal shows it as well."""
    widths = [max(len(cells[at]) for cells in [head, *body]) for at in range(len(head))]
    rows = [head, ["-" * width for width in widths], *body]
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
