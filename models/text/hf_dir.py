"""A checkpoint directory as it is published: config.json, tokenizer.json, model.safetensors.

BERT, Llama, Mistral and Qwen2 are read into our own modules; nothing of another library runs. How the states become
one vector is what the directory says (`1_Pooling/config.json`), or the mean for BERT and the last token otherwise.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from models.errors import InvalidOption, MissingData, UnreadableData
from models.progress import Progress
from models.text.backbone import Backbone, BackboneConfig, Pooling
from models.text.registry import PROVIDERS, TextOptions
from models.text.serving import served
from retrieval.text import OnnxText

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
POOLING = "1_Pooling/config.json"
LARGEST = 2**31 - 2**20  # bytes of weights that one ONNX file can hold

DECODERS = ("llama", "mistral", "qwen2")

# Our names and the public ones, within a block and around the blocks.
BERT_BLOCK = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "forward_norm": "output.LayerNorm",
}
BERT = {
    "words": "embeddings.word_embeddings",
    "places": "embeddings.position_embeddings",
    "entry": "embeddings.LayerNorm",
}
DECODER_BLOCK = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "forward_norm": "post_attention_layernorm",
}
DECODER = {"words": "embed_tokens", "exit": "norm"}


@PROVIDERS.register("hf_dir")
def hf_dir(texts: Sequence[str], options: TextOptions, *, seed: int, progress: Progress) -> OnnxText:
    """The checkpoint in `text_dir`, frozen."""
    del texts, seed
    directory = directory_of(options)
    backbone = load(directory)
    size = sum(p.numel() for p in backbone.parameters())
    if 4 * size > LARGEST:
        raise InvalidOption(
            f"text_dir {directory}: {size:,} weights are more than an ONNX file holds; take a smaller one"
        )
    progress.say(f"hf_dir: {directory.name}, {size:,} weights, vectors of {backbone.config.d}")
    tokens = min(options.text_tokens, backbone.config.positions)
    return served(backbone, (directory / TOKENIZER).read_text(), pooling=pooling_of(directory), tokens=tokens)


def directory_of(options: TextOptions) -> Path:
    """The checkpoint's directory, with a tokenizer in it.

    Raises:
        InvalidOption: none is named.
        MissingData: it is not there, or holds no tokenizer.
    """
    if not options.text_dir:
        raise InvalidOption("this text encoder reads a checkpoint; name its directory by --set text_dir=DIR")
    directory = Path(options.text_dir).expanduser()
    if not (directory / TOKENIZER).is_file():
        raise MissingData(f"{directory} holds no {TOKENIZER}; point text_dir at a checkpoint directory")
    return directory


def load(directory: Path) -> Backbone:
    """The model of a checkpoint directory, with its weights.

    Raises:
        MissingData: a file is not there.
        UnreadableData: it is of another family, or its weights do not fit its configuration.
    """
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise MissingData(f"{directory} holds no {name}; a checkpoint has {CONFIG}, {TOKENIZER} and {WEIGHTS}")
    try:
        said = json.loads((directory / CONFIG).read_text())
        config = backbone_config(said)
        backbone = Backbone(config)
        stored = load_file(directory / WEIGHTS)
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UnreadableData(f"{directory} cannot be read as a checkpoint: {error}") from error
    try:
        backbone.load_state_dict(renamed(stored, said["model_type"], config))
    except (RuntimeError, KeyError) as error:
        raise UnreadableData(f"{directory}: the weights do not fit {CONFIG}: {error}") from error
    return backbone.eval()


def backbone_config(said: Mapping[str, Any]) -> BackboneConfig:
    """Our settings for a public configuration.

    Raises:
        UnreadableData: another family, or a variant of it that these modules do not compute.
    """
    family = said.get("model_type")
    common = {
        "vocabulary": said["vocab_size"],
        "d": said["hidden_size"],
        "layers": said["num_hidden_layers"],
        "heads": said["num_attention_heads"],
        "head": said.get("head_dim") or said["hidden_size"] // said["num_attention_heads"],
        "expansion": said["intermediate_size"],
        "positions": said["max_position_embeddings"],
    }
    if family == "bert":
        _only(said, "hidden_act", "gelu")
        _only(said, "position_embedding_type", "absolute")
        return BackboneConfig(
            **common, key_heads=said["num_attention_heads"], norm="layer", rotary=False, gated=False, biases=True,
            epsilon=said["layer_norm_eps"],
        )  # fmt: skip
    if family in DECODERS:
        _only(said, "hidden_act", "silu")
        _only(said, "rope_scaling", None)
        _only(said, "mlp_bias", False)
        if family != "qwen2":
            _only(said, "attention_bias", False)
        rope = said.get("rope_parameters") or {}
        _only(rope, "rope_type", "default")
        # A sliding window longer than any text that is read changes nothing.
        return BackboneConfig(
            **common, key_heads=said.get("num_key_value_heads") or said["num_attention_heads"],
            biases=family == "qwen2", causal=True, epsilon=said["rms_norm_eps"],
            base=float(said.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
        )  # fmt: skip
    raise UnreadableData(f"model_type {family!r} is not known; bert, {', '.join(DECODERS)} are")


def renamed(stored: Mapping[str, torch.Tensor], family: str, config: BackboneConfig) -> dict[str, torch.Tensor]:
    """Public weights under our names, in float32.

    Raises:
        KeyError: one is missing.
    """
    around, block, folder = (
        (BERT, BERT_BLOCK, "encoder.layer") if family == "bert" else (DECODER, DECODER_BLOCK, "layers")
    )
    bare = {name.removeprefix("bert.").removeprefix("model."): tensor.float() for name, tensor in stored.items()}
    names = dict(around)
    for at in range(config.layers):
        names |= {f"blocks.{at}.{ours}": f"{folder}.{at}.{theirs}" for ours, theirs in block.items()}
    parts = ("weight", "bias")
    found = {
        f"{ours}.{part}": bare[f"{theirs}.{part}"]
        for ours, theirs in names.items()
        for part in parts
        if f"{theirs}.{part}" in bare
    }
    if family == "bert":  # one text at a time, so the vector of the first segment belongs to every position
        found["places.weight"] = found["places.weight"] + bare["embeddings.token_type_embeddings.weight"][0]
    return found


def pooling_of(directory: Path) -> Pooling:
    """How the directory wants its states pooled.

    Raises:
        UnreadableData: in a way that these modules do not compute.
    """
    if not (directory / POOLING).is_file():
        return "mean" if json.loads((directory / CONFIG).read_text()).get("model_type") == "bert" else "last"
    said = json.loads((directory / POOLING).read_text())
    known: dict[str, Pooling] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "last",
    }
    wanted = [name for name, on in said.items() if name.startswith("pooling_mode") and on is True]
    if len(wanted) != 1 or wanted[0] not in known:
        raise UnreadableData(f"{directory / POOLING}: {wanted or 'nothing'} is not one of {', '.join(known)}")
    return known[wanted[0]]


def _only(said: Mapping[str, Any], name: str, value: Any) -> None:
    if said.get(name, value) != value:
        raise UnreadableData(f"{CONFIG}: {name} {said[name]!r} is not computed here; only {value!r} is")
