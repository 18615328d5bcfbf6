"""INFNet: what its equations promise, the folded form against the plain one, and the graph."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import made_lists
import numpy as np
import onnx
import pytest
import torch

from models.errors import InvalidOption
from models.progress import Progress
from models.ranker_training import RankerTraining, tensors
from models.rankers.infnet import InfNet, InfNetConfig
from retrieval.encoder import open_graph
from retrieval.features import Category, FeatureSet

SMALL = {"d": 8, "field_proxies": 3, "proxy_hidden": 16, "gate_hidden": 8, "towers": "16,8"}
SWITCHES: list[dict[str, Any]] = [
    {},
    {"blocks": 1},
    {"blocks": 3},
    {"paper_gate": True},
    {"numbers": "buckets"},
    {"numbers": "linear"},
    {"task_tokens": False},
    {"heterogeneous": False},
    {"homogeneous": False},
    {"proxies": False},
    {"task_tokens": False, "blocks": 1},
    {"task_tokens": False, "homogeneous": False},
    {"task_tokens": False, "heterogeneous": False, "homogeneous": False, "proxies": False},
]
Maker = Callable[..., InfNet]


@pytest.fixture
def make() -> Maker:
    """A small model in evaluation mode, its weights moved from where they start so that no bias is zero."""

    def made(features: FeatureSet | None = None, **options: Any) -> InfNet:
        torch.manual_seed(0)
        model = InfNet(InfNetConfig(**{**SMALL, **options}), features or made_lists.features()).eval()
        with torch.no_grad():
            for weights in model.parameters():
                weights += 0.1 * torch.randn_like(weights)
        return model

    return made


def said(model: InfNet, feeds: dict[str, np.ndarray]) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(*tensors(model.inputs, feeds))
    return out


def test_1_padding_changes_nothing(make: Maker) -> None:
    model, feeds = make(), made_lists.feeds(3, 4, 5)
    padded = {**feeds}
    # In front, behind and in between, and whatever the padded codes are.
    for at in (0, 3, 7):
        padded["event_behaviours"] = np.insert(padded["event_behaviours"], at, 0, axis=1)
        padded["event_codes"] = np.insert(padded["event_codes"], at, 4, axis=1)
    assert float((said(model, padded) - said(model, feeds)).abs().max()) < 1e-5


def test_1_padding_changes_nothing_where_logits_are_large(make: Maker) -> None:
    model, feeds = make(), made_lists.feeds(3, 4, 5)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith((".query", ".key")):
                weights *= 4.0
    feeds["event_behaviours"][0] = 0
    padded = {**feeds}
    padded["event_behaviours"] = np.pad(feeds["event_behaviours"], ((0, 0), (20, 0)))
    padded["event_codes"] = np.pad(feeds["event_codes"], ((0, 0), (20, 0), (0, 0)), constant_values=4)
    assert float((said(model, padded) - said(model, feeds)).abs().max()) < 1e-5


def test_2_order_within_a_behaviour_is_nothing_and_across_behaviours_is_something(make: Maker) -> None:
    model, feeds = make(), made_lists.feeds(2, 4, 6)
    feeds["event_behaviours"][:] = [1, 1, 1, 2, 2, 2]
    feeds["event_codes"] = made_lists.feeds(2, 1, 6, seed=3)["event_codes"] + 1  # nothing is absent
    feeds["event_codes"][..., 1:] %= made_lists.GENRES + 2
    within, across = {**feeds}, {**feeds}
    within["event_codes"] = feeds["event_codes"][:, [2, 0, 1, 4, 5, 3]]
    across["event_codes"] = feeds["event_codes"][:, [3, 1, 2, 0, 4, 5]]
    before = said(model, feeds)
    assert float((said(model, within) - before).abs().max()) < 1e-6
    assert float((said(model, across) - before).abs().max()) > 1e-4


@pytest.mark.parametrize("options", SWITCHES, ids=str)
@pytest.mark.parametrize(("b", "c", "length"), [(3, 5, 7), (1, 1, 1)])
def test_3_folded_equals_plain(make: Maker, options: dict[str, Any], b: int, c: int, length: int) -> None:
    model, feeds = make(**options), made_lists.feeds(b, c, length)
    with torch.no_grad():
        plain = model.forward_plain(*tensors(model.inputs, feeds))
    assert plain.shape == (b, c, 3)
    assert float((said(model, feeds) - plain).abs().max()) < 1e-5


def test_4_one_block_keeps_tasks_apart_to_the_last_bit_and_two_do_not(make: Maker) -> None:
    feeds = made_lists.feeds(2, 4, 6)
    for blocks in (1, 2):
        model = make(blocks=blocks)
        before = said(model, feeds)
        assert model.own is not None
        with torch.no_grad():
            model.own[1] += 1.0
        after = said(model, feeds)
        assert not torch.equal(after[..., 1], before[..., 1])
        for other in (0, 2):
            assert torch.equal(after[..., other], before[..., other]) == (blocks == 1)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[InfNet, Path]:
    """A model as it is by default and its graph, which is half a minute's work."""
    torch.manual_seed(0)
    model, path = (
        InfNet(InfNetConfig(**SMALL), made_lists.features()).eval(),
        tmp_path_factory.mktemp("graph") / "r.onnx",
    )
    model.write(path, made_lists.feeds(2, 3, 4))
    return model, path


