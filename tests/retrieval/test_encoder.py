"""Encoders: the graph of the toy bundle, the mean, and what both refuse."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from retrieval.encoder import RUN_SLOTS, MeanEncoder, OnnxEncoder, SequenceEncoder, alike, best_device
from retrieval.errors import BundleForeign, BundleTorn, EmptyHistory, InvalidInput
from retrieval.inputs import Request
from retrieval.sequences import EMPTY, History


def request(*rows: int) -> Request:
    return Request(History.of_rows(rows))


@pytest.fixture(scope="module")
def onnx_encoder(tmp_path_factory: pytest.TempPathFactory) -> OnnxEncoder:
    path = tmp_path_factory.mktemp("graph") / "encoder.onnx"
    toy.graph(path, toy.vectors())
    return OnnxEncoder(path, names=("item_rows",), length=toy.WINDOW)


@pytest.fixture(params=["onnx", "mean"])
def encoder(request: pytest.FixtureRequest, onnx_encoder: OnnxEncoder) -> SequenceEncoder:
    return onnx_encoder if request.param == "onnx" else MeanEncoder(toy.vectors(), length=toy.WINDOW)


def test_a_batch_is_its_requests_one_by_one(encoder: SequenceEncoder) -> None:
    rng = np.random.default_rng(0)
    batch = [request(*rng.integers(1, 21, n)) for n in (1, 2, 9, 10, 11, 40)]
    together = encoder.encode(batch)
    assert together.shape == (6, 4)
    assert together.dtype == np.float32
    for one, expected in zip(batch, together, strict=True):
        np.testing.assert_allclose(encoder.encode([one])[0], expected, rtol=1e-5, atol=1e-6)


def test_a_batch_of_very_different_lengths_is_run_in_parts_and_answered_in_its_order(
    onnx_encoder: OnnxEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    batch = [request(*rng.integers(1, 21, n)) for n in (9, 1, 40, 2, 1, 10, 1, 3, 1, 1, 2)]
    shapes, run = [], onnx_encoder._session.run

    def watched(names: list[str], feeds: dict[str, np.ndarray]) -> object:
        shapes.append(feeds["item_rows"].shape)
        return run(names, feeds)

    monkeypatch.setattr(onnx_encoder._session, "run", watched)
    together = onnx_encoder.encode(batch)
    assert shapes == [(8, 3), (3, toy.WINDOW)]
    monkeypatch.undo()
    for one, expected in zip(batch, together, strict=True):
        np.testing.assert_allclose(onnx_encoder.encode([one])[0], expected, rtol=1e-5, atol=1e-6)


def slots(lengths: list[int], parts: list[range], run_slots: float) -> float:
    return sum(run_slots + len(part) * lengths[part[-1]] for part in parts)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), run_slots=st.integers(0, 200))
def test_parts_are_the_batch_and_cost_no_more_than_it(lengths: list[int], run_slots: int) -> None:
    lengths.sort()
    parts = alike(lengths, run_slots)
    assert [n for part in parts for n in part] == list(range(len(lengths)))
    whole = [range(len(lengths))]
    assert slots(lengths, parts, run_slots) <= slots(lengths, whole, run_slots)
    best_cut = min(
        (slots(lengths, [range(at), range(at, len(lengths))], run_slots) for at in range(1, len(lengths))),
        default=float("inf"),
    )
    assert slots(lengths, parts, run_slots) <= best_cut or parts == whole


def test_one_long_history_is_not_what_all_others_are_padded_to() -> None:
    assert alike([2] * 15 + [50], RUN_SLOTS) == [range(15), range(15, 16)]
    assert alike([10] * 16, RUN_SLOTS) == [range(16)]


def test_only_the_window_is_read(encoder: SequenceEncoder) -> None:
    rows = list(range(1, 11))
    np.testing.assert_array_equal(encoder.encode([request(13, 17, *rows)]), encoder.encode([request(*rows)]))


def test_the_newest_event_counts_most(encoder: SequenceEncoder) -> None:
    vectors = toy.vectors()
    forth, back = encoder.encode([request(3, 8), request(8, 3)])
    assert forth @ vectors[8] > forth @ vectors[3]
    assert back @ vectors[3] > back @ vectors[8]


def test_empty_history(encoder: SequenceEncoder) -> None:
    with pytest.raises(EmptyHistory, match="popular items"):
        encoder.encode([request(1), Request(EMPTY)])


def test_the_toy_graph_sums_with_halving_weights(onnx_encoder: OnnxEncoder) -> None:
    vectors = toy.vectors()
    np.testing.assert_allclose(
        onnx_encoder.encode([request(2, 5, 6)])[0], vectors[6] + vectors[5] / 2 + vectors[2] / 4, rtol=1e-6
    )


def test_the_mean_is_weighted_and_divided() -> None:
    vectors = toy.vectors()
    encoded = MeanEncoder(vectors, decay=0.5).encode([request(2, 6)])[0]
    np.testing.assert_allclose(encoded, (vectors[6] + vectors[2] / 2) / 1.5, rtol=1e-6)


def test_a_batch_of_none_is_refused(onnx_encoder: OnnxEncoder) -> None:
    with pytest.raises(InvalidInput, match="no request"):
        onnx_encoder.encode([])


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleTorn, match=r"encoder\.onnx is not a graph"):
        OnnxEncoder(tmp_path / "encoder.onnx", names=("item_rows",), length=5)


def test_a_graph_with_other_inputs_than_the_manifest_declares_is_refused(tmp_path: Path) -> None:
    toy.graph(tmp_path / "encoder.onnx", toy.vectors())
    with pytest.raises(
        BundleForeign, match=r"declares inputs \['item_rows', 'values'\], the graph has \['item_rows'\]"
    ):
        OnnxEncoder(tmp_path / "encoder.onnx", names=("item_rows", "values"), length=5)


def test_an_input_of_a_later_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleForeign, match="unknown to this version"):
        OnnxEncoder(tmp_path / "encoder.onnx", names=("dwell_times",), length=5)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.graph(tmp_path / "encoder.onnx", toy.vectors())
    monkeypatch.setattr("retrieval.encoder.ort.get_available_providers", lambda: ["CPUExecutionProvider"])
    assert best_device() == "cpu"
    with pytest.raises(BundleForeign, match=r"'cuda' needs CUDAExecutionProvider.*install the gpu extra or use cpu"):
        OnnxEncoder(tmp_path / "encoder.onnx", names=("item_rows",), length=5, device="cuda")


def test_a_device_that_is_offered_and_not_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ort.InferenceSession

    def without_gpu(path: str, options: ort.SessionOptions, **_: object) -> ort.InferenceSession:
        return real(path, options, providers=["CPUExecutionProvider"])  # as onnxruntime falls back by itself

    toy.graph(tmp_path / "encoder.onnx", toy.vectors())
    monkeypatch.setattr(
        "retrieval.encoder.ort.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr("retrieval.encoder.ort.InferenceSession", without_gpu)
    assert best_device() == "cuda"
    with pytest.raises(BundleForeign, match=r"onnxruntime offers \['CPUExecutionProvider'\]"):
        OnnxEncoder(tmp_path / "encoder.onnx", names=("item_rows",), length=5, device="cuda")
