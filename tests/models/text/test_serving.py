from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from models.errors import ExportError
from models.text import serving
from models.text.backbone import Backbone, BackboneConfig
from models.text.local import trained_tokenizer


def test_a_graph_that_differs_from_the_model_is_not_served(monkeypatch: pytest.MonkeyPatch):
    """What a faulty exporter would leave; an honest one is seen in `test_hf_dir.py`."""
    tokenizer = trained_tokenizer(["red lamp", "blue chair"], 300)
    words = tokenizer.get_vocab_size()

    def wrong(_module: torch.nn.Module, _feeds: object, _shapes: object, path: Path, **_names: object) -> None:
        table = np.random.default_rng(0).standard_normal((words, 8)).astype(np.float32)
        graph = helper.make_graph(
            [helper.make_node("Gather", ["table", "input_ids"], ["vector"])],
            "wrong",
            [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in serving.INPUTS],
            [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["B", "T", 8])],
            [numpy_helper.from_array(table, "table")],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))

    monkeypatch.setattr(serving, "trace", wrong)
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(words, d=8, layers=1, heads=1, key_heads=1, head=8, expansion=8))
    with pytest.raises(ExportError, match="differs from the model"):
        serving.served(backbone, tokenizer.to_str(), pooling="mean", tokens=8)