def test_5_no_tensor_holds_a_sequence_for_every_candidate(written: tuple[InfNet, Path], tmp_path: Path) -> None:
    """Sizes that no other dimension has: with 23 candidates and 31 events, products of both are seen."""
    model, path = written
    graph = onnx.load(path)
    names = [name for node in graph.graph.node for name in node.output if name != "probabilities"]
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    onnx.save(graph, tmp_path / "open.onnx")
    b, c, length = 5, 23, 31
    feeds = made_lists.feeds(b, c, length)
    made = open_graph(tmp_path / "open.onnx", threads=1, device="cpu").run(None, feeds)
    assert len(made) == len(names) + 1
    assert max(int(np.size(out)) for out in made) < b * c * length * model.config.d
    makers = {name: node for node in graph.graph.node for name in node.output}
    copied = [node.input[0] for node in graph.graph.node if node.op_type in ("Expand", "Tile")]
    assert copied
    assert not [name for name in copied if "event_codes" in _sources(name, makers)]


def _sources(name: str, makers: dict[str, onnx.NodeProto]) -> set[str]:
    """The inputs of the graph whose values, not shapes alone, go into a tensor."""
    seen: set[str] = set()
    ahead = [name]
    while ahead:
        at = ahead.pop()
        if at not in seen:
            seen.add(at)
            if at in makers and makers[at].op_type != "Shape":
                ahead += makers[at].input
    return seen - {*makers}


def test_what_does_not_depend_on_the_candidate_has_one_row_for_all(make: Maker) -> None:
    """Cost linear in B, C and L: the folded form's largest tensors grow with each as one factor."""
    model = make()

    def size(b: int, c: int, length: int) -> int:
        seen = [0]
        with torch.no_grad(), _Sizes(seen):
            model(*tensors(model.inputs, made_lists.feeds(b, c, length)))
        return seen[0]

    base = size(2, 16, 16)
    assert size(4, 16, 16) <= 2 * base
    assert size(2, 32, 16) <= 2 * base
    assert size(2, 16, 32) <= 2 * base
    plain = [0]
    with torch.no_grad(), _Sizes(plain):
        model.forward_plain(*tensors(model.inputs, made_lists.feeds(2, 16, 16)))
    assert plain[0] > 2 * base


