import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from retrieval.errors import BundleForeign, BundleTorn, InvalidInput
from retrieval.text import HashedText, OnnxText, describe, load_text, terms

BUCKETS = 64


@pytest.fixture
def hashed() -> HashedText:
    rng = np.random.default_rng(0)
    places = np.arange(BUCKETS, dtype=np.int32) - 1  # the first bucket is never learnt
    return HashedText(places, rng.standard_normal((BUCKETS - 1, 5)).astype(np.float32))


class TestDescribe:
    def test_fields_stand_in_their_order_and_absent_ones_are_left_out(self):
        known = {"year": 1968.0, "title": " Red Lamp ", "tags": ["home", "light"], "brand": None, "price": 9.5}
        assert describe(known, ("title", "brand", "tags", "year", "price")) == "Red Lamp. home, light. 1968. 9.5"

    @pytest.mark.parametrize("known", [{}, {"title": "  "}, {"title": None}, {"title": []}, {"other": "word"}])
    def test_nothing_said_is_the_empty_text(self, known: dict):
        assert describe(known, ("title",)) == ""


class TestTerms:
    def test_words_and_pairs_are_counted_whatever_their_case(self):
        assert sum(terms("Red red lamp", 1 << 20).values()) == 5
        assert terms("Red red", 1 << 20) == terms("RED, Red!", 1 << 20)

    def test_the_hash_is_the_same_in_every_process(self):
        code = "from retrieval.text import terms; print(sorted(terms('red lamp', 1000)))"
        printed = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
        )
        assert json.loads(printed.stdout) == sorted(terms("red lamp", 1000))


class TestHashedText:
    def test_a_vector_is_the_weighted_sum_of_its_terms(self, hashed: HashedText):
        weights = np.zeros(BUCKETS)
        for bucket, count in terms("lamp lamp red", BUCKETS).items():
            weights[bucket] = 1 + np.log(count)
        summed = weights[1:] @ hashed._matrix
        np.testing.assert_allclose(hashed.encode(["lamp lamp red"])[0], summed / np.linalg.norm(summed), rtol=1e-6)

    def test_vectors_have_length_one_and_do_not_depend_on_their_company(self, hashed: HashedText):
        together = hashed.encode(["red lamp", "blue chair in the hall", "lamp"])
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, rtol=1e-6)
        alone = np.concatenate([hashed.encode([text]) for text in ("red lamp", "blue chair in the hall", "lamp")])
        assert (together == alone).all()

    def test_empty_text_is_zero(self, hashed: HashedText):
        assert not hashed.encode(["", " ... "]).any()
        assert hashed.encode([]).shape == (0, 5)

    def test_arrays_that_do_not_belong_together_are_refused(self):
        with pytest.raises(InvalidInput, match="do not belong together"):
            HashedText(np.array([3], dtype=np.int32), np.zeros((2, 2), dtype=np.float32))

    def test_saved_and_loaded_it_is_the_same_to_the_last_bit(self, hashed: HashedText, tmp_path: Path):
        hashed.save(tmp_path)
        assert (load_text(tmp_path).encode(["red lamp"]) == hashed.encode(["red lamp"])).all()

    def test_a_damaged_file_is_torn(self, hashed: HashedText, tmp_path: Path):
        hashed.save(tmp_path)
        (tmp_path / "text.npz").write_bytes(b"no archive")
        with pytest.raises(BundleTorn, match="export it again"):
            load_text(tmp_path)

    def test_an_unknown_encoder_is_foreign(self, tmp_path: Path):
        (tmp_path / "text.json").write_text('{"kind": "dreams"}')
        with pytest.raises(BundleForeign, match="dreams"):
            load_text(tmp_path)


def words_only(words: list[str]) -> str:
    """A tokenizer file that knows these words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer.to_str()


def looked_up(table: np.ndarray, inputs: tuple[str, ...] = ("input_ids", "attention_mask")) -> bytes:
    """A graph that gathers the rows of a table: (B, T) -> (B, T, D)."""
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])]
    made = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in inputs],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["B", "T", table.shape[1]])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class TestOnnxText:
    words = ("?", "red", "lamp", "chair")
    table = np.array([[0, 0, 1], [3, 0, 0], [0, 2, 0], [0, 2, 2]], dtype=np.float32)

    @pytest.fixture
    def encoder(self) -> OnnxText:
        return OnnxText(words_only(list(self.words)), looked_up(self.table), tokens=4)

    def test_states_of_the_real_tokens_are_averaged(self, encoder: OnnxText):
        found = encoder.encode(["red lamp", "chair", ""])
        mean = np.array([1.5, 1.0, 0.0])
        np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), rtol=1e-6)
        np.testing.assert_allclose(found[1], [0, 0.5**0.5, 0.5**0.5], rtol=1e-6)
        assert not found[2].any()
        assert encoder.width == 3

    def test_order_is_kept_whatever_the_lengths(self, encoder: OnnxText):
        texts = [" ".join(["red", "lamp", "chair"][: 1 + at % 3]) for at in range(70)]
        np.testing.assert_allclose(
            encoder.encode(texts), np.concatenate([encoder.encode([text]) for text in texts]), rtol=1e-6
        )

    def test_a_long_text_is_cut(self, encoder: OnnxText):
        same = encoder.encode(["red red red red", "red red red red lamp"])
        assert (same[0] == same[1]).all()

    def test_saved_and_loaded_it_is_the_same(self, encoder: OnnxText, tmp_path: Path):
        encoder.save(tmp_path)
        again = load_text(tmp_path)
        assert (again.encode(["red chair lamp lamp lamp"]) == encoder.encode(["red chair lamp lamp lamp"])).all()

    def test_other_inputs_are_foreign(self):
        with pytest.raises(BundleForeign, match="pixels"):
            OnnxText(words_only(list(self.words)), looked_up(self.table, ("input_ids", "pixels")))

    def test_damaged_files_are_torn(self):
        with pytest.raises(BundleTorn, match="cannot be opened"):
            OnnxText(words_only(list(self.words)), b"no graph")
        with pytest.raises(BundleTorn, match="not a tokenizer"):
            OnnxText("{}", looked_up(self.table))

    def test_without_the_package_the_message_says_how_to_install_it(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        with pytest.raises(BundleForeign, match=r"pip install 'sequitur\[text\]'"):
            OnnxText("{}", b"")
