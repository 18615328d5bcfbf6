"""SASRec beside its formulas: the sheet's, and torch's own Transformer layer. What every encoder owes is in
`tests/contracts/test_families.py`."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.encoders.sasrec import PaperSASRec, SASRec, SASRecConfig
from models.errors import InvalidOption

ITEMS = 15
ORIGINAL = SASRecConfig(
    d=6,
    heads=1,
    blocks=2,
    window=5,
    norm="original",
    activation="relu",
    expansion=1,
    project=False,
    scale=True,
    embedding_norm=False,
)


def made(config: SASRecConfig) -> SASRec:
    """A model in evaluation mode whose every weight is random, normalisation included."""
    torch.manual_seed(0)
    model = SASRec(config, ITEMS).eval()
    for name, weights in model.named_parameters():
        if name != "items.weight":
            torch.nn.init.normal_(weights, std=0.5)
    return model


def normed(x: np.ndarray, norm: torch.nn.Module, epsilon: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    weight, bias = (t.detach().double().numpy() for t in (norm.weight, norm.bias))
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * weight + bias


def linear(x: np.ndarray, layer: torch.nn.Module) -> np.ndarray:
    return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()


def as_the_sheet_says(model: SASRec, rows: list[int]) -> np.ndarray:
    """Hidden states of one window without padding by the formulas of 2018, position by position, in float64."""
    config, d = model.config, model.config.d
    table, positions = (t.detach().double().numpy() for t in (model.items.weight, model.positions))
    x = math.sqrt(d) * table[rows] + positions[config.window - len(rows) :]
    for block in model.blocks:
        h = normed(x, block.norm_attention, config.epsilon)
        q, k, v = linear(h, block.query), linear(x, block.key), linear(x, block.value)
        y = np.empty_like(x)
        for t in range(len(rows)):
            weights = np.exp(q[t] @ k[: t + 1].T / math.sqrt(d))
            y[t] = weights / weights.sum() @ v[: t + 1] + h[t]
        z = normed(y, block.norm_feed, config.epsilon)
        x = z + linear(np.maximum(linear(z, block.wide), 0), block.narrow)
    return normed(x, model.norm_out, config.epsilon)


@pytest.mark.parametrize("rows", [[7], [3, 1], [4, 4, 9, 15, 2]])
def test_the_original_arrangement_is_the_formula_of_the_sheet(rows: list[int]) -> None:
    model = made(ORIGINAL)
    with torch.inference_mode():
        found = model.hidden(torch.tensor([rows]))[0]
    np.testing.assert_allclose(found.numpy(), as_the_sheet_says(model, rows), atol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_pre_and_post_norm_are_torchs_own_layer(norm: str) -> None:
    config = replace(ORIGINAL, norm=norm, heads=2, activation="gelu", expansion=3, project=True, blocks=1, scale=False)
    model = made(config)
    block = model.blocks[0]
    layer = torch.nn.TransformerEncoderLayer(
        d_model=6,
        nhead=2,
        dim_feedforward=18,
        dropout=0.0,
        activation="gelu",
        layer_norm_eps=config.epsilon,
        batch_first=True,
        norm_first=norm == "pre",
    )
    theirs = {
        "self_attn.in_proj_weight": torch.cat([block.query.weight, block.key.weight, block.value.weight]),
        "self_attn.in_proj_bias": torch.cat([block.query.bias, block.key.bias, block.value.bias]),
    }
    names = {
        "self_attn.out_proj": block.out,
        "linear1": block.wide,
        "linear2": block.narrow,
        "norm1": block.norm_attention,
        "norm2": block.norm_feed,
    }
    for name, module in names.items():
        theirs |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    layer.load_state_dict(theirs)
    rows = torch.tensor([[3, 1, 4, 1, 5]])
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5)
    expected = layer(model.items(rows) + model.positions, src_mask=mask, is_causal=True)
    if norm == "pre":
        expected = model.norm_out(expected)
    torch.testing.assert_close(model.hidden(rows), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", ["original", "pre", "post"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_newest_slot_alone_is_the_newest_of_all_slots(norm: str, blocks: int) -> None:
    model = made(replace(ORIGINAL, norm=norm, blocks=blocks, embedding_norm=True))
    rows = torch.tensor([[3, 1, 4, 1, 5], [0, 0, 2, 7, 9], [0, 0, 0, 0, 6]])
    torch.testing.assert_close(model(rows), model.hidden(rows)[:, -1], rtol=0, atol=1e-6)


@torch.inference_mode()
@pytest.mark.parametrize("norm", ["original", "pre", "post"])
def test_2_the_same_history_in_ten_slots_and_in_fifty(norm: str) -> None:
    """Point 2 of the sheet; also with trained biases, where the original's query mask leaks."""
    model = made(replace(ORIGINAL, norm=norm, window=50, embedding_norm=True))
    history = [3, 1, 4, 1, 5, 9]
    ten, fifty = (torch.tensor([[0] * (n - 6) + history]) for n in (10, 50))
    assert float((model(ten) - model(fifty)).abs().max()) < 1e-5
    assert float((model(ten) - model(torch.tensor([[7, 7, 7, 7, *history]]))).abs().max()) > 1e-2


def test_a_window_of_nothing_but_padding_is_finite() -> None:
    """A row of attention without any key would be NaN."""
    model = made(ORIGINAL)
    assert torch.isfinite(model.hidden(torch.zeros(2, 5, dtype=torch.int64))).all()


def test_positions_count_from_the_newest() -> None:
    model = made(ORIGINAL)
    short = model.hidden(torch.tensor([[3, 1]]))
    with torch.no_grad():
        model.positions[:3] = 100.0
    assert torch.equal(model.hidden(torch.tensor([[3, 1]])), short)


def test_the_padding_row_is_zero_and_gets_no_gradient_from_the_input() -> None:
    model = made(ORIGINAL).train()
    assert not model.items.weight[0].any()
    model(torch.tensor([[0, 0, 3, 1, 2]])).sum().backward()
    assert model.items.weight.grad is not None
    assert not model.items.weight.grad[0].any()


def test_dropout_is_for_training_alone() -> None:
    rows = torch.tensor([[3, 1, 4, 1, 5]])
    model = made(replace(ORIGINAL, dropout=0.5, attention_dropout=0.5))
    assert torch.equal(model(rows), model(rows))
    model.train()
    assert not torch.equal(model(rows), model(rows))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("d", 0),
        ("blocks", 0),
        ("heads", 0),
        ("heads", 4),
        ("window", 0),
        ("expansion", 0),
        ("dropout", 1.0),
        ("attention_dropout", -0.1),
        ("norm", "middle"),
        ("activation", "tanh"),
        ("epsilon", 0.0),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(InvalidOption, match=option):
        replace(ORIGINAL, **{option: value})


def test_the_settings_of_2018_are_those_of_the_sheet() -> None:
    config = PaperSASRec.Config()
    assert (config.norm, config.heads, config.blocks) == ("original", 1, 2)
    assert (config.activation, config.expansion, config.scale, config.project) == ("relu", 1, True, False)
    assert (PaperSASRec.recipe["loss"], PaperSASRec.recipe["windows"]) == ("bce", "last")
