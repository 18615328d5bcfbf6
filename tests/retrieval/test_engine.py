"""The engine of a bundle: what is loaded, and parts that do not fit each other."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import toy_generative
from onnx import numpy_helper
from toy_generative import VOCABULARY, D, codes

from retrieval import bundle
from retrieval.bundle import Bundle, Graph
from retrieval.codes import CodeTable
from retrieval.decoder import OnnxDecoder, ParallelDecoder
from retrieval.describer import Describer
from retrieval.engine import Engine, tables
from retrieval.errors import BundleForeign, BundleTorn


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
