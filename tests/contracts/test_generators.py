"""What every generator owes: one suite over all that are registered."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models import checkpoint
from models.export import TOLERANCE
from models.generation import in_torch
from models.generator_export import opened, parity, write_graphs
from models.registry import configure, families
from models.scoring import tensors
from models.semantic_ids import SemanticIds
from retrieval.beam import Search, search
from retrieval.codes import NO_CODE, CodeTable
from retrieval.decoder import Decoder, Parallel
from retrieval.describer import Describer
from retrieval.generative import Generation, Generative
from retrieval.inputs import Request, Tables
from retrieval.quantisers import FiniteScalar
from retrieval.sequences import EMPTY, History
from retrieval.text import HashedText
from retrieval.trie import ConstraintTrie

ITEMS, WINDOW, WIDTH = 40, 8, 6
STEPS, LEVELS = (3, 2), 3  # six codewords on each of three levels
CODEWORDS = 6
UNCODED = ITEMS  # the last item: nothing is known of its text
TWINS = (1, 2)  # two items with the same codes


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=sorted(families("generator")), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    """The name of each registered family."""
    return str(request.param)


def semantic_ids() -> SemanticIds:
    """Random codes, each of which some item has, and random text vectors."""
    rng = np.random.default_rng(0)
    text = HashedText(np.zeros(1, np.int32), np.zeros((1, WIDTH), np.float32))  # never asked: vectors are given
    nothing, ones = np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32)
    weight = rng.standard_normal((len(STEPS), WIDTH // LEVELS)).astype(np.float32)
    grid = FiniteScalar(weight, np.zeros(len(STEPS), np.float32), nothing, ones, steps=STEPS, tokens=LEVELS)
    codes = np.full((ITEMS + 1, LEVELS), NO_CODE)
    codes[1:] = rng.integers(0, CODEWORDS, (ITEMS, LEVELS))
    codes[TWINS[1]], codes[UNCODED] = codes[TWINS[0]], NO_CODE
    vectors = rng.standard_normal((ITEMS + 1, WIDTH)).astype(np.float32)
    vectors[[0, UNCODED]] = 0
    vectors[TWINS[1]] = vectors[TWINS[0]]
    table = CodeTable(codes, grid.vocabulary)
    assert all(len(np.unique(level)) == CODEWORDS + 1 for level in codes.T)
    return SemanticIds(table, vectors, Describer(text, grid, ("title",)), {})


def build(name: str, **options: Any) -> Any:
    """A small model of a family, by the options that it has."""
    family = families("generator")[name]
    torch.manual_seed(0)
    small = {"d": 16, "blocks": 1, "code_blocks": 2, "heads": 2, "head_width": 4, "feed": 32, "expansion": 2}
    exact = {"precision": "float32", "smoothing": 0.0}
    known = {field.name for field in fields(family.Config)}
    wanted = {"window": WINDOW, "dropout": 0.3, **small, **exact, **options}
    return family(replace(family.Config(), **{k: v for k, v in wanted.items() if k in known}), semantic_ids())


def history(length: int, seed: int = 0) -> History:
    """Random items that have codes."""
    return History.of_rows(np.random.default_rng((seed, length)).integers(1, UNCODED, length))


def requests(lengths: Sequence[int]) -> list[Request]:
    return [Request(history(n, seed)) for seed, n in enumerate(lengths)]


def prefixes(beams: int, r: int = 1) -> np.ndarray:
    """int64, shape (R, M, L): random codes."""
    return np.random.default_rng((beams, r)).integers(0, CODEWORDS, (r, beams, LEVELS))


@torch.no_grad()
def spoken(model: Any, asked: Sequence[Request], codes: np.ndarray, *, length: int) -> np.ndarray:
    """float32, shape (B, M, L, V): what a model says at every level of these codes, int64 (B, M, L)."""
    feeds = tensors(model, asked, length=length)
    if not model.memory_names:
        every = model.distributions(*feeds)[:, None]
        return np.asarray(every.expand(-1, codes.shape[1], -1, -1).numpy())
    memory = model.prefill(*feeds)
    started = torch.from_numpy(np.concatenate([np.zeros_like(codes[..., :1]), codes[..., :-1]], axis=-1))
    return np.stack([model.step(started[..., : t + 1], *memory).numpy() for t in range(LEVELS)], axis=2)


def stepped(decoder: Decoder, asked: Sequence[Request], codes: np.ndarray) -> np.ndarray:
    """The same through the face that serving knows."""
    memory = decoder.prefill(asked)
    levels = [decoder.step(memory, codes[:, :, :t]) for t in range(LEVELS)]
    return np.stack([np.broadcast_to(own, (*codes.shape[:2], CODEWORDS)) for own in levels], axis=2)


def batch(*lines: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 (B, n) each: histories and what follows every slot, 0 in front of the shorter ones."""
    longest = max(map(len, lines))
    rows = np.array([[0] * (longest - len(line)) + list(line) for line in lines])
    return torch.from_numpy(rows[:, :-1]), torch.from_numpy(np.where(rows[:, :-1] > 0, rows[:, 1:], 0))


