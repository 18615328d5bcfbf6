"""TIGER as the paper has it: T5's parts beside their formulas, and every prefix a sample."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.errors import InvalidOption
from models.generators import tiger
from models.generators.tiger import Attention, Tiger, TigerConfig, buckets
from models.semantic_ids import SemanticIds
from retrieval.codes import NO_CODE, CodeTable

VOCABULARY = (4, 6, 3)
ITEMS, UNCODED = 24, 24
SMALL = TigerConfig(
    d=8, blocks=2, code_blocks=2, heads=3, head_width=4, feed=16, window=5, dropout=0.0, precision="float32"
)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def ids_of(vocabulary: tuple[int, ...] = VOCABULARY) -> SemanticIds:
    rng = np.random.default_rng(0)
    codes = np.full((ITEMS + 1, len(vocabulary)), NO_CODE)
    codes[1:] = np.stack([rng.integers(0, size, ITEMS) for size in vocabulary], axis=1)
    codes[UNCODED] = NO_CODE
    return SemanticIds(CodeTable(codes, vocabulary), np.zeros((ITEMS + 1, 1), np.float32), None, {})  # type: ignore[arg-type]


def made(config: TigerConfig = SMALL, vocabulary: tuple[int, ...] = VOCABULARY) -> Tiger:
    torch.manual_seed(0)
    return Tiger(config, ids_of(vocabulary)).eval()


def codes_of(model: Tiger, rows: list[list[int]]) -> Tensor:
    return model.codes[torch.tensor(rows)]


def prefix(*codes: int) -> Tensor:
    return torch.tensor([[[0, *codes]]])


def nll(model: Tiger, past: list[int], target: int) -> Tensor:
    """What the steps say of one target, its codes put into the model's mouth one by one."""
    memory = model.prefill(codes_of(model, [past[-model.config.window :]]))
    wanted = model.codes[target].tolist()
    return -torch.stack([model.step(prefix(*wanted[:t]), *memory)[0, 0, code] for t, code in enumerate(wanted)]).sum()


def test_the_default_is_as_large_as_reimplementations_count() -> None:
    model = Tiger(TigerConfig(), ids_of((256,) * 4))
    assert sum(p.numel() for p in model.parameters()) == 4_590_848


def test_buckets_hold_one_distance_each_and_then_grow() -> None:
    distance = torch.tensor([0, -1, -7, -8, -9, -16, -64, -127, -128, -5000])
    assert buckets(distance, both=True).tolist() == [0, 1, 7, 8, 8, 10, 14, 15, 15, 15]
    assert buckets(-distance[1:], both=True).tolist() == [17, 23, 24, 24, 26, 30, 31, 31, 31]
    assert buckets(torch.tensor([5, 0, -1, -15, -16, -32, -127, -500]), both=False).tolist() == [
        *(0, 0, 1, 15, 16, 21, 31, 31)
    ]


def test_attention_is_t5s() -> None:
    """No bias, no division by the root of the width, and what is learnt of distances is added."""
    torch.manual_seed(1)
    part = Attention(replace(SMALL, heads=2, head_width=3)).eval()
    x, history, bias = torch.randn(1, 2, 8), torch.randn(1, 4, 8), torch.randn(2, 2, 4)
    ours = part(x, *part.remember(history), bias)[0]
    expected = torch.zeros(2, 8)
    for q in range(2):
        mixed = []
        for h in range(2):
            rows = slice(3 * h, 3 * h + 3)
            query = part.query.weight[rows] @ x[0, q]
            scores = torch.stack([query @ (part.key.weight[rows] @ token) for token in history[0]]) + bias[h, q]
            weights = scores.exp() / scores.exp().sum()
            mixed.append(
                sum(w * (part.value.weight[rows] @ token) for w, token in zip(weights, history[0], strict=True))
            )
        expected[q] = part.out.weight @ torch.cat(mixed)
    assert torch.allclose(ours, expected, atol=1e-5)


def test_nothing_has_a_bias_but_distances() -> None:
    biases = {name for name, _ in made().named_parameters() if "bias" in name}
    assert biases == {"bias_encoder.weight", "bias_decoder.weight"}


def test_only_distances_matter_not_places() -> None:
    """The first window of five as it is, and with padding in front of it: the same to rounding."""
    model = made(replace(SMALL, window=9))
    tight = model.prefill(codes_of(model, [[1, 2, 3, 4, 5]]))
    padded = model.prefill(codes_of(model, [[0, 0, 0, 0, 1, 2, 3, 4, 5]]))
    ours, theirs = (model.step(prefix(1, 2), *memory) for memory in (tight, padded))
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_every_token_of_the_history_sees_every_other() -> None:
    """The encoder is bidirectional: what came last changes what the oldest token becomes."""
    model = made()
    _, one = model._read(codes_of(model, [[1, 2, 3]]))
    _, other = model._read(codes_of(model, [[1, 2, 4]]))
    assert (one - other).abs().amax(dim=-1).min() > 1e-5


def test_a_written_code_does_not_see_the_next_one() -> None:
    model = made()
    _, states = model._read(codes_of(model, [[1, 2, 3]]))
    allowed = torch.ones(1, 9, dtype=torch.bool)
    x = torch.randn(1, 1, 3, 8)
    changed = torch.cat([x[:, :, :2], torch.randn(1, 1, 1, 8)], dim=2)
    ours, theirs = (model._write(given, model._remember(states), allowed)[0] for given in (x, changed))
    assert torch.equal(ours[:, :, :2], theirs[:, :, :2])
    assert not torch.allclose(ours[:, :, 2], theirs[:, :, 2])


