"""Off-policy estimators: worked by hand, right in simulations whose truth is known, and strict about their input."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from models.errors import (
    EmptyLog,
    InvalidPolicy,
    InvalidPropensity,
    InvalidReward,
    LengthMismatch,
    NoOverlap,
)
from models.off_policy import Estimate, Feedback, direct, doubly_robust, effective_size, ips, on_policy, snips
from retrieval.errors import InvalidInput

# Four decisions between two actions. The weights are .25/.5 = 0.5, .75/.5 = 1.5, .25/.25 = 1 and .75/.25 = 3.
HAND = Feedback(
    actions=np.array([0, 1, 0, 1]),
    rewards=np.array([1.0, 0.0, 0.0, 1.0]),
    propensities=np.array([0.5, 0.5, 0.25, 0.25]),
    policy=np.tile([0.25, 0.75], (4, 1)),
)
PREDICTED = np.tile([0.2, 0.6], (4, 1))


class TestByHand:
    def test_weights(self) -> None:
        np.testing.assert_allclose(HAND.weights(), [0.5, 1.5, 1, 3])
        np.testing.assert_allclose(HAND.weights(clip=2), [0.5, 1.5, 1, 2])

    def test_the_effective_size(self) -> None:
        # 6^2 / (0.25 + 2.25 + 1 + 9)
        assert effective_size(HAND.weights()) == pytest.approx(36 / 12.5)
        assert effective_size(np.full(7, 1e200)) == pytest.approx(7)

    def test_ips(self) -> None:
        found = ips(HAND)
        assert found.value == pytest.approx((0.5 + 3) / 4)
        # Gains 0.5, 0, 0, 3 around 0.875: squares .140625 + .765625 + .765625 + 4.515625 = 6.1875, by 3 and by 4.
        assert found.standard_error == pytest.approx(0.515625**0.5)
        half = 1.959963984540054 * 0.515625**0.5
        assert found.interval == pytest.approx((0.875 - half, 0.875 + half))
        assert found.effective_size == pytest.approx(2.88)

    def test_clipped_ips(self) -> None:
        found = ips(HAND, clip=2)
        assert (found.name, found.value) == ("clipped ips", pytest.approx((0.5 + 2) / 4))
        assert found.effective_size == pytest.approx(5**2 / (0.25 + 2.25 + 1 + 4))

    def test_snips(self) -> None:
        found = snips(HAND)
        assert found.value == pytest.approx(3.5 / 6)
        # w (r - 7/12) by 24: 5, -21, -14, 30; squares 1562/576, by (6/4)^2, by 3 and by 4.
        assert found.standard_error == pytest.approx((1562 / 576 / 2.25 / 12) ** 0.5)

    def test_clipped_snips(self) -> None:
        assert snips(HAND, clip=2).value == pytest.approx(2.5 / 5)

    def test_the_direct_method(self) -> None:
        # .25 * .2 + .75 * .6 in every row, so there is no spread either.
        found = direct(HAND, PREDICTED)
        assert (found.value, found.standard_error) == (pytest.approx(0.5), pytest.approx(0, abs=1e-12))
        assert found.effective_size == 4

    def test_doubly_robust(self) -> None:
        # Corrections .5 * .8 = .4, 1.5 * -.6 = -.9, 1 * -.2 = -.2, 3 * .4 = 1.2: a mean of .125 on top of .5.
        assert doubly_robust(HAND, PREDICTED).value == pytest.approx(0.625)

    def test_clipped_doubly_robust(self) -> None:
        # The last correction is 2 * .4 = .8 now: a mean of .025.
        assert doubly_robust(HAND, PREDICTED, clip=2).value == pytest.approx(0.525)

    def test_the_mean_of_a_policy_over_its_own_log(self) -> None:
        found = on_policy(np.array([0.0, 0.0, 0.0, 1.0]))
        # Squares around 1/4: 3 / 16 + 9 / 16 = 3/4, by 3 and by 4.
        assert (found.value, found.standard_error) == (0.25, pytest.approx(0.25))

    def test_the_logging_policy_itself_is_its_mean_whatever_the_estimator(self) -> None:
        itself = replace(HAND, propensities=HAND.policy[np.arange(4), HAND.actions])
        assert ips(itself).value == snips(itself).value == on_policy(HAND.rewards).value == 0.5
        assert ips(itself).interval == on_policy(HAND.rewards).interval
        assert ips(itself).effective_size == 4


class TestTheBootstrap:
    def test_two_rows_give_what_can_be_counted(self) -> None:
        # Means of two draws from {0, 1}: 0 and 1 with a quarter each, so both ends of 95 % are reached.
        assert on_policy(np.array([0.0, 1.0])).bootstrap == (0.0, 1.0)

    def test_it_resamples_a_quotient_as_a_quotient(self) -> None:
        # Every resample of equal rewards has the same SNIPS, however its weights fall; IPS does not.
        equal = replace(HAND, rewards=np.full(4, 0.5))
        assert snips(equal).bootstrap == pytest.approx((0.5, 0.5))
        low, high = ips(equal).bootstrap
        assert low < 0.5 < high

    def test_a_resample_without_weight_is_left_out(self) -> None:
        lone = replace(HAND, policy=np.array([[1.0, 0], [1, 0], [0, 1], [1, 0]]))  # only the first row has a weight
        assert snips(lone).bootstrap == pytest.approx((1, 1))

    def test_equal_seeds_draw_equally(self) -> None:
        rewards = np.random.default_rng(1).random(50)
        assert on_policy(rewards, seed=3) == on_policy(rewards, seed=3)
        assert on_policy(rewards, seed=3).bootstrap != on_policy(rewards, seed=4).bootstrap

    def test_it_agrees_with_the_variance_on_many_rows(self) -> None:
        found = on_policy(np.random.default_rng(2).random(4000))
        assert found.bootstrap == pytest.approx(found.interval, abs=0.1 * found.standard_error * 2)

    def test_too_few_resamples_are_refused(self) -> None:
        with pytest.raises(InvalidInput, match=r"^99 resamples"):
            ips(HAND, resamples=99)


@dataclass(frozen=True)
class World:
    """Three kinds of visitors and four actions, whose clicks are known by heart."""

    rates: np.ndarray  # (3, 4)
    logging: np.ndarray
    policy: np.ndarray

    @property
    def truth(self) -> float:
        return float((self.policy * self.rates).sum(axis=1).mean())

    def log(self, rng: np.random.Generator, n: int) -> tuple[Feedback, np.ndarray]:
        visitors = rng.integers(0, 3, n)
        actions = (rng.random((n, 1)) > self.logging[visitors].cumsum(axis=1)).sum(axis=1)
        clicks = (rng.random(n) < self.rates[visitors, actions]).astype(float)
        return Feedback(actions, clicks, self.logging[visitors, actions], self.policy[visitors]), visitors


WORLD = World(
    rates=np.array([[0.1, 0.3, 0.5, 0.7], [0.6, 0.2, 0.4, 0.1], [0.3, 0.3, 0.8, 0.2]]),
    logging=np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]),
    policy=np.array([[0.1, 0.1, 0.2, 0.6], [0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1]]),
)
LOGS, ROWS = 400, 500
WRONG = np.tile([0.9, 0.0, 0.1, 0.9], (3, 1))


def simulated(estimate: Callable[[Feedback, np.ndarray], Estimate]) -> list[Estimate]:
    rng = np.random.default_rng(7)
    return [estimate(*WORLD.log(rng, ROWS)) for _ in range(LOGS)]


def off_by(found: list[Estimate]) -> float:
    """How far the mean of many estimates is from the truth, in standard errors of that mean."""
    values = np.array([one.value for one in found])
    return float(abs(values.mean() - WORLD.truth) / (values.std(ddof=1) / len(values) ** 0.5))


ESTIMATORS: dict[str, Callable[[Feedback, np.ndarray], Estimate]] = {
    "ips": lambda log, _: ips(log, resamples=100),
    "snips": lambda log, _: snips(log, resamples=100),
    "dr": lambda log, visitors: doubly_robust(log, WORLD.rates[visitors], resamples=100),
    "dr with a wrong model": lambda log, visitors: doubly_robust(log, WRONG[visitors], resamples=100),
}


class TestInSimulation:
    @pytest.mark.parametrize("name", ESTIMATORS)
    def test_the_mean_of_many_estimates_is_the_truth_and_intervals_hold_it(self, name: str) -> None:
        found = simulated(ESTIMATORS[name])
        assert off_by(found) < 4
        held = np.mean([one.interval[0] <= WORLD.truth <= one.interval[1] for one in found])
        assert abs(held - 0.95) < 4 * (0.95 * 0.05 / LOGS) ** 0.5

    def test_bootstrap_intervals_hold_the_truth_as_often(self) -> None:
        found = simulated(lambda log, _: snips(log, resamples=300))
        held = np.mean([one.bootstrap[0] <= WORLD.truth <= one.bootstrap[1] for one in found])
        assert abs(held - 0.95) < 4 * (0.95 * 0.05 / LOGS) ** 0.5

    def test_a_wrong_model_misleads_the_direct_method(self) -> None:
        assert off_by(simulated(lambda log, visitors: direct(log, WRONG[visitors], resamples=100))) > 20

    def test_wrong_propensities_mislead_ips_and_not_dr_with_a_right_model(self) -> None:
        def skewed(log: Feedback) -> Feedback:
            return replace(log, propensities=np.sqrt(log.propensities))

        assert off_by(simulated(lambda log, _: ips(skewed(log), resamples=100))) > 20
        right = simulated(lambda log, visitors: doubly_robust(skewed(log), WORLD.rates[visitors], resamples=100))
        assert off_by(right) < 4

    def test_a_good_model_makes_dr_surer_than_ips(self) -> None:
        log, visitors = WORLD.log(np.random.default_rng(1), 2000)
        assert doubly_robust(log, WORLD.rates[visitors]).standard_error < 0.8 * ips(log).standard_error

    def test_clipping_only_lowers(self) -> None:
        log, _ = WORLD.log(np.random.default_rng(1), 2000)
        assert ips(log, clip=2).value < ips(log).value == ips(log, clip=100).value
        assert ips(log, clip=2).effective_size > ips(log).effective_size


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"propensities": [0.5, 0.0, 0.5, 0.5]}, InvalidPropensity, r"propensity 0\.0 in row 1; .*\(1 such rows\)"),
            (
                {"propensities": [0.5, -0.1, 0.5, -1]},
                InvalidPropensity,
                r"-0\.1 in row 1; .*\(2 such rows\)",
            ),
            ({"propensities": [0.5, 0.5, 1.5, 0.5]}, InvalidPropensity, r"propensity 1\.5 in row 2; .*at most 1"),
            ({"propensities": [np.nan, 0.5, 0.5, 0.5]}, InvalidPropensity, "propensity nan in row 0"),
            ({"rewards": [1.0, 0.0, 0.0, np.nan]}, InvalidReward, "reward nan in row 3"),
            ({"rewards": [1.0, np.inf, 0.0, 0.0]}, InvalidReward, "reward inf in row 1"),
            ({"policy": [[0.5, 0.5]] * 3 + [[0.5, 0.4]]}, InvalidPolicy, r"sum 0\.9 in row 3; .*divide each row"),
            ({"policy": [[1.5, -0.5]] * 4}, InvalidPolicy, r"probability -0\.5 in row 0; .*\(4 such rows\)"),
            ({"policy": [[0.5, 0.5]] * 3 + [[np.nan, 1]]}, InvalidPolicy, "probability nan in row 3"),
            ({"actions": [0, 1, 2, 1]}, InvalidPolicy, "action 2 in row 2; .*actions 0 to 1 only"),
            ({"actions": [0, -1, 0, 1]}, InvalidPolicy, "action -1 in row 1"),
            ({"rewards": [1.0, 0.0]}, LengthMismatch, "'rewards': 2"),
            ({"policy": [0.5] * 4}, LengthMismatch, r"policy of shape \(4,\)"),
            ({"actions": [0] * 4, "policy": [[0.0, 1.0]] * 4}, NoOverlap, "none of the 4 logged actions"),
        ],
    )
    def test_a_log_that_cannot_be_right_names_its_row_and_its_rule(
        self, changes: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            replace(HAND, **{name: np.array(value) for name, value in changes.items()})

    def test_empty(self) -> None:
        nothing = np.zeros(0)
        with pytest.raises(EmptyLog, match="no decision"):
            Feedback(nothing.astype(int), nothing, nothing, np.zeros((0, 2)))
        with pytest.raises(EmptyLog, match="no decision"):
            on_policy(nothing)

    def test_predictions_that_do_not_fit(self) -> None:
        with pytest.raises(LengthMismatch, match=r"shape \(4, 1\)"):
            direct(HAND, np.zeros((4, 1)))
        with pytest.raises(InvalidReward, match="predicted reward nan in row 2"):
            doubly_robust(HAND, np.where(np.arange(8).reshape(4, 2) == 5, np.nan, 0.5))
        with pytest.raises(InvalidReward, match="reward nan in row 1"):
            on_policy(np.array([0.0, np.nan]))

    @pytest.mark.parametrize("clip", [0.0, -1.0, np.nan])
    def test_a_limit_that_is_none(self, clip: float) -> None:
        with pytest.raises(InvalidInput, match="a limit is above 0"):
            ips(HAND, clip=clip)

    def test_a_single_row_is_estimated_and_says_nothing_of_its_error(self) -> None:
        lone = Feedback(np.array([1]), np.array([1.0]), np.array([0.5]), np.array([[0.0, 1.0]]))
        found = ips(lone)
        assert (found.value, found.interval) == (2.0, (-np.inf, np.inf))
