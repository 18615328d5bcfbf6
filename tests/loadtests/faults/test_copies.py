"""Copies of bundles: which of them may be served, and what they do."""

import numpy as np
import onnxruntime
import pytest
from containers import ROOT
from toy_generative import toy_generative

from loadtests.faults import copies
from loadtests.target import LoadError
from retrieval.bundle import Bundle
from retrieval.errors import BundleTampered


def test_a_twin_is_a_bundle_with_a_digest_of_its_own(toy_bundle, tmp_path):
    twin = Bundle.open(copies.twin(toy_bundle, tmp_path, "second"))
    original = Bundle.open(toy_bundle)
    assert twin.path.name == "second"
    assert twin.digest != original.digest
    assert twin.manifest.files == original.manifest.files


def test_a_broken_one_is_refused(toy_bundle, tmp_path):
    with pytest.raises(BundleTampered):
        Bundle.open(copies.broken(toy_bundle, tmp_path, "broken"))


@pytest.mark.parametrize("name", ["toy", "demo"])
def test_the_encoder_of_a_poisoned_one_raises_on_one_item_and_on_no_other(toy_bundle, tmp_path, name):
    copy, poison = copies.poisoned(toy_bundle if name == "toy" else ROOT / "artifacts" / "demo", tmp_path)
    bundle = Bundle.open(copy)
    graph = bundle.manifest.graphs["encoder"]
    assert len(bundle.item_vectors) == len(bundle.catalog) + 1
    assert not bundle.catalog.available[bundle.catalog.row(poison)]
    assert bundle.catalog.attributes(bundle.catalog.row(poison)) == {}
    session = onnxruntime.InferenceSession(str(copy / graph.file), providers=["CPUExecutionProvider"])
    windows = np.zeros((2, bundle.manifest.window), np.int64)
    windows[:, -1] = 1
    assert session.run(None, {"item_rows": windows})[0].shape[0] == 2
    windows[1, -1] = bundle.catalog.row(poison)
    with pytest.raises(Exception, match=r"out of data bounds|out of bounds"):
        session.run(None, {"item_rows": windows})


def test_what_cannot_be_spoilt_like_this_is_refused(tmp_path):
    with pytest.raises(LoadError, match="more in it than an encoder"):
        copies.poisoned(toy_generative(tmp_path / "generative"), tmp_path)
    with pytest.raises(LoadError, match="no manifest"):
        copies.twin(tmp_path / "absent", tmp_path, "second")
