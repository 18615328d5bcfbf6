"""The declaration: what can be said, what is refused, and codes that are the same everywhere."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracles_features import FEATURES, TASKS

from retrieval.errors import BundleTorn, InvalidInput
from retrieval.features import ALL, REACH, Category, FeatureSet, Number, spelt
from retrieval.tasks import Task

ONE = (Task("click"),)


def test_it_survives_its_own_text() -> None:
    assert FeatureSet.parse(json.loads(json.dumps(FEATURES.to_json(), allow_nan=False))) == FEATURES
    least = FeatureSet(ONE)
    assert FeatureSet.parse(json.loads(json.dumps(least.to_json(), allow_nan=False))) == least


def test_columns_are_named_by_their_fields() -> None:
    assert FEATURES.code_columns == (0, 1, 1, 1, 2)
    assert FEATURES.event_columns == (0, 1, 2, 3)
    assert replace(FEATURES, event_fields=(2, 0)).event_columns == (4, 0)
    assert FEATURES.task("buy") == TASKS[2]
    assert FEATURES.task(ALL) is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tasks": ()}, "at least one"),
        ({"tasks": ONE * 2}, "another name"),
        ({"tasks": (Task("all"),)}, "none called 'all'"),
        ({"behaviours": (), "windows": ()}, "at least one"),
        ({"behaviours": ("all", "sale"), "windows": (3, 3)}, "'sale'"),
        ({"windows": (3, 3)}, "a window"),
        ({"windows": (0,)}, "1 to 500"),
        ({"windows": (REACH + 1,)}, "1 to 500"),
        ({"event_fields": (0,)}, "no positions among 0"),
        ({"request_codes": (Category("context:age", 3, words=("a", "b")),)}, "2 words for 3 codes"),
        ({"request_codes": (Category("context:age", 0, width=2),)}, "one column"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        FeatureSet(**{"tasks": ONE, **changes})


@pytest.mark.parametrize("changes", [{"known": -1}, {"slots": 0}, {"width": 0}])
def test_a_field_without_room_for_a_code_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="'id' has"):
        Category("id", **{"known": 3, **changes})


@pytest.mark.parametrize(
    "changes",
    [{"transform": "sqrt"}, {"scale": 0.0}, {"scale": -1.0}, {"scale": math.inf}, {"scale": math.nan},
     {"shift": math.nan}, {"shift": math.inf}],
)  # fmt: skip
def test_a_transform_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="'value' has transform"):
        Number("value", **changes)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw.pop("tasks"),
        lambda raw: raw.pop("windows"),
        lambda raw: raw.update(tasks=[{"name": "x", "colour": 3}]),
        lambda raw: raw.update(tasks=["x"]),
        lambda raw: raw.update(tasks=None),
        lambda raw: raw.update(candidate_codes=["id"]),
        lambda raw: raw.update(candidate_codes=[{"source": "id"}]),
        lambda raw: raw.update(candidate_codes=[{"source": "id", "known": "many"}]),
        lambda raw: raw.update(candidate_numbers=[{"source": "value", "scale": "wide"}]),
        lambda raw: raw.update(candidate_numbers=[{"name": "value"}]),
        lambda raw: raw.update(request_numbers=[{"source": "length", "scale": 0}]),
        lambda raw: raw.update(windows=["long"]),
        lambda raw: raw.update(windows=7),
    ],
)
def test_torn(damage: Any) -> None:
    raw = json.loads(json.dumps(FEATURES.to_json()))
    damage(raw)
    with pytest.raises(BundleTorn, match="export the bundle again"):
        FeatureSet.parse(raw)


class TestCodes:
    """Words outside the vocabulary."""

    def test_every_word_has_a_slot_and_no_slot_is_that_of_absence_or_of_a_word(self) -> None:
        category = Category("context:city", 10, slots=7)
        codes = [category.hashed(f"word {n}") for n in range(1000)]
        assert set(codes) == {*range(1, 8)}
        assert category.size == 18
        assert max(np.bincount(codes)) < 200

    @pytest.mark.parametrize("seed", ["0", "1"])
    def test_they_are_the_same_in_every_process(self, seed: str) -> None:
        words = ["new", "", "Ä\N{SNOWMAN}", "i123"]
        say = f"from retrieval.features import Category\nprint([Category('id', 0, 997).hashed(w) for w in {words!r}])"
        done = subprocess.run(
            [sys.executable, "-c", say], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ".", "PYTHONUTF8": "1"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert json.loads(done.stdout) == [Category("id", 0, 997).hashed(word) for word in words] == [768, 1, 187, 603]

    @pytest.mark.parametrize(("value", "word"), [(25, "25"), (25.0, "25"), (1234567.0, "1234567"), (0.1, "0.1")])
    def test_a_number_is_spelt_as_people_do(self, value: float, word: str) -> None:
        assert spelt(value) == word


class TestNumbers:
    """`Number.of`."""

    def test_it_shifts_scales_clips_and_keeps_absence(self) -> None:
        x = np.array([np.nan, -5.0, 0.0, 3.0, 1e9, np.inf, -np.inf])
        made = Number("value", shift=1.0, scale=2.0).of(x)
        assert made.dtype == np.float32
        np.testing.assert_array_equal(made, np.array([np.nan, -3, -0.5, 1, 8, 8, -8], np.float32))
        np.testing.assert_array_equal(Number("value").of(x), np.array([np.nan, -5, 0, 3, 8, 8, -8], np.float32))
        logs = Number("value", "log1p", scale=4.0).of(x)
        np.testing.assert_allclose(logs, [np.nan, 0, 0, np.log(4) / 4, np.log1p(1e9) / 4, 8, 0], rtol=1e-6)
        assert x[1] == -5  # what it was given stays as it was

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_number_does_not_depend_on_where_it_lies(self, dtype: type[np.floating[Any]]) -> None:
        # Backwards, NumPy's vectorised logarithms gave other last digits for one number in thirty.
        x = (np.random.default_rng(0).random(3000) * 100).astype(dtype)
        number = Number("value", "log1p", 3.0, 0.7)
        whole = number.of(x)
        for start, step in ((0, 1), (1, 1), (7, 3), (2999, -1), (2998, -5)):
            np.testing.assert_array_equal(number.of(x[start::step]), whole[start::step])
        np.testing.assert_array_equal(number.of(x.reshape(30, 100).T), whole.reshape(30, 100).T)
        np.testing.assert_array_equal(np.concatenate([number.of(x[n : n + 1]) for n in range(50)]), whole[:50])