def loss_of(model: Any, rows: torch.Tensor, targets: torch.Tensor, asked: torch.Tensor | None = None) -> Any:
    past = [Request(History.of_rows(line[line > 0])) for line in rows.numpy()]
    feeds = tensors(model, past, length=rows.shape[1])
    return model.loss(feeds, targets, (rows > 0) if asked is None else asked)


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    """With weights moved from where they start, so that none is zero."""
    made = build(name).eval()
    with torch.no_grad():
        for weights in made.parameters():
            weights += 0.2 * torch.randn_like(weights)
    return made


@pytest.fixture(scope="module")
def trie(model: Any) -> ConstraintTrie:
    return ConstraintTrie.build(model.tables.codes)


@pytest.fixture(scope="module")
def graphs(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """The graphs of the model, run by onnxruntime."""
    directory = tmp_path_factory.mktemp("graphs")
    write_graphs(model, directory, [history(n) for n in (3, 5)])
    return opened(model, directory)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_shapes_and_types(model: Any) -> None:
    assert model.tables.codes.vocabulary == (CODEWORDS,) * LEVELS
    feeds = tensors(model, requests([3, 5]), length=6)
    if not model.memory_names:
        said = model.distributions(*feeds)
        assert (said.dtype, said.shape) == (torch.float32, (2, LEVELS, CODEWORDS))
        return
    memory = model.prefill(*feeds)
    assert len(memory) == len(model.memory_names)
    assert all(len(part) == 2 for part in memory)
    for t in range(LEVELS):
        said = model.step(torch.zeros(2, 7, t + 1, dtype=torch.int64), *memory)
        assert (said.dtype, said.shape) == (torch.float32, (2, 7, CODEWORDS))


def test_what_it_says_are_probabilities(model: Any) -> None:
    said = spoken(model, requests([1, 4, 8]), prefixes(5, 3), length=8)
    assert np.abs(np.exp(said.astype(np.float64)).sum(axis=-1) - 1).max() < 1e-5
    assert said.std() > 0.05  # and not all the same


@pytest.mark.parametrize("length", [1, 2, WINDOW - 1])
def test_padding_changes_nothing(model: Any, length: int) -> None:
    one, codes = requests([length]), prefixes(4)
    tight, padded = (spoken(model, one, codes, length=n) for n in (length, WINDOW))
    assert np.abs(tight - padded).max() < 1e-5


def test_a_batch_of_mixed_lengths_is_what_each_is_alone(model: Any) -> None:
    asked = requests([1, WINDOW, 3, 2, WINDOW + 4])
    codes = prefixes(4, len(asked))
    together = stepped(in_torch(model), asked, codes)
    for r, one in enumerate(asked):
        assert np.abs(stepped(in_torch(model), [one], codes[r : r + 1]) - together[r]).max() < 1e-5


def test_what_is_older_than_the_window_changes_nothing(model: Any) -> None:
    newest = history(WINDOW)
    longer = History.of_rows(np.concatenate([[7, 8, 9], newest.rows]))
    ours, theirs = (stepped(in_torch(model), [Request(h)], prefixes(3)) for h in (newest, longer))
    assert np.abs(ours - theirs).max() < 1e-6


def test_the_order_of_the_history_matters(model: Any) -> None:
    own = history(WINDOW)
    ours, theirs = (
        stepped(in_torch(model), [Request(History.of_rows(rows))], prefixes(3)) for rows in (own.rows, own.rows[::-1])
    )
    assert np.abs(ours - theirs).max() > 1e-3


def test_causality_of_the_loss(model: Any) -> None:
    """What comes later changes nothing of what an earlier slot is taught."""
    rows, targets = batch([3, 1, 4, 11, 5, 9, 12])
    for t in range(rows.shape[1]):
        asked = torch.zeros_like(rows, dtype=torch.bool)
        asked[:, : t + 1] = True
        before, positions = loss_of(model, rows, targets, asked)
        changed, nexts = rows.clone(), targets.clone()
        changed[:, t + 1 :] = changed[:, t + 1 :] % 30 + 1
        nexts[:, t + 1 :] = 0
        after, _ = loss_of(model, changed, nexts, asked)
        assert positions == t + 1
        assert float((before - after).abs()) < 1e-5, t
        if t:
            changed[:, 0] = 30
            assert float((before - loss_of(model, changed, nexts, asked)[0]).abs()) > 1e-4, t


def test_the_loss_is_what_the_steps_say_of_the_target(model: Any) -> None:
    """Teacher forcing of the newest slots of a batch, beside prefill and steps of each window alone."""
    lines = [[3, 1, 4, 11, 5, 9, 12, 2], [8, 7], [21, 22, 23, 24, 25]]
    rows, targets = batch(*lines)
    newest = torch.zeros_like(rows, dtype=torch.bool)
    newest[:, -1] = True
    loss, positions = loss_of(model, rows, targets, newest)
    total = 0.0
    for line in lines:
        wanted = model.tables.codes.codes[line[-1]].astype(np.int64)
        said = stepped(in_torch(model), [Request(History.of_rows(line[:-1]))], wanted[None, None])[0, 0]
        total -= float(said[np.arange(LEVELS), wanted].sum())
    assert positions == len(lines)
    assert loss.item() == pytest.approx(total / (positions * LEVELS), abs=1e-5)


def test_what_has_no_code_is_no_target(model: Any) -> None:
    rows, targets = batch([3, 1, 4, 11, 5])
    targets[0, 2] = UNCODED
    asked = rows > 0
    asked[0, 2] = False
    with_it, without = loss_of(model, rows, targets), loss_of(model, rows, targets, asked)
    assert with_it[1] == without[1] == 3
    assert float((with_it[0] - without[0]).abs()) < 1e-6


def test_a_batch_without_any_code_teaches_nothing(name: str) -> None:
    model = build(name).train()
    rows, targets = batch([UNCODED] * 3)
    with torch.enable_grad():
        loss, positions = loss_of(model, rows, targets)
        assert (loss.item(), positions) == (0.0, 0)
        if loss.requires_grad:
            loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_items_without_codes_do_no_harm_in_a_history(model: Any) -> None:
    own = history(4)
    mixed = History.of_rows(np.concatenate([[UNCODED], own.rows[:2], [UNCODED] * WINDOW, own.rows[2:], [UNCODED]]))
    clean, littered = (stepped(in_torch(model), [Request(h)], prefixes(3)) for h in (own, mixed))
    assert np.array_equal(clean, littered)
    assert not in_torch(model).reads(Request(History.of_rows([UNCODED])))


def test_every_parameter_is_learnt(name: str) -> None:
    model = build(name, dropout=0.0).train()
    with torch.enable_grad():
        loss_of(model, *batch([3, 1, 4, 11, 5], [8, 7, 6]))[0].backward()
    untaught = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untaught == []


@pytest.mark.parametrize("beams", [1, 9])
@pytest.mark.parametrize("lengths", [[1], [WINDOW], [WINDOW + 3, 1, 4, 2, WINDOW, 4]], ids=str)
def test_the_graphs_compute_what_torch_computes(model: Any, graphs: Decoder, lengths: list[int], beams: int) -> None:
    """At every level, the first and the last included."""
    asked, codes = requests(lengths), prefixes(beams, len(lengths))
    ours, theirs = (stepped(side, asked, codes) for side in (in_torch(model), graphs))
    assert (np.abs(ours - theirs) / np.maximum(1.0, np.abs(ours))).max() < TOLERANCE


def test_the_graphs_find_what_torch_finds(model: Any, graphs: Decoder, trie: ConstraintTrie) -> None:
    facts = parity(model, graphs, trie, [history(n, seed) for seed in range(3) for n in range(1, 12)])
    assert facts["histories"] == 33
    assert facts["largest_difference"] < 1e-4
    assert facts["identical_top20"] > 0.9


def test_a_beam_as_wide_as_the_catalog_scores_every_item(model: Any, trie: ConstraintTrie) -> None:
    decoder, asked = in_torch(model), requests([1, 5, WINDOW])
    judge = Generative(decoder, trie, Generation(LEVELS, (CODEWORDS,) * LEVELS))
    every = np.arange(1, UNCODED)
    live = trie.live(np.arange(ITEMS + 1) > 0)
    found = search(decoder, decoder.prefill(asked), trie, [Search(ITEMS, ITEMS, live, EMPTY.rows)] * 3)
    for scores, own in zip(judge.rank(asked, [every] * 3), found, strict=True):
        assert sorted(own.rows.tolist()) == every.tolist()
        assert np.abs(scores[own.rows - 1] - own.scores).max() < 1e-4
        assert own.exact


def test_a_new_item_is_generable_without_changing_a_parameter(name: str, model: Any, graphs: Decoder) -> None:
    """Codes are appended to the table; the very same weights, and graphs, find it and read it."""
    ids = semantic_ids()
    table = ids.table.extended(ids.table.codes[[TWINS[0]]])
    vectors = {key: np.concatenate([own, own[[TWINS[0]]]]) for key, own in model.tables.vectors.items()}
    new, tables = ITEMS + 1, Tables(vectors, table)
    later = build(name)
    later.load_state_dict(model.state_dict())
    later.tables = tables
    trie = ConstraintTrie.build(table)
    for decoder in (in_torch(later), graphs.with_tables(tables)):  # type: ignore[attr-defined]
        memory = decoder.prefill(requests([4]))
        only = Search(5, 5, trie.live(np.arange(new + 1) == new), EMPTY.rows)
        (found,) = search(decoder, memory, trie, [only])
        assert found.rows.tolist() == [new]
        wanted = table.codes[new].astype(np.int64)[None, None]
        said = stepped(in_torch(model), requests([4]), wanted)[0, 0]
        assert found.scores[0] == pytest.approx(said[np.arange(LEVELS), wanted[0, 0]].sum(), abs=1e-4)
        old, read = (stepped(decoder, [Request(History.of_rows([5, row, 9]))], prefixes(3)) for row in (TWINS[0], new))
        assert np.abs(old - read).max() < 1e-6


@pytest.mark.train
def test_one_batch_can_be_learnt_by_heart(name: str) -> None:
    model = build(name, dropout=0.0).train()
    lines = [[3, 1, 4], [11, 5, 9], [21, 22, 23], [8, 7, 6], [30, 31, 32]]
    rows, targets = batch(*lines)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    with torch.enable_grad():
        for _ in range(150):
            loss, _ = loss_of(model, rows, targets)
            if loss.item() < 0.05:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert loss.item() < 0.05
    table = model.tables.codes
    trie = ConstraintTrie.build(table)
    decoder = in_torch(model)
    searches = [Search(1, 10, trie.live(np.arange(ITEMS + 1) > 0), EMPTY.rows)] * len(lines)
    memory = decoder.prefill([Request(History.of_rows(line[:2])) for line in lines])
    best = [int(found.rows[0]) for found in search(decoder, memory, trie, searches)]
    assert table.codes[best].tolist() == table.codes[[line[2] for line in lines]].tolist()


def test_saved_and_loaded_it_is_the_same_model(name: str, model: Any, tmp_path: Path) -> None:
    arrays = {f"model/{key}": t.numpy() for key, t in model.state_dict().items()}
    checkpoint.save(tmp_path / "c.npz", arrays=arrays, facts={})
    again = build(name).eval()
    for weights in again.parameters():
        torch.nn.init.normal_(weights)
    checkpoint.restore(checkpoint.load(tmp_path / "c.npz")[0], again, None)
    ours, theirs = (spoken(side, requests([5]), prefixes(4), length=5) for side in (model, again))
    assert np.array_equal(ours, theirs)


def test_its_options_survive_as_text(name: str) -> None:
    config = build(name).config
    again, left = configure(
        families("generator")[name].Config(), {key: str(value) for key, value in asdict(config).items()}
    )
    assert again == config
    assert left == {}


def test_a_decoder_of_independent_levels_is_known_as_one(model: Any, graphs: Decoder) -> None:
    for decoder in (in_torch(model), graphs):
        assert isinstance(decoder, Parallel) == (not model.memory_names)
