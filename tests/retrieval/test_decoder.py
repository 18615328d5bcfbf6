"""Decoders: what the graphs are fed, and that what they say is what NumPy says."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import toy
import toy_generative
from onnx import helper
from toy_generative import LEVELS, UNCODED, VOCABULARY, codes

from retrieval import decoder as decoders
from retrieval.decoder import CodedHistories, OnnxDecoder, ParallelDecoder
from retrieval.errors import BundleForeign, BundleTorn, EmptyHistory, InvalidInput
from retrieval.inputs import Request, Tables
from retrieval.sequences import EMPTY, History


def asked(*histories: Sequence[int]) -> list[Request]:
    return [Request(History.of_rows(history)) for history in histories]


def histories(*names: str, length: int = toy.WINDOW, trained: int = toy.N) -> CodedHistories:
    return CodedHistories(names or ("item_codes",), length, Tables(codes=codes()), trained)


@pytest.fixture
def decoder(generative_bundle: Path) -> OnnxDecoder:
    return OnnxDecoder(
        generative_bundle / "prefill.onnx",
        generative_bundle / "step.onnx",
        histories=histories(),
        vocabulary=VOCABULARY,
    )


@pytest.fixture
def parallel(tmp_path: Path) -> ParallelDecoder:
    toy_generative.parallel_graph(tmp_path / "all.onnx")
    return ParallelDecoder(tmp_path / "all.onnx", histories=histories(), vocabulary=VOCABULARY)


# --- histories as codes ----------------------------------------------------------------------------------


def test_histories_are_padded_to_the_longest_and_cut_to_the_window() -> None:
    fed = histories(length=3).feeds(asked([1, 2], [3, 4, 5, 6]))["item_codes"]
    own = codes().codes
    assert fed.shape == (2, 3, LEVELS)
    assert fed[0].tolist() == [[-1] * LEVELS, own[1].tolist(), own[2].tolist()]
    assert fed[1].tolist() == own[[4, 5, 6]].tolist()
    assert histories(length=50).feeds(asked([1], [2]))["item_codes"].shape == (2, 1, LEVELS)


def test_items_without_a_code_take_no_place_in_the_window() -> None:
    fed = histories(length=2).feeds(asked([1, 2, UNCODED, UNCODED]))["item_codes"]
    assert fed[0].tolist() == codes().codes[[1, 2]].tolist()


@pytest.mark.parametrize("rows", [[], [UNCODED], [0]])
def test_an_empty_history_is_refused_and_known_before(rows: list[int]) -> None:
    read = histories()
    assert not read.reads(Request(EMPTY if not rows else History.of_rows(rows)))
    with pytest.raises(EmptyHistory, match="has a code"):
        read.feeds(asked([1], rows))


def test_a_graph_of_rows_never_sees_one_that_came_later() -> None:
    assert histories("item_codes", trained=5).reads(asked([6])[0])
    read = histories("item_codes", "item_rows", trained=5)
    assert not read.reads(asked([6])[0])
    assert read.feeds(asked([6, 2, 7, 3]))["item_rows"].tolist() == [[2, 3]]


def test_nothing_to_read_from() -> None:
    with pytest.raises(InvalidInput, match="no request"):
        histories().feeds([])
    with pytest.raises(InvalidInput, match="give it the code table"):
        CodedHistories(("item_codes",), 5, Tables(), 20)


# --- two graphs ------------------------------------------------------------------------------------------


def test_a_step_says_what_numpy_says(decoder: OnnxDecoder) -> None:
    past = [[3], [5, 7, UNCODED, 9], list(range(1, 17))]
    memory = decoder.prefill(asked(*past))
    assert len(memory) == 3
    rng = np.random.default_rng(0)
    for level in range(LEVELS):
        prefix = rng.integers(0, 4, (3, 5, level))
        said = decoder.step(memory, prefix)
        assert said.dtype == np.float32
        assert said.shape == (3, 5, VOCABULARY[level])
        for r, m in np.ndindex(3, 5):
            want = toy_generative.log_probs(past[r], prefix[r, m].tolist())
            np.testing.assert_allclose(said[r, m], want, atol=2e-6)


def test_a_wave_says_what_each_alone_would_hear(decoder: OnnxDecoder) -> None:
    requests = asked([3], [5, 7], [1, 2, 3, 4, 5])
    prefix = np.arange(6).reshape(3, 2, 1) % 4
    together = decoder.step(decoder.prefill(requests), prefix)
    for r, request in enumerate(requests):
        alone = decoder.step(decoder.prefill([request]), prefix[r : r + 1])
        np.testing.assert_allclose(together[r], alone[0], atol=2e-6)


def test_memory_follows_who_is_taken(decoder: OnnxDecoder) -> None:
    memory = decoder.prefill(asked([3], [5, 7], [9]))
    taken = memory.take(np.array([2, 0]))
    assert len(taken) == 2
    root = np.zeros((3, 1, 0), np.int64)
    np.testing.assert_array_equal(decoder.step(taken, root[:2]), decoder.step(memory, root)[[2, 0]])


@pytest.mark.parametrize("at_once", [1, 3, 7, 8, 23])
def test_more_prefixes_than_fit_into_one_run(
    decoder: OnnxDecoder, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = decoder.prefill(asked([3], [5, 7], [9]))
    prefix = np.random.default_rng(1).integers(0, 4, (3, 8, 2))
    whole = decoder.step(memory, prefix)
    monkeypatch.setattr(decoders, "PREFIXES_AT_ONCE", at_once)
    np.testing.assert_allclose(decoder.step(memory, prefix), whole, atol=2e-6)


def test_the_same_graphs_over_a_longer_catalog(decoder: OnnxDecoder) -> None:
    longer = decoder.with_tables(Tables(codes=codes().extended(codes().codes[3:4])))
    new, twin = longer.step(longer.prefill(asked([toy.N + 1], [3])), np.zeros((2, 1, 0), np.int64))
    np.testing.assert_array_equal(new, twin)
    with pytest.raises(IndexError):
        decoder.prefill(asked([toy.N + 1]))


def test_a_step_that_reads_what_nobody_gives_is_refused(generative_bundle: Path, tmp_path: Path) -> None:
    toy_generative.parallel_graph(tmp_path / "other.onnx")
    with pytest.raises(BundleForeign, match=r"reads \['item_codes'\]; 'prefix' and outputs of prefill.onnx"):
        OnnxDecoder(
            generative_bundle / "prefill.onnx", tmp_path / "other.onnx", histories=histories(), vocabulary=VOCABULARY
        )


def test_a_step_that_reads_nothing_of_the_history_is_refused(generative_bundle: Path, tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("prefix", onnx.TensorProto.INT64, ["R", "M", "T"])
    out = helper.make_tensor_value_info("log_probs", onnx.TensorProto.INT64, ["R", "M", "T"])
    graph = helper.make_graph([helper.make_node("Identity", ["prefix"], ["log_probs"])], "deaf", [value], [out])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "deaf.onnx"
    )
    with pytest.raises(BundleForeign, match="no history could matter"):
        OnnxDecoder(
            generative_bundle / "prefill.onnx", tmp_path / "deaf.onnx", histories=histories(), vocabulary=VOCABULARY
        )


def test_inputs_that_the_manifest_does_not_declare_are_refused(generative_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleForeign, match="the manifest declares inputs"):
        OnnxDecoder(
            generative_bundle / "prefill.onnx",
            generative_bundle / "step.onnx",
            histories=histories("item_codes", "timestamps"),
            vocabulary=VOCABULARY,
        )
    (tmp_path / "torn.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleTorn, match="not a graph"):
        ParallelDecoder(tmp_path / "torn.onnx", histories=histories(), vocabulary=VOCABULARY)


# --- one graph -------------------------------------------------------------------------------------------


def test_all_levels_at_once_say_what_numpy_says(parallel: ParallelDecoder) -> None:
    past = [[3], [5, 7, 9]]
    memory = parallel.prefill(asked(*past))
    assert parallel.distributions(memory).shape == (2, LEVELS, max(VOCABULARY))
    for level in range(LEVELS):
        said = parallel.step(memory, np.zeros((2, 7, level), np.int64))
        assert said.shape == (2, 1, VOCABULARY[level])
        for r in range(2):
            np.testing.assert_allclose(said[r, 0], toy_generative.distributions(past[r])[level], atol=2e-6)
