from pathlib import Path

import numpy as np
import onnx as onnx_format
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from models.errors import InvalidOption, MissingData, UnreadableData
from models.progress import Progress
from models.text.onnx import onnx
from models.text.registry import TextOptions


def options(directory: Path) -> TextOptions:
    return TextOptions(text_dir=str(directory))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "red": 1, "lamp": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    table = np.array([[1, 0], [0, 1], [3, 4]], dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["states"])],
        "lookup",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["B", "T"])],
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, ["B", "T", 2])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx_format.save(model, str(tmp_path / "model.onnx"))
    return tmp_path


def test_the_graph_is_used_as_it_is(directory: Path):
    encoder = onnx([], options(directory), seed=1, progress=Progress())
    np.testing.assert_allclose(encoder.encode(["lamp", "red"]), [[0.6, 0.8], [0, 1]], rtol=1e-6)


def test_a_missing_part_is_named(directory: Path):
    with pytest.raises(InvalidOption, match="text_dir=DIR"):
        onnx([], TextOptions(), seed=1, progress=Progress())
    (directory / "model.onnx").unlink()
    with pytest.raises(MissingData, match=r"model\.onnx"):
        onnx([], options(directory), seed=1, progress=Progress())
    (directory / "tokenizer.json").unlink()
    with pytest.raises(MissingData, match=r"tokenizer\.json"):
        onnx([], options(directory), seed=1, progress=Progress())


def test_a_graph_that_cannot_be_opened_is_refused(directory: Path):
    (directory / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UnreadableData, match="cannot be opened"):
        onnx([], options(directory), seed=1, progress=Progress())
