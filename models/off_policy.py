"""What another policy would have earned, estimated from the log of the one that ran.

A logged row says which action was taken, with which probability (the propensity), and what it earned. The policy that
is asked about says with which probabilities it would have taken each action in the same place. Every estimator here is
a mean of the rows' contributions, or a quotient of two such means, so one function finds all intervals.

Notation of the formulas: n rows, action a_i, reward r_i, propensity p_i, evaluated policy pi_i, weight
w_i = pi_i(a_i) / p_i, predicted reward q_i(a).
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from models.errors import EmptyLog, InvalidPolicy, InvalidPropensity, InvalidReward, LengthMismatch, NoOverlap
from retrieval.errors import InvalidInput
from retrieval.sequences import IntArray

Values = npt.NDArray[np.float64]

LEVEL = 0.95
RESAMPLES = 1000
_NORMAL = NormalDist().inv_cdf((1 + LEVEL) / 2)  # 1.96 standard errors
_SUM_TOLERANCE = 1e-6
_BLOCK = 50  # resamples drawn at once: some megabytes for ten thousand rows
_FEWEST_RESAMPLES = 100


@dataclass(frozen=True, eq=False)
class Feedback:
    """Logged decisions with what came of them, and what the evaluated policy would have done in their place.

    Attributes:
        actions: int64, shape (n,). The logged action of each row, 0 to K - 1.
        rewards: float64, shape (n,). Clicks, or any other finite number.
        propensities: float64, shape (n,). With which probability the logging policy took that action, in (0, 1].
        policy: float64, shape (n, K). The evaluated policy's probability of every action in each row's place.
    """

    actions: IntArray
    rewards: Values
    propensities: Values
    policy: Values

    def __post_init__(self) -> None:
        """Checks what the estimators rely on.

        Raises:
            EmptyLog: there is no row.
            LengthMismatch: the arrays are not of one length.
            InvalidReward: a reward is NaN or infinite.
            InvalidPropensity: a propensity is not in (0, 1].
            InvalidPolicy: a probability is negative or NaN, a row does not sum to 1, or an action has no column.
            NoOverlap: the evaluated policy would never have taken a logged action.
        """
        lengths = {name: len(getattr(self, name)) for name in ("actions", "rewards", "propensities", "policy")}
        if len(set(lengths.values())) > 1 or self.policy.ndim != 2:
            raise LengthMismatch(
                f"{lengths}, policy of shape {self.policy.shape}; every row has one of each, and policy has a column "
                "for every action"
            )
        if not len(self.actions):
            raise EmptyLog("the log holds no decision, so nothing can be estimated from it; bring one with rows")
        _refuse(~np.isfinite(self.rewards), self.rewards, InvalidReward, "reward", "a reward is a finite number")
        wrong = ~((self.propensities > 0) & (self.propensities <= 1))
        rule = "a propensity is above 0 and at most 1, since what was logged was possible; correct or leave out the row"
        _refuse(wrong, self.propensities, InvalidPropensity, "propensity", rule)
        columns = self.policy.shape[1]
        wrong = (self.actions < 0) | (self.actions >= columns)
        rule = f"the policy has probabilities of actions 0 to {columns - 1} only; give it a column for every action"
        _refuse(wrong, self.actions, InvalidPolicy, "action", rule)
        lowest = self.policy.min(axis=1)  # NaN where any is
        _refuse(~(lowest >= 0), lowest, InvalidPolicy, "probability", "probabilities are not negative and not NaN")
        sums = self.policy.sum(axis=1)
        rule = "the probabilities of all actions sum to 1; divide each row by its sum"
        _refuse(~(np.abs(sums - 1) <= _SUM_TOLERANCE), sums, InvalidPolicy, "sum", rule)
        if not self.weights().any():
            raise NoOverlap(
                f"the evaluated policy would have taken none of the {len(self.actions):,} logged actions, so the log "
                "says nothing of it; log with a policy that tries everything at times"
            )

    def weights(self, clip: float | None = None) -> Values:
        """float64, shape (n,): w_i, at most `clip`; their mean is 1 but for chance where the two policies overlap.

        Raises:
            InvalidInput: `clip` is not above 0.
        """
        weights = self.policy[np.arange(len(self.actions)), self.actions] / self.propensities
        if clip is None:
            return weights
        if not clip > 0:
            raise InvalidInput(f"weights cannot be clipped at {clip}; a limit is above 0")
        return np.minimum(weights, clip)


@dataclass(frozen=True)
class Estimate:
    """A policy's mean reward, and how sure that is.

    Attributes:
        name: of the estimator.
        value: mean reward per row.
        standard_error: of the value, from the variance of the rows; infinite with a single row.
        interval: 95 %, value and 1.96 standard errors on either side. Not cut off at 0.
        bootstrap: 95 %, percentiles over resampled rows.
        effective_size: of how many equally weighted rows the weights are worth; n for an estimator without weights.
    """

    name: str
    value: float
    standard_error: float
    interval: tuple[float, float]
    bootstrap: tuple[float, float]
    effective_size: float


def on_policy(rewards: Values, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean reward of the policy that ran: mean r_i.

    Raises:
        EmptyLog, InvalidReward: there is no reward, or one is not finite.
    """
    if not len(rewards):
        raise EmptyLog("the log holds no decision, so its policy has no mean reward; bring one with rows")
    _refuse(~np.isfinite(rewards), rewards, InvalidReward, "reward", "a reward is a finite number")
    return _estimate("own log", rewards, np.ones(len(rewards)), float(len(rewards)), resamples, seed)


