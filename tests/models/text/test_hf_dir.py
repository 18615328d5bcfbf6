"""Tiny random checkpoints under the public names, and the same computation written once more in NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from models.errors import InvalidOption, MissingData, UnreadableData
from models.progress import Progress
from models.text.hf_dir import hf_dir, load, pooling_of
from models.text.registry import TextOptions

D, LAYERS, HEADS, WORDS, FORWARD, PLACES = 8, 2, 2, 12, 20, 16
BERT = {
    "model_type": "bert", "vocab_size": WORDS, "hidden_size": D, "num_hidden_layers": LAYERS, "hidden_act": "gelu",
    "num_attention_heads": HEADS, "intermediate_size": FORWARD, "max_position_embeddings": PLACES,
    "layer_norm_eps": 1e-12,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": WORDS, "hidden_size": D, "num_hidden_layers": LAYERS, "hidden_act": "silu",
    "num_attention_heads": HEADS, "num_key_value_heads": 1, "intermediate_size": FORWARD, "rms_norm_eps": 1e-6,
    "max_position_embeddings": PLACES, "rope_theta": 100.0,
}  # fmt: skip

Weights = dict[str, np.ndarray]


def linear(rng: np.random.Generator, name: str, out: int, into: int, bias: bool) -> Weights:
    made = {f"{name}.weight": rng.standard_normal((out, into)) / 2}
    return made | ({f"{name}.bias": rng.standard_normal(out) / 2} if bias else {})


def bert_weights(rng: np.random.Generator) -> Weights:
    made: Weights = {}
    tables = {"word": WORDS, "position": PLACES, "token_type": 2}
    for name, size in tables.items():
        made[f"embeddings.{name}_embeddings.weight"] = rng.standard_normal((size, D))
    norms = ["embeddings.LayerNorm"]
    for at in range(LAYERS):
        block = f"encoder.layer.{at}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            made |= linear(rng, f"{block}.{name}", D, D, True)
        made |= linear(rng, f"{block}.intermediate.dense", FORWARD, D, True)
        made |= linear(rng, f"{block}.output.dense", D, FORWARD, True)
        norms += [f"{block}.attention.output.LayerNorm", f"{block}.output.LayerNorm"]
    for name in norms:
        made |= {f"{name}.weight": 1 + rng.standard_normal(D) / 4, f"{name}.bias": rng.standard_normal(D) / 4}
    return made | linear(rng, "pooler.dense", D, D, True)


def llama_weights(rng: np.random.Generator, *, biases: bool = False) -> Weights:
    made: Weights = {"model.embed_tokens.weight": rng.standard_normal((WORDS, D))}
    norms = ["model.norm"]
    for at in range(LAYERS):
        block = f"model.layers.{at}"
        for name, out in (("q_proj", D), ("k_proj", D // 2), ("v_proj", D // 2)):
            made |= linear(rng, f"{block}.self_attn.{name}", out, D, biases)
        made |= linear(rng, f"{block}.self_attn.o_proj", D, D, False)
        for name in ("gate_proj", "up_proj"):
            made |= linear(rng, f"{block}.mlp.{name}", FORWARD, D, False)
        made |= linear(rng, f"{block}.mlp.down_proj", D, FORWARD, False)
        norms += [f"{block}.input_layernorm", f"{block}.post_attention_layernorm"]
    made |= {f"{name}.weight": 1 + rng.standard_normal(D) / 4 for name in norms}
    return made | {"lm_head.weight": rng.standard_normal((WORDS, D))}


def write(path: Path, config: dict, weights: Weights) -> Path:
    words = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "red": 4, "blue": 5, "lamp": 6, "chair": 7}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if config["model_type"] == "bert":
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: array.astype(np.float32) for name, array in weights.items()}, path / "model.safetensors")
    return path


def bert(w: Weights, ids: list[int]) -> np.ndarray:
    """The last states (T, D) of one text."""

    def apply(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-12)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    tables = [w[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")]
    x = norm("embeddings.LayerNorm", tables[0][ids] + tables[1][: len(ids)] + tables[2][0])
    for at in range(LAYERS):
        block = f"encoder.layer.{at}"
        parts = [apply(f"{block}.attention.self.{name}", x) for name in ("query", "key", "value")]
        x = norm(f"{block}.attention.output.LayerNorm", x + apply(f"{block}.attention.output.dense", heads(*parts)))
        inner = apply(f"{block}.intermediate.dense", x)
        inner = torch.nn.functional.gelu(torch.from_numpy(inner)).numpy()
        x = norm(f"{block}.output.LayerNorm", x + apply(f"{block}.output.dense", inner))
    return x


def heads(query: np.ndarray, key: np.ndarray, value: np.ndarray, *, causal: bool = False) -> np.ndarray:
    """Attention head by head; keys of fewer heads are shared."""
    width, out = D // HEADS, []
    for at in range(HEADS):
        mine, shared = slice(at * width, (at + 1) * width), slice(0, width) if key.shape[1] < D else None
        scores = query[:, mine] @ key[:, shared or mine].T / np.sqrt(width)
        if causal:
            scores[np.triu_indices(len(scores), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out.append(weights / weights.sum(axis=1, keepdims=True) @ value[:, shared or mine])
    return np.concatenate(out, axis=1)


def llama(w: Weights, ids: list[int]) -> np.ndarray:
    """The last states (T, D) of one text."""

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6) * w[f"model.{name}.weight"]

    def apply(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"model.{name}.weight"].T + w.get(f"model.{name}.bias", 0.0)

    def turn(x: np.ndarray) -> np.ndarray:
        out, width = np.empty_like(x), D // HEADS
        for t, head, i in np.ndindex(len(x), x.shape[1] // width, width // 2):
            a, b = head * width + i, head * width + i + width // 2
            plane = complex(x[t, a], x[t, b]) * np.exp(1j * t * 100.0 ** (-2 * i / width))
            out[t, a], out[t, b] = plane.real, plane.imag
        return out

    x = w["model.embed_tokens.weight"][ids]
    for at in range(LAYERS):
        block = f"layers.{at}"
        given = norm(f"{block}.input_layernorm", x)
        query, key, value = (apply(f"{block}.self_attn.{name}_proj", given) for name in "qkv")
        x = x + apply(f"{block}.self_attn.o_proj", heads(turn(query), turn(key), value, causal=True))
        given = norm(f"{block}.post_attention_layernorm", x)
        gate = apply(f"{block}.mlp.gate_proj", given)
        x = x + apply(f"{block}.mlp.down_proj", gate / (1 + np.exp(-gate)) * apply(f"{block}.mlp.up_proj", given))
    return norm("norm", x)


def states(directory: Path, ids: list[int]) -> np.ndarray:
    model = load(directory)
    with torch.inference_mode():
        return model(model.embed(torch.tensor([ids])), torch.ones(1, len(ids)))[-1][0].numpy()


IDS = [1, 4, 6, 9, 2]


class TestFamilies:
    def test_bert_computes_what_its_weights_say(self, tmp_path: Path):
        weights = bert_weights(np.random.default_rng(0))
        prefixed = {f"bert.{name}": array for name, array in weights.items()}
        for at, given in enumerate((weights, prefixed)):
            directory = write(tmp_path / str(at), BERT, given)
            np.testing.assert_allclose(states(directory, IDS), bert(weights, IDS), atol=1e-4)

    @pytest.mark.parametrize(("family", "biases"), [("llama", False), ("mistral", False), ("qwen2", True)])
    def test_decoders_compute_what_their_weights_say(self, tmp_path: Path, family: str, biases: bool):
        weights = llama_weights(np.random.default_rng(1), biases=biases)
        directory = write(tmp_path / family, {**LLAMA, "model_type": family}, weights)
        np.testing.assert_allclose(states(directory, IDS), llama(weights, IDS), atol=1e-4)
        assert pooling_of(directory) == "last"

    def test_weights_in_half_precision_are_read(self, tmp_path: Path):
        weights = bert_weights(np.random.default_rng(0))
        directory = write(tmp_path / "half", BERT, weights)
        half = {name: array.astype(np.float16) for name, array in weights.items()}
        save_file(half, directory / "model.safetensors")
        np.testing.assert_allclose(states(directory, IDS), bert(weights, IDS), atol=0.05)


def test_served_vectors_are_the_mean_of_the_states(tmp_path: Path):
    weights = bert_weights(np.random.default_rng(0))
    directory = write(tmp_path / "bert", BERT, weights)
    options = TextOptions(text_dir=str(directory), text_tokens=8)
    encoder = hf_dir([], options, seed=1, progress=Progress())
    texts = {"red lamp": [1, 4, 6, 2], "blue": [1, 5, 2], "chair " * 20: [1, *[7] * 6, 2]}
    for found, ids in zip(encoder.encode(list(texts)), texts.values(), strict=True):
        mean = bert(weights, ids).mean(axis=0)
        np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-5)
    assert not encoder.encode([""]).any()


class TestPooling:
    @pytest.mark.parametrize(("mode", "how"), [("mean_tokens", "mean"), ("cls_token", "cls"), ("lasttoken", "last")])
    def test_the_directory_decides(self, tmp_path: Path, mode: str, how: str):
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True, "other": 3}))
        assert pooling_of(tmp_path) == how

    def test_another_way_is_refused(self, tmp_path: Path):
        (tmp_path / "1_Pooling").mkdir()
        (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
        with pytest.raises(UnreadableData, match="max_tokens"):
            pooling_of(tmp_path)


class TestRefusals:
    def test_a_directory_must_be_named_and_be_there(self, tmp_path: Path):
        with pytest.raises(InvalidOption, match="text_dir=DIR"):
            hf_dir([], TextOptions(), seed=1, progress=Progress())
        with pytest.raises(MissingData, match=r"holds no tokenizer\.json"):
            hf_dir([], TextOptions(text_dir=str(tmp_path)), seed=1, progress=Progress())
        with pytest.raises(MissingData, match=r"holds no config\.json"):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"model_type": "gpt2"}, "gpt2"),
            ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
            ({"hidden_act": "relu"}, "relu"),
            ({"vocab_size": None}, "cannot be read"),
            ({"vocab_size": 13}, "do not fit"),
            ({"num_hidden_layers": 3}, "do not fit|layers.2"),
        ],
    )
    def test_what_is_not_computed_here_is_refused(self, tmp_path: Path, change: dict, word: str):
        directory = write(tmp_path / "llama", {**LLAMA, **change}, llama_weights(np.random.default_rng(1)))
        with pytest.raises(UnreadableData, match=word):
            load(directory)

    def test_torn_weights_are_refused(self, tmp_path: Path):
        directory = write(tmp_path / "bert", BERT, bert_weights(np.random.default_rng(0)))
        weights = directory / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(UnreadableData, match="cannot be read"):
            load(directory)
