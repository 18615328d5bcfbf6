"""RecGPT beside loops and torch's own cross-entropy, and what its sheet demands."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.errors import InvalidOption
from models.generators import recgpt
from models.generators.recgpt import CodeVectors, RecGPT, RecGPTConfig, SlicedCrossEntropy
from models.semantic_ids import SemanticIdConfig, SemanticIds
from retrieval.beam import score_all
from retrieval.codes import CodeTable
from retrieval.describer import Describer
from retrieval.quantisers import FiniteScalar, RandomCodes
from retrieval.sequences import FloatArray
from retrieval.text import HashedText

STEPS = (4, 3, 2)
CODES, TOKENS, WIDTH, ITEMS = 24, 4, 14, 30  # a width that four pieces do not divide
SMALL = RecGPTConfig(d=16, blocks=2, heads=2, window=6, dropout=0.0, precision="float32")


def quantiser(seed: int = 0) -> FiniteScalar:
    weight = np.random.default_rng(seed).standard_normal((len(STEPS), 4)).astype(np.float32)
    nothing, ones = np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32)
    return FiniteScalar(weight, np.zeros(len(STEPS), np.float32), nothing, ones, steps=STEPS, tokens=TOKENS)


def ids_of(vectors: FloatArray, made: Any = None) -> SemanticIds:
    """Items with these text vectors, (N, Dt), as a catalog's semantic ids."""
    text = HashedText(np.zeros(1, np.int32), np.zeros((1, WIDTH), np.float32))  # never asked: vectors are given
    describer = Describer(text, made or quantiser(), ("title",))
    every = np.concatenate([np.zeros((1, WIDTH), np.float32), vectors])
    return SemanticIds(CodeTable(describer.codes_of(every), describer.vocabulary), every, describer, {})


def some_vectors(n: int = ITEMS, seed: int = 1) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((n, WIDTH)).astype(np.float32)


def made(config: RecGPTConfig = SMALL, ids: SemanticIds | None = None) -> RecGPT:
    """A model in evaluation mode whose every weight is random and large enough to matter."""
    torch.manual_seed(0)
    model = RecGPT(config, ids or ids_of(some_vectors())).eval()
    for weights in model.parameters():
        torch.nn.init.normal_(weights, std=0.4)
    return model