def ips(feedback: Feedback, *, clip: float | None = None, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Inverse propensity scores: mean w_i r_i. Unbiased where propensities are right and clip is None.

    Clipping at M trades bias (downward, for rewards that are not negative) for variance; M = sqrt(n) makes the bias
    vanish as the log grows.

    Source:
        Horvitz and Thompson (1952), "A Generalization of Sampling Without Replacement"; Ionides (2008), "Truncated
        Importance Sampling", section 2, for clipping at sqrt(n); Saito et al. (2020), arXiv 2008.07146, for its use
        on the Open Bandit data.
    """
    weights = feedback.weights(clip)
    gains = weights * feedback.rewards
    return _estimate(_named("ips", clip), gains, np.ones(len(gains)), effective_size(weights), resamples, seed)


def snips(feedback: Feedback, *, clip: float | None = None, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """Self-normalised inverse propensity scores: sum w_i r_i / sum w_i.

    Stays within the range of the rewards; biased by O(1 / n). Its variance is that of the linearised quotient, mean
    (w_i (r_i - value))^2 / (mean w_i)^2 / n.

    Source:
        Swaminathan and Joachims (2015), "The Self-Normalized Estimator for Counterfactual Learning", section 4; Owen
        (2013), "Monte Carlo theory, methods and examples", section 9.2, for the variance.
    """
    weights = feedback.weights(clip)
    gains = weights * feedback.rewards
    return _estimate(_named("snips", clip), gains, weights, effective_size(weights), resamples, seed)


def direct(feedback: Feedback, predicted: Values, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The direct method: mean over rows of sum_a pi_i(a) q_i(a). As right as the reward model, and no more.

    Its intervals hold the model fixed: they do not know how wrong that is.

    Args:
        predicted: float64, shape (n, K). q; the prediction for a row must not have been fitted to that row's reward.

    Source:
        Dudik, Langford and Li (2011), "Doubly Robust Policy Evaluation and Learning", section 2.
    """
    gains = _expected(feedback, predicted)
    return _estimate("dm", gains, np.ones(len(gains)), float(len(gains)), resamples, seed)


def doubly_robust(
    feedback: Feedback, predicted: Values, *, clip: float | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The direct method, corrected by the weighted residuals: mean of sum_a pi_i(a) q_i(a) + w_i (r_i - q_i(a_i)).

    Unbiased if the propensities are right, whatever the model; right also if the model is, whatever the propensities.

    Args:
        predicted: as in `direct`.

    Source:
        Dudik, Langford and Li (2011), "Doubly Robust Policy Evaluation and Learning", equation 1.
    """
    expected = _expected(feedback, predicted)
    weights = feedback.weights(clip)
    residuals = feedback.rewards - predicted[np.arange(len(weights)), feedback.actions]
    gains = expected + weights * residuals
    return _estimate(_named("dr", clip), gains, np.ones(len(gains)), effective_size(weights), resamples, seed)


def effective_size(weights: Values) -> float:
    """(sum w)^2 / sum w^2: between 1 and n.

    Source:
        Kish (1965), "Survey Sampling", section 11.7.
    """
    scaled = weights / weights.max()  # squares of very large weights would overflow
    return float(scaled.sum() ** 2 / (scaled**2).sum())


def _estimate(name: str, gains: Values, shares: Values, size: float, resamples: int, seed: int) -> Estimate:
    """mean gains / mean shares with its intervals; with shares all 1 that is a plain mean."""
    n = len(gains)
    value = float(gains.mean() / shares.mean())
    spread = (gains - value * shares) / shares.mean()
    error = float(np.sqrt((spread**2).sum() / (n - 1) / n)) if n > 1 else np.inf
    low, high = _resampled(gains, shares, resamples, seed)
    return Estimate(name, value, error, (value - _NORMAL * error, value + _NORMAL * error), (low, high), size)


def _resampled(gains: Values, shares: Values, resamples: int, seed: int) -> tuple[float, float]:
    """Percentile interval of mean gains / mean shares; equal seeds resample the same rows for every estimator.

    Source:
        Efron and Tibshirani (1993), "An Introduction to the Bootstrap", section 13.3.
    """
    if resamples < _FEWEST_RESAMPLES:
        raise InvalidInput(f"{resamples} resamples show no 2.5 % tail; draw at least {_FEWEST_RESAMPLES}")
    rng, n = np.random.default_rng(seed), len(gains)
    columns = np.stack([gains, shares], axis=1)
    totals = np.empty((resamples, 2))
    for start in range(0, resamples, _BLOCK):
        lines = np.arange(min(_BLOCK, resamples - start))[:, None]
        drawn = rng.integers(0, n, (len(lines), n)) + lines * n
        counts = np.bincount(drawn.ravel(), minlength=n * len(lines)).reshape(-1, n)
        totals[start : start + len(lines)] = counts @ columns
    totals = totals[totals[:, 1] > 0]  # a resample without any weight has no quotient
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(totals[:, 0] / totals[:, 1], [tail, 1 - tail])
    return float(low), float(high)


def _expected(feedback: Feedback, predicted: Values) -> Values:
    """float64, shape (n,): sum_a pi_i(a) q_i(a)."""
    if predicted.shape != feedback.policy.shape:
        raise LengthMismatch(
            f"predicted rewards of shape {predicted.shape} for a policy of shape {feedback.policy.shape}; predict "
            "every action in every row"
        )
    sums = predicted.sum(axis=1)
    _refuse(~np.isfinite(sums), sums, InvalidReward, "predicted reward", "a predicted reward is a finite number")
    return np.asarray((feedback.policy * predicted).sum(axis=1))


def _named(name: str, clip: float | None) -> str:
    return name if clip is None else f"clipped {name}"


def _refuse(wrong: npt.NDArray[np.bool_], values: npt.NDArray, error: type[Exception], what: str, rule: str) -> None:
    """Raises `error` for the first row of `wrong`, and says how many there are."""
    if wrong.any():
        row = int(wrong.argmax())
        raise error(f"{what} {values[row]} in row {row}; {rule} ({int(wrong.sum()):,} such rows)")