def test_the_step_continues_what_prefill_began() -> None:
    """The start token in prefill and the codes behind it in a step are one pass over all of them."""
    model = made()
    item_codes = codes_of(model, [[1, 2, 3], [4, 5, 6]])
    allowed, states = model._read(item_codes)
    beams = torch.tensor([[[1, 4], [3, 0]], [[0, 5], [2, 2]]])
    x = torch.cat([model.start.expand(2, 2, 1, -1), model.vectors(beams + model.starts[:2])], dim=2)
    whole, _ = model._write(x, model._remember(states), allowed)
    expected = torch.log_softmax(whole[:, :, 2] @ model._head(model.places[2]).T + model.shut[2], dim=-1)
    said = model.step(F.pad(beams, (1, 0)), *model.prefill(item_codes))
    assert torch.allclose(said, expected, atol=1e-5)


def test_a_smaller_level_never_gives_a_code_it_lacks() -> None:
    model = made()
    memory = model.prefill(codes_of(model, [[1, 2]]))
    for t, size in enumerate(VOCABULARY):
        said = model.step(prefix(*[0] * t), *memory)[0, 0].exp()
        assert said[:size].sum() == pytest.approx(1.0, abs=1e-5)
        assert not said[size:].any()


@pytest.mark.parametrize("tokens", [1, 7, 10_000])
def test_every_prefix_is_a_sample(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each real slot is a target of all before it, however samples are grouped; the window cuts the oldest."""
    monkeypatch.setattr(tiger, "TOKENS", tokens)
    model = made()
    lines = [[1, 2, 3, 4, 5, 6, 7, 8], [0, 0, 0, 0, 0, 0, 9, 10], [0, 0, 0, 11, 12, 13, 14, 15]]
    rows = torch.tensor(lines)
    loss, positions = model.loss((model.codes[rows[:, :-1]],), rows[:, 1:], rows[:, :-1] > 0)
    targets = [(line[:at], line[at]) for line in lines for at in range(1, 8) if line[at - 1]]
    expected = sum(nll(model, [row for row in past if row], target) for past, target in targets)
    assert positions == len(targets) == 12
    assert loss.item() == pytest.approx(float(expected) / (positions * 3), abs=1e-5)


def test_a_gradient_formed_group_by_group_is_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiger, "TOKENS", 10)
    model = made()
    rows = torch.tensor([[1, 2, 3, 4, 5], [0, 0, 6, 7, 8]])
    with torch.enable_grad():
        loss, positions = model.loss((model.codes[rows[:, :-1]],), rows[:, 1:], rows[:, :-1] > 0)
        (2 * loss).backward()
        ours = [p.grad for p in model.parameters()]
        groups = list(model._samples(model.codes[rows[:, :-1]], rows[:, 1:], rows[:, :-1] > 0))
        assert len(groups) > 2
        whole = 2 * sum(model._summed(*group) for group in groups) / (positions * 3)
        expected = torch.autograd.grad(whole, list(model.parameters()))
    for own, other in zip(ours, expected, strict=True):
        assert own is not None
        assert torch.allclose(own, other, atol=1e-6)


def test_an_item_without_a_code_is_left_out_of_samples_as_serving_leaves_it_out() -> None:
    model = made()
    rows, nexts = torch.tensor([[UNCODED, 1, UNCODED, 2]]), torch.tensor([[1, UNCODED, 2, 3]])
    loss, positions = model.loss((model.codes[rows],), nexts, rows > 0)
    # Of nothing coded nothing can be told; a target without a code is none; then [1] -> 2 and [1, 2] -> 3.
    assert positions == 2
    assert loss.item() == pytest.approx((nll(model, [1], 2) + nll(model, [1, 2], 3)).item() / 6, abs=1e-5)


def test_a_code_that_was_only_read_can_be_written() -> None:
    """What reads a code and what writes it are one vector."""
    model = made()
    before = model.step(prefix(), *model.prefill(codes_of(model, [[1]])))
    unread = next(c for c in range(4) if c != int(model.codes[1, 0]))
    model.vectors.weight[unread] += 1.0
    after = model.step(prefix(), *model.prefill(codes_of(model, [[1]])))
    assert not torch.allclose(before, after)


def test_bfloat16_is_of_training_only() -> None:
    model = made(replace(SMALL, precision="bfloat16"))
    rows = torch.tensor([[1, 2, 3, 4]])
    rough, _ = model.loss((model.codes[rows[:, :-1]],), rows[:, 1:], rows[:, :-1] > 0)
    exact, _ = made().loss((model.codes[rows[:, :-1]],), rows[:, 1:], rows[:, :-1] > 0)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().item() < 0.05 * exact.item()
    ours, theirs = (side.prefill(codes_of(side, [[1, 2]])) for side in (model, made()))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 0}, "heads 0 must be at least 1"),
        ({"feed": 0}, "feed 0 must be at least 1"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"precision": "float16"}, "none of bfloat16, float32"),
    ],
)
def test_options_out_of_range_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(InvalidOption, match=words):
        replace(SMALL, **changes)