def feeds(model: RecGPT, rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and text vectors of histories, 0 being padding."""
    table, vectors = model.tables.codes, model.tables.vectors["text"]
    assert table is not None
    return torch.from_numpy(table.codes[rows].astype(np.int64)), torch.from_numpy(vectors[rows])


@torch.inference_mode()
def test_2_a_later_item_leaves_all_earlier_states_as_they_are_bit_by_bit() -> None:
    model = made()
    before = model.states(*feeds(model, [[3, 1, 4, 15, 9]]))
    for at in range(1, 5):
        rows = [3, 1, 4, 15, 9]
        rows[at] = 26
        after = model.states(*feeds(model, [rows]))
        assert torch.equal(after[:, :at], before[:, :at]), at
        assert not torch.equal(after[:, at], before[:, at]), at


@torch.inference_mode()
def test_2_the_tokens_of_an_item_see_each_other() -> None:
    """Plain causal attention would leave token 0 as it is."""
    model = made()
    codes, vectors = feeds(model, [[3, 1, 4]])
    before = model.states(codes, vectors)
    codes[0, 1, 3] = (codes[0, 1, 3] + 1) % CODES
    after = model.states(codes, vectors)
    assert float((after[0, 1, 0] - before[0, 1, 0]).abs().max()) > 1e-3
    assert torch.equal(after[0, 0], before[0, 0])


@torch.inference_mode()
def test_3_the_score_of_an_item_is_the_sum_of_its_four_log_probabilities() -> None:
    model = made()
    found = model.distributions(*feeds(model, [[3, 1, 4], [0, 7, 7]])).numpy()
    assert found.shape == (2, TOKENS, CODES)
    np.testing.assert_allclose(np.exp(found).sum(-1), 1.0, atol=1e-5)
    table = model.tables.codes
    assert table is not None
    scores = score_all(found, table)
    for line, distribution in zip(scores, found, strict=True):
        for row in range(1, ITEMS + 1):
            looped = sum(float(distribution[level, code]) for level, code in enumerate(table.codes[row]))
            assert line[row] == pytest.approx(looped, abs=1e-5)


@torch.inference_mode()
def test_a_batch_of_mixed_lengths_is_the_single_requests() -> None:
    """The trap of the public predictor: there a sequence's positions depend on the longest of its batch."""
    model = made()
    histories = [[3, 1, 4, 15, 9, 2], [5], [8, 8], [6, 5, 3, 5]]
    padded = [[0] * (6 - len(rows)) + rows for rows in histories]
    together = model.distributions(*feeds(model, padded))
    for line, rows in zip(together, histories, strict=True):
        alone = model.distributions(*feeds(model, [rows]))[0]
        torch.testing.assert_close(line, alone, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_an_item_without_a_code_is_as_if_it_were_not_there() -> None:
    vectors = some_vectors()
    vectors[6] = 0.0  # row 7 says nothing
    model = made(ids=ids_of(vectors))
    want = model.distributions(*feeds(model, [[3, 4]]))
    for rows in ([3, 7, 4], [3, 4, 7], [7, 3, 4]):
        torch.testing.assert_close(model.distributions(*feeds(model, [rows])), want, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_an_empty_history_is_finite() -> None:
    model = made()
    assert torch.isfinite(model.distributions(*feeds(model, [[0, 0]]))).all()


def test_the_sliced_cross_entropy_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recgpt, "SLICE", 3)
    torch.manual_seed(0)
    states, head = torch.randn(8, 5, requires_grad=True), torch.randn(11, 5, requires_grad=True)
    targets = torch.tensor([0, 3, 3, 10, 5, 7, 1, 3])
    want = F.cross_entropy(states @ head.T, targets, reduction="sum")
    wanted = torch.autograd.grad(2 * want, (states, head))
    found = SlicedCrossEntropy.apply(states, head, targets)
    torch.testing.assert_close(found, want)
    for ours, theirs in zip(torch.autograd.grad(2 * found, (states, head)), wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_loss_is_the_cross_entropy_of_the_next_items_codes_among_those_that_items_have() -> None:
    model = made(ids=ids_of(some_vectors(3)))
    rows, nexts = [[0, 3, 1], [2, 2, 1]], torch.tensor([[0, 1, 2], [2, 1, 3]])
    real = torch.tensor([[False, True, True], [True, True, True]])
    loss, positions = model.loss(feeds(model, rows), nexts, real)
    assert positions == 5
    states, table = model.states(*feeds(model, rows)), model.codes
    live = {int(code) for code in table[1:].flatten()}
    assert 1 < len(live) < CODES
    total = 0.0
    for line, slot in real.nonzero().tolist():
        for level in range(TOKENS):
            logits = (model.head() @ states[line, slot, level]).tolist()
            wanted = int(table[nexts[line, slot], level])
            total -= logits[wanted] - np.log(sum(np.exp(logits[code]) for code in live))
    assert float(loss.detach()) == pytest.approx(total / (5 * TOKENS), rel=1e-4)


def test_without_free_vectors_the_softmax_over_all_codes_is_one_per_coordinate() -> None:
    model = made(replace(SMALL, vectors="grid"))
    rows, nexts, real = [[3, 1, 4]], torch.tensor([[1, 4, 15]]), torch.ones(1, 3, dtype=torch.bool)
    loss, _ = model.loss(feeds(model, rows), nexts, real)
    logits = model.states(*feeds(model, rows)) @ model.head().T
    want = F.cross_entropy(logits.flatten(0, 2), model.codes[nexts].flatten())
    torch.testing.assert_close(loss, want)
    for ours, theirs in zip(
        *(torch.autograd.grad(x, (model.head.shared, model.read.shared)) for x in (loss, want)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_loss_of_items_is_the_target_among_the_targets_of_its_own_group() -> None:
    model = made(replace(SMALL, objective="items"))
    model.groups[4:] = 1.0
    rows, nexts = [[3, 1, 4, 1], [2, 2, 1, 9]], torch.tensor([[1, 4, 2, 5], [2, 1, 9, 5]])
    loss, positions = model.loss(feeds(model, rows), nexts, torch.ones(2, 4, dtype=torch.bool))
    with torch.inference_mode():
        states, head = model.states(*feeds(model, rows)).flatten(0, 1), model.head()
        wanted = nexts.flatten().tolist()
        total = 0.0
        for state, target in zip(states, wanted, strict=True):
            own = {row for row in wanted if (row >= 4) == (target >= 4)}
            scores = {row: float((state * head[model.codes[row]]).sum()) for row in own}
            repeats = [row for row in wanted if row in own and row != target]  # as often as the batch has them
            total += np.log(np.exp(scores[target]) + sum(np.exp(scores[row]) for row in repeats)) - scores[target]
    assert positions == 8
    assert float(loss.detach()) == pytest.approx(total / 8, rel=1e-4)


@torch.inference_mode()
def test_untrained_it_ranks_by_closeness_to_the_newest_item() -> None:
    vectors, _ = by_topic(6, 5, noise=0.1)
    torch.manual_seed(0)
    model = RecGPT(replace(SMALL, d=64, vectors="grid"), ids_of(vectors)).eval()
    table = model.tables.codes
    assert table is not None
    scores = score_all(model.distributions(*feeds(model, [[1 + 5 * topic] for topic in range(6)])).numpy(), table)
    own = [np.argsort(-line)[:5] for line in scores]
    assert np.mean([(rows - 1) // 5 == topic for topic, rows in enumerate(own)]) > 0.8


def test_what_cannot_be_predicted_is_left_out_of_the_loss() -> None:
    vectors = some_vectors()
    vectors[6] = 0.0
    model = made(ids=ids_of(vectors))
    rows, nexts = [[3, 7, 4]], torch.tensor([[7, 4, 5]])  # the first target has no code, nor has the second item
    loss, positions = model.loss(feeds(model, rows), nexts, torch.ones(1, 3, dtype=torch.bool))
    assert positions == 1
    assert torch.isfinite(loss)
    nothing, none = model.loss(feeds(model, [[7]]), torch.tensor([[3]]), torch.ones(1, 1, dtype=torch.bool))
    assert (float(nothing.detach()), none) == (0.0, 0)


def test_bfloat16_learns_from_nearly_the_same_loss() -> None:
    exact, half = made(), made(replace(SMALL, precision="bfloat16"))
    given = feeds(exact, [[3, 1, 4, 15, 9]]), torch.tensor([[1, 4, 15, 9, 2]]), torch.ones(1, 5, dtype=torch.bool)
    losses = [float(model.loss(*given)[0].detach()) for model in (exact, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_codes_with_a_coordinate_in_common_share_a_part_of_their_vectors() -> None:
    vectors = CodeVectors(CODES, 3, STEPS, free=True)
    torch.nn.init.zeros_(vectors.free)
    every, shared = vectors(), vectors.shared
    for code in range(CODES):
        a, b, c = code % 4, code // 4 % 3, code // 12
        torch.testing.assert_close(every[code], shared[a] + shared[4 + b] + shared[7 + c])


def test_codes_that_are_no_grid_have_free_vectors_alone() -> None:
    ids = ids_of(some_vectors(), RandomCodes((CODES,) * TOKENS, seed=1))
    for model in (made(ids=ids), made(replace(SMALL, vectors="free"))):
        assert model.read() is model.read.free


@torch.inference_mode()
def test_5_the_text_itself_is_read_unless_it_is_turned_off() -> None:
    for reads in (True, False):
        model = made(replace(SMALL, reads_text=reads))
        codes, vectors = feeds(model, [[3, 1, 4]])
        a, b = model.distributions(codes, vectors), model.distributions(codes, vectors + 1.0)
        assert torch.equal(a, b) != reads


def test_no_weight_belongs_to_an_item() -> None:
    model = made()
    other = model.over(ids_of(some_vectors(ITEMS + 12, seed=9)))
    assert {name: t.shape for name, t in other.state_dict().items()} == {
        name: t.shape for name, t in model.state_dict().items()
    }
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert other.tables.codes is not None
    assert len(other.tables.codes) == ITEMS + 12


def by_topic(topics: int, items: int, noise: float) -> tuple[FloatArray, FloatArray]:
    """Text vectors of items around a centre per topic, and the centres."""
    rng = np.random.default_rng(4)
    centres = rng.standard_normal((topics, WIDTH)).astype(np.float32)
    vectors = np.repeat(centres, items, axis=0) + noise * rng.standard_normal((topics * items, WIDTH))
    return vectors.astype(np.float32), centres


@pytest.mark.train
def test_6_an_item_added_after_training_is_returned_for_a_history_of_near_duplicates() -> None:
    topics, items = 6, 5
    vectors, centres = by_topic(topics, items, noise=0.15)
    torch.manual_seed(0)
    model = RecGPT(SMALL, ids_of(vectors))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    rng = np.random.default_rng(0)
    real = torch.ones(32, 4, dtype=torch.bool)
    for _ in range(120):
        rows = 1 + rng.integers(0, topics, (32, 1)) * items + rng.integers(0, items, (32, 5))
        loss, _ = model.loss(feeds(model, rows[:, :-1].tolist()), torch.from_numpy(rows[:, 1:]), real)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    new = centres + 0.05 * rng.standard_normal(centres.shape).astype(np.float32)
    grown = model.over(ids_of(np.concatenate([vectors, new]))).eval()
    table = grown.tables.codes
    assert table is not None
    with torch.inference_mode():
        histories = [[1 + topic * items + i for i in range(4)] for topic in range(topics)]
        scores = score_all(grown.distributions(*feeds(grown, histories)).numpy(), table)
    places = [
        int((line > line[1 + topics * items + topic]).sum()) for topic, line in enumerate(scores)
    ]  # items above the new one of the topic, of 36
    assert np.mean(np.array(places) < items + 1) > 0.8, places
    assert all(torch.equal(weights[name], t) for name, t in grown.state_dict().items())


@pytest.mark.train
def test_one_batch_can_be_learnt_by_heart() -> None:
    vectors, _ = by_topic(6, 5, noise=1.0)
    torch.manual_seed(0)
    model = RecGPT(replace(SMALL, precision="bfloat16"), ids_of(vectors))
    rows, nexts = [[3, 1, 4], [15, 9, 2], [6, 5, 30]], torch.tensor([[1, 4, 11], [9, 2, 12], [5, 30, 13]])
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        loss, _ = model.loss(feeds(model, rows), nexts, torch.ones(3, 3, dtype=torch.bool))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.1


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("d", 0),
        ("blocks", 0),
        ("heads", 0),
        ("heads", 3),
        ("window", 0),
        ("expansion", 0),
        ("dropout", 1.0),
        ("vectors", "tied"),
        ("objective", "users"),
        ("precision", "float16"),
    ],
)
def test_an_option_out_of_range_is_refused_by_name(option: str, value: object) -> None:
    with pytest.raises(InvalidOption, match=option):
        replace(SMALL, **{option: value})


def test_no_option_has_the_name_of_one_of_the_semantic_ids() -> None:
    assert not {f.name for f in fields(RecGPTConfig)} & {f.name for f in fields(SemanticIdConfig)}


def test_levels_of_different_sizes_are_refused_with_the_remedy() -> None:
    ids = ids_of(some_vectors(), RandomCodes((8, 8, 8, 4), seed=1))
    with pytest.raises(InvalidOption, match="quantiser=fsq"):
        RecGPT(SMALL, ids)
