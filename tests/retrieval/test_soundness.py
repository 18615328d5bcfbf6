"""A sound bundle passes, and each way to be unsound is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy

from retrieval import bundle, soundness
from retrieval.bundle import Bundle
from retrieval.errors import BundleForeign, BundleTorn
from retrieval.index import ExactIndex
from retrieval.recommenders import load


@pytest.fixture
def served(toy_bundle: Path):
    return load(Bundle.open(toy_bundle))


def with_references(path: Path, queries: np.ndarray) -> Path:
    with bundle.writing(path) as directory:
        toy.catalog().save(directory / bundle.CATALOG)
        np.save(directory / bundle.ITEM_VECTORS, toy.vectors(), allow_pickle=False)
        toy.graph(directory / "encoder.onnx", toy.vectors())
        (directory / bundle.WARMUP).write_text('[["i01"], ["i02", "i03"]]')
        np.save(directory / bundle.WARMUP_QUERIES, queries, allow_pickle=False)
        bundle.seal(directory, toy.manifest())
    return path


def embeddings() -> np.ndarray:
    vectors = toy.vectors()
    return np.stack([vectors[1], vectors[3] + 0.5 * vectors[2]])


class Lonely:
    """Answers well as long as nobody else asks."""

    def __init__(self, real):
        self._real = real

    def recommend(self, queries, *rest):
        answers = self._real.recommend(queries, *rest)
        return answers if len(queries) == 1 else [replace(a, scores=a.scores * 1.01) for a in answers]


class Forgetful:
    """An index that misses half of the best."""

    name = "forgetful"

    def __init__(self, vectors):
        self.vectors = vectors

    def search(self, queries, k, eligible, exclude):
        found = ExactIndex(self.vectors).search(queries, k, eligible, exclude)
        return [(rows[::2], scores[::2]) for rows, scores in found]


def test_a_sound_bundle_passes(served):
    soundness.check(served)
    assert len(soundness.warmup_histories(served)) == 2


def test_a_bundle_without_histories_is_tried_with_its_first_item(served):
    served.bundle.__dict__["warmup"] = [["unheard of"]]
    assert [one.rows.tolist() for one in soundness.warmup_histories(served)] == [[1]]


def test_references_that_the_encoder_meets_pass(tmp_path):
    soundness.check(load(Bundle.open(with_references(tmp_path / "b", embeddings()))))


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        (embeddings() * 1.01, "differs from the model that was trained"),
        (embeddings()[:1], "holds 1 embeddings for 2 histories"),
        (embeddings()[:, :3], "the encoder gives"),
    ],
)
def test_references_that_the_encoder_does_not_meet_are_refused(tmp_path, queries, said):
    with pytest.raises(BundleForeign, match=said):
        soundness.check_references(load(Bundle.open(with_references(tmp_path / "b", queries))))


@pytest.mark.parametrize("queries", [embeddings().astype(np.float64), embeddings()[0], embeddings() * np.nan])
def test_references_that_are_no_embeddings_are_torn(tmp_path, queries):
    with pytest.raises(BundleTorn, match="finite float32"):
        _ = Bundle.open(with_references(tmp_path / "b", queries)).warmup_queries


def test_an_answer_that_depends_on_who_else_asks_is_refused(served):
    lonely = replace(served, recommender=Lonely(served.recommender))
    with pytest.raises(BundleForeign, match="who else is in the batch"):
        soundness.check(lonely)


def test_an_index_below_its_promise_is_refused(served):
    manifest = replace(served.bundle.manifest, index={"kind": "ivf", "k": 10, "target_recall": 0.98})
    poor = replace(served, index=Forgetful(served.index.vectors), bundle=replace(served.bundle, manifest=manifest))
    with pytest.raises(BundleForeign, match=r"finds 0\.500 of the best 10"):
        soundness.check_recall(poor, soundness.warmup_histories(poor))
