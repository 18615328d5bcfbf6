"""The decoder-only form: what it shares with its own steps, level by level."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.errors import InvalidOption
from models.generators.tiger_decoder import CodeBlock, TigerDecoder, TigerDecoderConfig
from models.semantic_ids import SemanticIds
from retrieval.codes import NO_CODE, CodeTable

VOCABULARY = (4, 6, 3)
ITEMS = 24
SMALL = TigerDecoderConfig(d=8, blocks=1, code_blocks=2, heads=2, window=5, dropout=0.0, expansion=2)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def made(config: TigerDecoderConfig = SMALL) -> TigerDecoder:
    rng = np.random.default_rng(0)
    codes = np.full((ITEMS + 1, len(VOCABULARY)), NO_CODE)
    codes[1:] = np.stack([rng.integers(0, size, ITEMS) for size in VOCABULARY], axis=1)
    ids = SemanticIds(CodeTable(codes, VOCABULARY), np.zeros((ITEMS + 1, 1), np.float32), None, {})  # type: ignore[arg-type]
    torch.manual_seed(0)
    return TigerDecoder(config, ids).eval()


def prefix(*codes: int) -> Tensor:
    return torch.tensor([[[0, *codes]]])


def loss(model: TigerDecoder, rows: list[list[int]]) -> tuple[Tensor, int]:
    whole = torch.tensor(rows)
    return model.loss((model.codes[whole[:, :-1]],), whole[:, 1:], whole[:, :-1] > 0)


def test_cross_attention_is_softmax_of_scaled_products() -> None:
    torch.manual_seed(1)
    block = CodeBlock(replace(SMALL, heads=1))
    x, history = torch.randn(1, 2, 8), torch.randn(1, 3, 8)
    keys, values = block.remember(history)
    allowed = torch.tensor([True, False, True])[None, None, None]
    asked = block.query(block.norm_attention(x))[0]
    weights = torch.softmax((asked @ block.key(history)[0].T / 8**0.5)[:, [0, 2]], dim=-1)
    mid = x + block.out(weights @ block.value(history)[0][[0, 2]])
    expected = mid + block.narrow(torch.nn.functional.gelu(block.wide(block.norm_feed(mid))))
    assert torch.allclose(block(x, keys, values, allowed), expected, atol=1e-5)


def test_a_smaller_level_never_gives_a_code_it_lacks() -> None:
    model = made()
    memory = model.prefill(model.codes[torch.tensor([[1, 2]])])
    for t, size in enumerate(VOCABULARY):
        said = model.step(prefix(*[0] * t), *memory)[0, 0].exp()
        assert said[:size].sum() == pytest.approx(1.0, abs=1e-5)
        assert not said[size:].any()


def test_what_was_written_is_heard_and_its_order_is_its_level() -> None:
    model = made()
    memory = model.prefill(model.codes[torch.tensor([[1, 2]])])
    said = {codes: model.step(prefix(*codes), *memory) for codes in ((1, 2), (2, 1), (1, 3))}
    assert not torch.allclose(said[1, 2], said[2, 1])
    assert not torch.allclose(said[1, 2], said[1, 3])


def test_all_beams_of_a_request_share_one_memory() -> None:
    model = made()
    memory = model.prefill(model.codes[torch.tensor([[1, 2], [3, 4]])])
    beams = torch.tensor([[[0, 1], [0, 2], [0, 3]], [[0, 0], [0, 1], [0, 2]]])
    together = model.step(beams, *memory)
    for r in range(2):
        for m in range(3):
            alone = model.step(beams[r : r + 1, m : m + 1], *(part[r : r + 1] for part in memory))
            assert torch.allclose(together[r, m], alone[0, 0], atol=1e-5)


def test_a_longer_history_moves_older_items_away_from_the_newest_place() -> None:
    """Positions are counted from the right, so only the newest slot of a window is trained as it will be asked."""
    model = made()
    assert model.positions.shape == (5, 8)
    shorter, longer = (model.prefill(model.codes[torch.tensor([rows])]) for rows in ([2, 3], [0, 0, 2, 3]))
    assert torch.allclose(shorter[0], longer[0], atol=1e-6)


def test_smoothing_spreads_some_of_the_target_over_its_level() -> None:
    """(1 - s) times the plain loss, and s times the mean over all codewords."""
    model = made()
    model.bias.zero_()  # all levels as large as the largest, for the formula
    memory, wanted = model.prefill(model.codes[torch.tensor([[1]])]), model.codes[2].tolist()
    said = [model.step(prefix(*wanted[:t]), *memory)[0, 0] for t in range(3)]
    plain = -sum(own[code] for own, code in zip(said, wanted, strict=True)) / 3
    spread = -sum(own.mean() for own in said) / 3
    model.config = replace(SMALL, smoothing=0.2)
    assert loss(model, [[1, 2]])[0].item() == pytest.approx(float(0.8 * plain + 0.2 * spread), abs=1e-5)


def test_the_mean_is_over_targets_and_levels() -> None:
    model = made()
    both, n = loss(model, [[1, 2, 3], [4, 5, 6]])
    one, a = loss(model, [[1, 2, 3]])
    other, b = loss(model, [[4, 5, 6]])
    assert (n, a, b) == (4, 2, 2)
    assert both.item() == pytest.approx((one + other).item() / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"code_blocks": 0}, "code_blocks 0 must be at least 1"),
        ({"smoothing": 1.0}, "smoothing 1.0"),
        ({"d": 9}, "d 9 is not divisible by heads 2"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(InvalidOption, match=words):
        replace(SMALL, **changes)
