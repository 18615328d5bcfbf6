"""The engine of a bundle: what is loaded, and parts that do not fit each other."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import toy_generative
import toy_ranker
from onnx import helper, numpy_helper
from toy_generative import VOCABULARY, D, codes

from retrieval import bundle
from retrieval.bundle import Bundle, Graph
from retrieval.calibration import Platt
from retrieval.codes import CodeTable
from retrieval.decoder import OnnxDecoder, ParallelDecoder
from retrieval.describer import Describer
from retrieval.engine import Engine, tables
from retrieval.errors import BundleForeign, BundleTorn
from retrieval.features import Candidates, FeatureSet, Number
from retrieval.inputs import Request
from retrieval.ranking import OnnxRanker
from retrieval.sequences import EMPTY
from retrieval.statistics import Statistics


@pytest.fixture
def changed(generative_bundle: Path, tmp_path: Path) -> Callable[..., Bundle]:
    """A copy of the bundle after `change(directory)`, sealed again with some manifest fields replaced."""

    def change(alter: Callable[[Path], object] = lambda _: None, **fields: Any) -> Bundle:
        path = Path(shutil.copytree(generative_bundle, tmp_path / "changed"))
        manifest = Bundle.open(path).manifest
        (path / bundle.MANIFEST).unlink()
        alter(path)
        own = {name: getattr(manifest, name) for name in type(manifest).__slots__}
        bundle.seal(path, type(manifest)(**{**own, **fields}))
        return Bundle.open(path)

    return change


def test_a_bundle_is_loaded_with_all_that_it_has(generative_bundle: Path, toy_bundle: Path, tmp_path: Path) -> None:
    whole = Engine.load(Bundle.open(generative_bundle))
    assert isinstance(whole.decoder, OnnxDecoder)
    assert whole.describer is not None
    assert whole.encoder is not None
    alone = Engine.load(Bundle.open(toy_generative.toy_generative(tmp_path / "alone", parallel=True, dense=False)))
    assert isinstance(alone.decoder, ParallelDecoder)
    assert alone.encoder is None
    encoder = Engine.load(Bundle.open(toy_bundle))
    assert (encoder.decoder, encoder.generation, encoder.describer) == (None, None, None)


def test_a_bundle_may_lack_a_describer(changed: Callable[..., Bundle]) -> None:
    assert Engine.load(changed(lambda path: shutil.rmtree(path / bundle.DESCRIBER))).describer is None


def test_a_generator_may_read_vectors_beside_codes() -> None:
    gathered = tables(np.ones((3, 2), np.float32), np.zeros((3, 4), np.float32), codes())
    assert {name: table.shape for name, table in gathered.vectors.items()} == {"items": (3, 2), "text": (3, 4)}
    assert list(tables(np.ones((3, 2), np.float32), None, None).vectors) == ["items"]


def test_a_describer_of_other_codes_is_refused(changed: Callable[..., Bundle]) -> None:
    own = toy_generative.describer()
    other = Describer(own.text, own.quantiser, own.fields, dedup=9)
    with pytest.raises(BundleForeign, match=r"levels \[4, 4, 9\] from vectors of width 6"):
        Engine.load(changed(lambda path: other.save(path / bundle.DESCRIBER)))


def test_a_describer_of_other_vectors_is_refused(changed: Callable[..., Bundle]) -> None:
    with pytest.raises(BundleForeign, match="from vectors of width 6, which are not those"):
        Engine.load(changed(lambda path: np.save(path / bundle.TEXT_VECTORS, np.zeros((21, D + 1), np.float32))))


def test_a_manifest_of_other_levels_is_refused(changed: Callable[..., Bundle]) -> None:
    with pytest.raises(BundleForeign, match=r"levels have \[4, 4, 8\] codewords in the code table and \[4, 8, 8\]"):
        Engine.load(changed(generation={"levels": 3, "vocabulary": [4, 8, 8]}))


def test_a_bundle_in_which_nothing_has_a_code_is_refused(changed: Callable[..., Bundle]) -> None:
    bare = CodeTable(np.full((21, 3), -1), VOCABULARY)
    with pytest.raises(BundleTorn, match="nothing can be generated"):
        Engine.load(changed(lambda path: bare.save(path / bundle.CODES)))


def test_a_step_that_gives_no_log_probabilities_is_refused(changed: Callable[..., Bundle]) -> None:
    def lift(path: Path) -> None:
        model = onnx.load(path / "step.onnx")
        model.graph.node[-1].op_type = "Identity"  # logits, as they are
        del model.graph.node[-1].attribute[:]
        onnx.save(model, path / "step.onnx")

    with pytest.raises(BundleForeign, match=r"probabilities sum to .*; \(1, 1, 4\) and 1 were expected"):
        Engine.load(changed(lift))


def test_a_step_of_fewer_codewords_is_refused(changed: Callable[..., Bundle]) -> None:
    def narrow(path: Path) -> None:
        model = onnx.load(path / "step.onnx")
        for held in model.graph.initializer:
            if held.name in ("head", "bias"):
                held.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(held)[..., :7].copy(), held.name))
        model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 7
        onnx.save(model, path / "step.onnx")

    with pytest.raises(BundleForeign, match=r"shape \(1, 1, 7\) for level 2"):
        Engine.load(changed(narrow))


def test_a_graph_that_does_not_run_is_refused(changed: Callable[..., Bundle]) -> None:
    def fewer(path: Path) -> None:
        model = onnx.load(path / "step.onnx")
        for held in model.graph.initializer:
            if held.name == "written":
                held.CopyFrom(numpy_helper.from_array(np.zeros((3, D), np.float32), held.name))
        onnx.save(model, path / "step.onnx")

    with pytest.raises(BundleForeign, match="does not run on a history of codes"):
        Engine.load(changed(fewer))


def test_codes_of_another_catalog_are_refused(changed: Callable[..., Bundle]) -> None:
    longer = codes().extended(codes().codes[1:2])
    with pytest.raises(BundleTorn, match=r"codes.npz has 21 rows, the catalog 20 items"):
        Engine.load(changed(lambda path: longer.save(path / bundle.CODES)))


@pytest.mark.parametrize("missing", ["step", "prefill"])
def test_half_a_generator_is_no_bundle(changed: Callable[..., Bundle], missing: str) -> None:
    other = {"step": "prefill", "prefill": "step"}[missing]
    graphs = {other: Graph(f"{other}.onnx", ("item_codes",), "")}
    with pytest.raises(BundleTorn, match="lists no graph prefill and step or distributions"):
        changed(graphs=graphs)


@pytest.mark.parametrize("name", [bundle.CODES, bundle.TRIE])
def test_a_generator_needs_its_codes(changed: Callable[..., Bundle], name: str) -> None:
    with pytest.raises(BundleTorn, match=f"lists no {name}, which a bundle of kind 'generative' needs"):
        changed(lambda path: (path / name).unlink())


# --- rankers ---------------------------------------------------------------------------------------------


@pytest.fixture
def reranked(tmp_path: Path) -> Callable[..., Bundle]:
    """The toy bundle with a ranker after `change(directory)`, sealed again with some manifest fields replaced."""

    def change(alter: Callable[[Path], object] = lambda _: None, **fields: Any) -> Bundle:
        path = toy_ranker.write(tmp_path / "ranked")
        manifest = Bundle.open(path).manifest
        alter(path)
        (path / bundle.MANIFEST).unlink()
        bundle.seal(path, replace(manifest, **fields))
        return Bundle.open(path)

    return change


def saying(path: Path, *outputs: float) -> None:
    """Makes the toy's ranker say such numbers of the items of its lists, in turn, whatever they are."""
    model = onnx.load(path / "ranker.onnx")
    added = numpy_helper.from_array(np.array(outputs, np.float32), "said")
    model.graph.node[-1].output[0] = "unread"
    model.graph.node.extend(
        [
            helper.make_node("Mul", ["unread", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "said"], ["probabilities"]),
        ]
    )
    model.graph.initializer.append(added)
    onnx.save(model, path / "ranker.onnx")