class _Sizes(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc, name-defined]
    """Counts the numbers that operations write."""

    def __init__(self, seen: list[int]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view:
            self.seen[0] += out.numel()
        return out


def test_absent_numbers_are_digested_and_are_not_any_number(make: Maker) -> None:
    for numbers in ("buckets", "linear", "both"):
        model, feeds = make(numbers=numbers), made_lists.feeds(2, 3, 4)
        seen = []
        for value in (np.nan, 0.0, -8.0, 8.0):
            feeds["candidate_numbers"][:] = value
            seen.append(said(model, feeds))
            assert seen[-1].isfinite().all()
        assert all(float((seen[0] - other).abs().max()) > 1e-4 for other in seen[1:])


def test_empty_history_is_a_token_of_its_own(make: Maker) -> None:
    model, feeds = make(), made_lists.feeds(2, 3, 4)
    feeds["event_behaviours"][0] = 0
    feeds["event_behaviours"][1] = [0, 0, 1, 1]  # the second behaviour alone is empty
    before = said(model, feeds)
    assert before.isfinite().all()
    with torch.no_grad():
        model.empty[1] += 1.0
    moved = (said(model, feeds) - before).abs().amax(dim=(1, 2))
    assert (moved > 1e-4).all()
    with torch.no_grad():
        model.empty[0] += 1.0
    again = said(model, feeds)
    assert not torch.equal(again[0], before[0])


def test_the_candidate_matters(make: Maker) -> None:
    model, feeds = make(), made_lists.feeds(2, 3, 4)
    before = said(model, feeds)
    feeds["candidate_codes"][0, 1, 0] = feeds["candidate_codes"][0, 1, 0] % made_lists.ITEMS + 1
    after = said(model, feeds)
    assert not torch.equal(after[0, 1], before[0, 1])
    assert float((after[0, [0, 2]] - before[0, [0, 2]]).abs().max()) < 1e-6
    assert float((after[1] - before[1]).abs().max()) < 1e-6


@pytest.mark.parametrize("options", SWITCHES, ids=str)
def test_gradients_reach_every_weight(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = InfNet(InfNetConfig(**{**SMALL, "dropout": 0.0, **options}), made_lists.features())
    feeds = made_lists.feeds(6, 8, 6)
    feeds["event_behaviours"][0] = 0
    model(*tensors(model.inputs, feeds)).square().sum().backward()
    dead = [name for name, w in model.named_parameters() if w.grad is None or not w.grad.any()]
    assert dead == []


def test_the_graph_computes_what_torch_computes(written: tuple[InfNet, Path]) -> None:
    model, path = written
    session = open_graph(path, threads=1, device="cpu")
    assert [node.name for node in session.get_inputs()] == list(model.inputs)
    for b, c, length in ((1, 1, 1), (1, 7, 2), (5, 2, 9), (3, 11, 1)):
        feeds = made_lists.feeds(b, c, length)
        (theirs,) = session.run(["probabilities"], feeds)
        assert theirs.shape == (b, c, 3)
        assert float(np.abs(theirs - model.probabilities(feeds)).max()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("options", SWITCHES[1:], ids=str)
def test_every_switch_can_be_served(make: Maker, options: dict[str, Any], tmp_path: Path) -> None:
    model = make(**options)
    model.write(tmp_path / "ranker.onnx", made_lists.feeds(2, 3, 4))
    feeds = made_lists.feeds(5, 2, 9)
    (theirs,) = open_graph(tmp_path / "ranker.onnx", threads=1, device="cpu").run(None, feeds)
    assert float(np.abs(theirs - model.probabilities(feeds)).max()) < 1e-5


def test_features_without_events_numbers_or_requests_can_be_read(make: Maker, tmp_path: Path) -> None:
    bare = made_lists.features(
        candidate_codes=(Category("id", made_lists.ITEMS),),
        candidate_numbers=(),
        request_codes=(),
        request_numbers=(),
        event_fields=(),
    )
    model, feeds = make(bare, blocks=1), made_lists.feeds(3, 4, 5)
    cut = {
        "candidate_codes": feeds["candidate_codes"][..., :1] % made_lists.ITEMS,
        "candidate_numbers": feeds["candidate_numbers"][..., :0],
        "request_codes": feeds["request_codes"][:, :0],
        "request_numbers": feeds["request_numbers"][:, :0],
        "event_codes": feeds["event_codes"][..., :0],
        "event_behaviours": feeds["event_behaviours"],
    }
    model.write(tmp_path / "ranker.onnx", cut)
    (theirs,) = open_graph(tmp_path / "ranker.onnx", threads=1, device="cpu").run(None, cut)
    assert float(np.abs(theirs - model.probabilities(cut)).max()) < 1e-5


@pytest.mark.train
def test_it_learns_what_each_task_wants() -> None:
    torch.manual_seed(0)
    model = InfNet(InfNetConfig(d=8, dropout=0.0), made_lists.features())
    train, held_out = made_lists.known(600), made_lists.known(100, seed=1)
    how = RankerTraining(learning_rate=0.01, batch=20, epochs=8, patience=8, threads=1)
    model.fit(train, held_out, how, Progress(StringIO()))
    probabilities = model.probabilities(held_out.batch(np.arange(len(held_out))))
    for task, (least, most) in enumerate([(0.75, 1.0), (0.8, 1.0), (0.4, 0.6)]):
        own, labels = probabilities[..., task].ravel(), held_out.labels[..., task].ravel()
        pairs = own[labels > 0][:, None] - own[labels == 0][None, :]
        assert least < float((pairs > 0).mean() + 0.5 * (pairs == 0).mean()) < most
    entropy = -np.log(np.where(held_out.labels > 0, probabilities, 1 - probabilities)).mean(axis=(0, 1))
    share = train.labels.mean(axis=(0, 1))
    constant = -np.log(np.where(held_out.labels > 0, share, 1 - share)).mean(axis=(0, 1))
    assert (entropy[:2] < 0.9 * constant[:2]).all()
    assert entropy[2] < 1.1 * constant[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"d": 0}, "d 0 must be at least 1"),
        ({"dropout": 1.0}, "dropout 1.0 must be at least 0 and below 1"),
        ({"towers": "8,"}, "towers '8,': whole numbers above zero"),
        ({"numbers": "raw"}, "numbers 'raw' is none of buckets, linear, both"),
        ({"buckets": 1}, "buckets 1 must be at least 2"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidOption, match=said.replace("(", r"\(")):
        InfNet(InfNetConfig(**options), made_lists.features())


def test_features_without_a_field_are_refused() -> None:
    with pytest.raises(InvalidOption, match="these features have none"):
        InfNet(InfNetConfig(), FeatureSet(tasks=made_lists.features().tasks))
