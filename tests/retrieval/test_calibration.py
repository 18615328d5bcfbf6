"""Calibration: maps that never fall, by hand and over random numbers, and maps that are none."""

import json
import math
from typing import Any

import numpy as np
import pytest

from retrieval import calibration
from retrieval.calibration import Calibration, Isotonic, Platt, logit
from retrieval.errors import BundleTorn, InvalidInput

MAPS: list[Calibration] = [
    Platt(),
    Platt(0.3, -2.0),
    Platt(50.0, 3.0),
    Platt(1e6, -1e7),
    Isotonic((0.5,), (0.2,)),
    Isotonic((0.1, 0.2, 0.9), (0.0, 0.3, 0.3)),
    Isotonic((0.0, 1.0), (0.0, 1.0)),
]


@pytest.mark.parametrize("fitted", MAPS)
def test_probabilities_stay_probabilities_and_never_fall(fitted: Calibration) -> None:
    said = np.sort(np.concatenate([np.random.default_rng(0).random(500), [0, 1e-30, 1e-7, 1 - 1e-7, 1]])).astype("f4")
    made = fitted(said)
    assert (made.dtype, made.shape) == (np.float32, said.shape)
    assert ((made >= 0) & (made <= 1)).all()
    assert (np.diff(made) >= 0).all()


@pytest.mark.parametrize("fitted", MAPS)
def test_a_number_does_not_depend_on_its_neighbours(fitted: Calibration) -> None:
    said = np.random.default_rng(1).random((40, 3)).astype(np.float32)
    whole = fitted(said)
    assert [fitted(said[n, 1:2])[0] for n in range(40)] == whole[:, 1].tolist()
    np.testing.assert_array_equal(fitted(said[::-1, 2]), whole[::-1, 2])


@pytest.mark.parametrize("fitted", MAPS)
def test_it_survives_its_own_text(fitted: Calibration) -> None:
    assert calibration.parse(json.loads(json.dumps(fitted.to_json(), allow_nan=False))) == fitted


def test_platt_by_hand() -> None:
    said = np.array([0.2, 0.5, 0.9], np.float32)
    expected = [1 / (1 + math.exp(-(0.5 * math.log(p / (1 - p)) - 1))) for p in (0.2, 0.5, 0.9)]
    np.testing.assert_allclose(Platt(0.5, -1.0)(said), expected, rtol=1e-6)
    np.testing.assert_allclose(Platt()(said), said, rtol=1e-6)


def test_isotonic_by_hand() -> None:
    fitted = Isotonic((0.2, 0.4, 0.8), (0.1, 0.1, 0.5))
    got = fitted(np.array([0.0, 0.2, 0.3, 0.5, 0.6, 0.8, 1.0], np.float32))
    np.testing.assert_allclose(got, [0.1, 0.1, 0.1, 0.2, 0.3, 0.5, 0.5], rtol=1e-6)


def test_logits_are_finite_at_the_ends() -> None:
    ends = logit(np.array([0, 1, 0.5], np.float32))
    assert ends.tolist() == pytest.approx([-math.log(1e7), math.log(1e7), 0], rel=1e-6)


@pytest.mark.parametrize("fitted", MAPS[:4])
def test_what_is_no_number_stays_none(fitted: Calibration) -> None:
    assert np.isnan(fitted(np.array([np.nan], np.float32)))[0]


@pytest.mark.parametrize("fields", [(0.0, 0.0), (-1.0, 0.0), (math.nan, 0.0), (math.inf, 0.0), (1.0, math.nan)])
def test_scaling_that_turns_the_order_round_is_refused(fields: tuple[float, float]) -> None:
    with pytest.raises(InvalidInput, match="the slope must be above 0"):
        Platt(*fields)


@pytest.mark.parametrize(
    ("said", "held"),
    [
        ((), ()),
        ((0.1,), (0.1, 0.2)),
        ((0.2, 0.1), (0.1, 0.2)),
        ((0.1, 0.1), (0.1, 0.2)),
        ((0.1, 0.2), (0.2, 0.1)),
        ((0.1, math.nan), (0.1, 0.2)),
        ((0.1, 0.2), (0.1, math.nan)),
        ((math.nan,), (0.1,)),
        ((0.1, 0.2), (0.1, 1.2)),
        ((-0.1, 0.2), (0.1, 0.2)),
    ],
)
def test_knots_that_are_no_rising_line_are_refused(said: tuple[float, ...], held: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInput, match="as many of both, rising, within 0 and 1"):
        Isotonic(said, held)


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"kind": "none"},
        {"kind": "platt"},
        {"kind": "platt", "slope": -1, "offset": 0},
        {"kind": "platt", "slope": "steep", "offset": 0},
        {"kind": "isotonic", "said": [0.1]},
        {"kind": "isotonic", "said": 0.1, "held": [0.1]},
        {"kind": "isotonic", "said": [0.1], "held": ["high"]},
        {"kind": "isotonic", "said": [0.2, 0.1], "held": [0.1, 0.2]},
        "platt",
    ],
)
def test_torn(raw: Any) -> None:
    with pytest.raises(BundleTorn, match="export the bundle again"):
        calibration.parse(raw)
