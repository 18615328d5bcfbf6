"""The ranker: goals and formula, its manifest section, and one run for lists of any lengths."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import toy
import toy_ranker
from onnx import TensorProto, helper
from toy_ranker import GOALS, TASKS, probabilities, ranking

from retrieval.calibration import Isotonic, Platt
from retrieval.errors import BundleForeign, BundleTorn, InvalidRule
from retrieval.features import Candidates, FeatureTables
from retrieval.inputs import Request
from retrieval.ranking import OnnxRanker, Ranking
from retrieval.sequences import EMPTY, History

FITTED = {"click": Platt(0.5, -1.0), "like": Isotonic((0.1, 0.6), (0.0, 1.0))}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., OnnxRanker]:
    """Opens the toy's ranker with changes to its settings."""
    path = tmp_path_factory.mktemp("rankers") / "ranker.onnx"
    toy_ranker.graph(path)

    def open_(names: tuple[str, ...] = ("candidate_numbers",), file: Path = path, **changes: Any) -> OnnxRanker:
        settings = ranking(**changes)
        tables = FeatureTables.of(settings.features, toy_ranker.statistics(), toy.catalog(), toy.vectors())
        return OnnxRanker(file, names=names, settings=settings, tables=tables)

    return open_


def asked(rows: list[int], scores: list[float] | None = None, history: History = EMPTY) -> Candidates:
    given = [0.5] * len(rows) if scores is None else scores
    return Candidates(Request(history), np.array(rows, np.int64), np.array(given, np.float32))