@pytest.mark.parametrize("base", [toy_generative.toy_generative, None])
def test_a_bundle_of_any_kind_may_have_a_ranker(tmp_path: Path, base: Any) -> None:
    opened = Bundle.open(toy_ranker.write(tmp_path / "ranked", **({} if base is None else {"base": base})))
    ranker = Engine.load(opened).ranker
    assert isinstance(ranker, OnnxRanker)
    assert ranker.settings.tasks == toy_ranker.TASKS
    one = Candidates(Request(EMPTY), np.array([3, 20]), np.array([0.5, np.nan], np.float32))
    np.testing.assert_allclose(ranker.rank([one])[0], toy_ranker.probabilities([3, 20], [0.5, np.nan]), rtol=1e-5)


def test_a_ranking_without_a_ranker_stays_unread(toy_bundle: Path, reranked: Callable[..., Bundle]) -> None:
    assert Engine.load(Bundle.open(toy_bundle)).ranker is None
    graphs = Bundle.open(toy_bundle).manifest.graphs
    assert Engine.load(reranked(graphs=graphs, ranking={"goals": "none"})).ranker is None


def test_a_ranking_that_is_torn_is_refused(reranked: Callable[..., Bundle]) -> None:
    with pytest.raises(BundleTorn, match="ranking cannot be read"):
        Engine.load(reranked(ranking={}))