def constant(path: Path, shape: list[int], *, name: str = "candidate_numbers", width: int | None = 3) -> Path:
    """A graph that says 0.5, in an output of some shape, whatever it is given."""
    value = helper.make_tensor("value", TensorProto.FLOAT, shape, np.full(shape, 0.5, np.float32).ravel().tolist())
    made = helper.make_graph(
        [helper.make_node("Constant", [], ["probabilities"], value=value), helper.make_node("Identity", [name], ["x"])],
        "constant",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", "C", width])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


class TestGoals:
    """Weights of tasks."""

    def test_what_is_not_named_weighs_nothing(self) -> None:
        settings = ranking()
        assert settings.tasks == TASKS
        assert settings.weights(GOALS).tolist() == [1.0, 0.5]
        assert settings.weights({"like": -2.0}).tolist() == [0.0, -2.0]

    @pytest.mark.parametrize(
        ("goals", "named"),
        [
            ({"sale": 1.0}, "'sale' is no task of this ranker, which predicts click, like"),
            ({"click": math.nan}, "weight nan"),
            ({"click": math.inf}, "weight inf"),
            ({"click": 1e300}, "at most 1e"),
            ({"click": 0.0}, "no goal has a weight"),
            ({}, "no goal has a weight"),
        ],
    )
    def test_goals_that_mean_nothing_are_refused(self, goals: dict[str, float], named: str) -> None:
        with pytest.raises(InvalidRule, match=named):
            ranking().weights(goals)

    def test_the_formula_names_what_counts(self) -> None:
        assert ranking().formula({}) == "1 * click + 0.5 * like"
        assert ranking().formula({"like": 0.1}) == "0.1 * like"


class TestManifest:
    """`Ranking.parse`."""

    def test_it_survives_its_own_text(self) -> None:
        for settings in (ranking(), ranking(calibration=FITTED, candidates=7)):
            text = json.dumps(settings.to_json(), allow_nan=False)
            back = Ranking.parse(json.loads(text))
            assert json.dumps(back.to_json(), allow_nan=False) == text
            assert (back.features, back.candidates) == (settings.features, settings.candidates)
        assert back.calibration == FITTED

    def test_names_for_readers_stay_unread(self) -> None:
        assert Ranking.parse({**ranking().to_json(), "model": "infnet"}).goals == GOALS

    @pytest.mark.parametrize(
        "changes",
        [
            {"features": {}},
            {"goals": {}},
            {"goals": {"sale": 1}},
            {"goals": {"click": "much"}},
            {"goals": ["click"]},
            {"candidates": 0},
            {"candidates": "all"},
            {"candidates": None},
            {"calibration": {"click": {"kind": "none"}}},
            {"calibration": {"sale": {"kind": "platt", "slope": 1, "offset": 0}}},
            {"calibration": ["click"]},
        ],
    )
    def test_torn(self, changes: dict[str, Any]) -> None:
        with pytest.raises(BundleTorn, match=r"export the bundle again|at least 1 is needed"):
            Ranking.parse({**ranking().to_json(), **changes})

    @pytest.mark.parametrize("name", ["features", "goals", "candidates"])
    def test_a_field_that_is_missing(self, name: str) -> None:
        raw = ranking().to_json()
        del raw[name]
        with pytest.raises(BundleTorn, match=name):
            Ranking.parse(raw)


class TestCalibration:
    """What a ranker says, and what it stands for."""

    def test_each_task_has_a_map_of_its_own_and_one_without_is_taken_at_its_word(self) -> None:
        said = np.array([[0.2, 0.35], [1e-12, 0.0]], np.float32)
        both = ranking(calibration=FITTED).calibrated(said)
        np.testing.assert_array_equal(both[:, 0], FITTED["click"](said[:, 0]))
        np.testing.assert_allclose(both[:, 1], [0.5, 0.0], atol=1e-6)
        one = ranking(calibration={"like": FITTED["like"]}).calibrated(said)
        assert one[:, 0].tobytes() == said[:, 0].tobytes()
        assert ranking().calibrated(said).tobytes() == said.tobytes()
        assert said[0, 1] == np.float32(0.35)  # what it was given stays as it was

    def test_empty(self) -> None:
        assert ranking(calibration=FITTED).calibrated(np.zeros((0, 2), np.float32)).shape == (0, 2)

    def test_it_is_part_of_ranking_unless_asked_for_without(self, opened: Callable[..., OnnxRanker]) -> None:
        ranker, one = opened(calibration=FITTED), asked([1, 5, 9])
        raw = opened().rank([one])[0]
        np.testing.assert_array_equal(ranker.rank([one])[0], ranking(calibration=FITTED).calibrated(raw))
        np.testing.assert_array_equal(ranker.uncalibrated().rank([one])[0], raw)
        assert ranker.settings.calibration == FITTED


class TestRanking:
    """`OnnxRanker.rank`."""

    def test_the_probabilities_of_lists_of_any_lengths(self, opened: Callable[..., OnnxRanker]) -> None:
        rng = np.random.default_rng(0)
        lists = [asked(rng.permutation(20)[:n] + 1, rng.normal(size=n)) for n in (3, 20, 1, 0, 7)]
        said = opened().rank(lists)
        assert [own.shape for own in said] == [(3, 2), (20, 2), (1, 2), (0, 2), (7, 2)]
        for own, one in zip(said, lists, strict=True):
            np.testing.assert_allclose(own, probabilities(one.rows.tolist(), one.scores.tolist()), rtol=1e-5)

    def test_scores_that_are_absent(self, opened: Callable[..., OnnxRanker]) -> None:
        scores = [np.nan, -np.inf, 1.0]
        (said,) = opened().rank([asked([3, 4, 5], scores)])
        np.testing.assert_allclose(said, probabilities([3, 4, 5], scores), rtol=1e-5)

    @pytest.mark.parametrize("n", [0, 1, 3])
    def test_empty(self, opened: Callable[..., OnnxRanker], n: int) -> None:
        said = opened().rank([asked([])] * n)
        assert [own.shape for own in said] == [(0, 2)] * n

    def test_over_another_edition_the_graph_is_the_same(self, opened: Callable[..., OnnxRanker]) -> None:
        ranker = opened()
        catalog = replace(toy.catalog(), popularity=np.zeros(21))
        settings = ranker.settings
        other = ranker.with_tables(FeatureTables.of(settings.features, toy_ranker.statistics(), catalog, toy.vectors()))
        one = asked([1, 2])
        before = ranker.rank([one])[0]
        assert (other.rank([one])[0][:, 0] < before[:, 0]).all()
        np.testing.assert_array_equal(ranker.rank([one])[0], before)


class TestGraphs:
    """Graphs that do not fit."""

    def test_another_input_than_the_manifest_declares(self, opened: Callable[..., OnnxRanker]) -> None:
        with pytest.raises(BundleForeign, match=r"declares inputs \['request_numbers'\], ranker.onnx has"):
            opened(names=("request_numbers",))
        with pytest.raises(BundleForeign, match=r"declares inputs \['candidate_numbers', 'request_codes'\]"):
            opened(names=("candidate_numbers", "request_codes"))

    def test_an_input_that_nobody_builds(self, opened: Callable[..., OnnxRanker], tmp_path: Path) -> None:
        file = constant(tmp_path / "other.onnx", [1, 1, 2], name="mood")
        with pytest.raises(BundleForeign, match="this version builds candidate_codes, candidate_numbers"):
            opened(names=("mood",), file=file)

    def test_a_file_that_is_no_graph(self, opened: Callable[..., OnnxRanker], tmp_path: Path) -> None:
        (tmp_path / "torn.onnx").write_bytes(b"torn")
        with pytest.raises(BundleTorn, match="not a graph"):
            opened(file=tmp_path / "torn.onnx")

    @pytest.mark.parametrize("shape", [[1, 2, 3], [1, 2], [1, 1, 2], [2, 2, 2]])
    def test_probabilities_of_another_shape(
        self, opened: Callable[..., OnnxRanker], tmp_path: Path, shape: list[int]
    ) -> None:
        ranker = opened(file=constant(tmp_path / "other.onnx", shape))
        with pytest.raises(BundleTorn, match="for 1 lists of up to 2 and 2 tasks"):
            ranker.rank([asked([1, 2])])