def test_statistics_of_another_catalog_are_refused(reranked: Callable[..., Bundle]) -> None:
    own = toy_ranker.statistics()
    longer = Statistics(own.pairs, own.weights, np.zeros((22, 2), np.float32), np.zeros(22, np.float32))
    with pytest.raises(BundleTorn, match=r"statistics.npz has 21 rows, the catalog 20 items"):
        Engine.load(reranked(lambda path: longer.save(path / bundle.STATISTICS)))


def test_statistics_of_other_tasks_are_refused(reranked: Callable[..., Bundle]) -> None:
    own = toy_ranker.statistics()
    more = Statistics(own.pairs, own.weights, np.zeros((21, 3), np.float32), own.values)
    with pytest.raises(BundleForeign, match="rows and 3 tasks, do not fit"):
        Engine.load(reranked(lambda path: more.save(path / bundle.STATISTICS)))


def test_statistics_that_are_cut_are_refused(reranked: Callable[..., Bundle]) -> None:
    with pytest.raises(BundleTorn, match=r"statistics.npz cannot be read"):
        Engine.load(reranked(lambda path: (path / bundle.STATISTICS).write_bytes(b"PK")))


@pytest.mark.parametrize("source", ["mood", "attribute:colour", "affinity:price", "retrieval:place"])
def test_a_feature_that_cannot_be_computed_is_refused(reranked: Callable[..., Bundle], source: str) -> None:
    numbers = (Number("retrieval:score"), Number("popularity"), Number(source))
    features = FeatureSet(toy_ranker.ranking().features.tasks, candidate_numbers=numbers)
    with pytest.raises(BundleForeign, match=source.split(":")[-1]):
        Engine.load(reranked(ranking=toy_ranker.ranking(features=features).to_json()))


def test_a_ranker_of_other_inputs_is_refused(reranked: Callable[..., Bundle]) -> None:
    opened = reranked()
    graphs = {**opened.manifest.graphs, bundle.RANKER: Graph("ranker.onnx", ("candidate_codes",), "")}
    with pytest.raises(BundleForeign, match=r"declares inputs \['candidate_codes'\], ranker.onnx has"):
        Engine.load(replace(opened, manifest=replace(opened.manifest, graphs=graphs)))


@pytest.mark.parametrize("count", [2, 4])
def test_a_ranker_of_other_features_is_refused(reranked: Callable[..., Bundle], count: int) -> None:
    numbers = (Number("retrieval:score"),) * count
    features = FeatureSet(toy_ranker.ranking().features.tasks, candidate_numbers=numbers)
    with pytest.raises(BundleForeign, match=r"ranker\.onnx does not run on these features"):
        Engine.load(reranked(ranking=toy_ranker.ranking(features=features).to_json()))


def test_a_ranker_of_other_tasks_is_refused(reranked: Callable[..., Bundle]) -> None:
    def fewer(path: Path) -> None:
        own = toy_ranker.statistics()
        Statistics(own.pairs, own.weights, own.rates[:, :1], own.values).save(path / bundle.STATISTICS)

    features = replace(toy_ranker.ranking().features, tasks=toy_ranker.ranking().features.tasks[:1])
    with pytest.raises(BundleForeign, match="2 lists of up to 1 and 1 tasks"):
        Engine.load(reranked(fewer, ranking=toy_ranker.ranking(features=features, goals={"click": 1.0}).to_json()))


@pytest.mark.parametrize("said", [(0.5, 1.5), (-0.1, 0.5), (0.5, np.nan), (np.inf, 0.5)])
def test_a_ranker_whose_numbers_are_no_probabilities_is_refused(
    reranked: Callable[..., Bundle], said: tuple[float, float]
) -> None:
    with pytest.raises(BundleForeign, match="which are no probabilities"):
        Engine.load(reranked(lambda path: saying(path, *said)))


def test_calibration_does_not_hide_what_a_ranker_says(reranked: Callable[..., Bundle]) -> None:
    fitted = toy_ranker.ranking(calibration={name: Platt() for name in toy_ranker.TASKS})
    with pytest.raises(BundleForeign, match="which are no probabilities"):
        Engine.load(reranked(lambda path: saying(path, 0.5, 3.0), ranking=fitted.to_json()))


def test_a_ranker_may_be_certain(reranked: Callable[..., Bundle]) -> None:
    ranker = Engine.load(reranked(lambda path: saying(path, 0.0, 1.0))).ranker
    assert ranker is not None
    one = Candidates(Request(EMPTY), np.array([4]), np.zeros(1, np.float32))
    assert ranker.rank([one])[0].tolist() == [[0.0, 1.0]]
