"""How rankers learn: losses by hand, batches by seed, places that are left behind, and how a run ends."""

import math
import signal
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from models.errors import Diverged, EmptyLog, InvalidOption
from models.lists import Arrays
from models.progress import Progress
from models.ranker_training import (
    RankerTraining,
    descend,
    drawn,
    grade,
    log_odds,
    losses,
    ndcg,
    network_probabilities,
    plan,
    write_network,
)
from retrieval.encoder import open_graph

NAN = math.nan


class Line(torch.nn.Module):
    """Logits that are one number times a weight, plus a bias: the smallest network."""

    inputs: ClassVar[tuple[str, ...]] = ("candidate_numbers",)

    def __init__(self, tasks: int = 1, start: float = 0.0, stop: Callable[[int], None] = lambda _step: None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((tasks,), start))
        self.bias = torch.nn.Parameter(torch.zeros(tasks))
        self.dropout = torch.nn.Dropout(0.5)
        self.steps, self._stop = 0, stop

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.steps += 1
            self._stop(self.steps)
        return self.dropout(numbers[..., :1]) * self.weight + self.bias

    def probabilities(self, feeds: Any) -> np.ndarray:
        return network_probabilities(self, feeds)


def arrays(numbers: np.ndarray, labels: np.ndarray, positions: np.ndarray | None = None) -> Arrays:
    """Lists of one number; labels (R, C) or (R, C, T)."""
    labels = labels if labels.ndim == 3 else labels[..., None]
    places = np.zeros(labels.shape[:2], np.int64) if positions is None else positions
    feeds = {"candidate_numbers": numbers.astype(np.float32)[..., None]}
    return Arrays(feeds, labels.astype(np.float32), places, np.arange(len(labels)))


def sorted_lists(lists: int, *, upwards: bool, seed: int = 0) -> Arrays:
    """Six candidates each; the half with the largest numbers is wanted, or that with the smallest."""
    numbers = np.random.default_rng(seed).normal(size=(lists, 6))
    middle = np.median(numbers, axis=1, keepdims=True)
    return arrays(numbers, (numbers > middle) == upwards)


def fit(model: Any, train: Arrays, validation: Arrays, **options: Any) -> Any:
    how = RankerTraining(**{"learning_rate": 0.05, "batch": 8, "epochs": 3, "threads": 1, "decay": 0.0, **options})
    return descend(model, train, validation, how, Progress(StringIO()))


# Losses


def test_losses_are_means_over_what_is_known_weighted_by_task() -> None:
    logits = torch.tensor([[[0.0, 2.0], [1.0, -1.0]], [[3.0, 0.5], [9.0, 9.0]]], requires_grad=True)
    labels = torch.tensor([[[1.0, NAN], [0.0, 1.0]], [[1.0, NAN], [NAN, NAN]]])

    def entropy(logit: float, label: float) -> float:
        return math.log1p(math.exp(-logit if label else logit))

    loss = losses(logits, labels, torch.tensor([1.0, 0.5]), 0.0)
    first = (entropy(0, 1) + entropy(1, 0) + entropy(3, 1)) / 3
    assert float(loss.detach()) == pytest.approx(first + 0.5 * entropy(-1, 1), abs=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad == 0, labels.isnan())


def test_a_task_of_which_nothing_is_known_adds_nothing() -> None:
    logits = torch.ones(2, 3, 1, requires_grad=True)
    loss = losses(logits, torch.full((2, 3, 1), NAN), torch.ones(1), 1.0)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_listwise_loss_is_the_first_tasks_softmax_over_known_candidates() -> None:
    logits = torch.tensor([[[1.0], [2.0], [5.0], [0.0]], [[1.0], [1.0], [1.0], [1.0]]], requires_grad=True)
    labels = torch.tensor([[[1.0], [0.0], [NAN], [1.0]], [[0.0], [0.0], [NAN], [NAN]]])  # the second list wants nothing
    both, pointwise = (losses(logits, labels, torch.ones(1), weight) for weight in (2.0, 0.0))
    total = math.exp(1) + math.exp(2) + math.exp(0)
    expected = -(math.log(math.exp(1) / total) + math.log(math.exp(0) / total)) / 2
    assert float((both - pointwise).detach()) == pytest.approx(2 * expected, abs=1e-6)
    both.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert float(logits.grad[0, 2, 0]) == 0.0


def test_log_odds_are_of_known_labels_and_finite() -> None:
    labels = np.full((1, 9, 3), NAN, dtype=np.float32)
    labels[0, :8, 0] = [1, 0, 0, 0, 0, 0, 0, 1]
    labels[0, :3, 1] = 0
    assert log_odds(labels).tolist() == pytest.approx([math.log(3 / 7), math.log(1 / 4), 0.0])


# Batches


def test_batches_are_the_same_for_a_seed_and_an_epoch_and_no_other() -> None:
    one = plan(10, 4, seed=1, epoch=0)
    assert [len(batch) for batch in one] == [4, 4, 2]
    assert sorted(np.concatenate(one)) == list(range(10))
    assert all(np.array_equal(a, b) for a, b in zip(one, plan(10, 4, seed=1, epoch=0), strict=True))
    for other in (plan(10, 4, seed=1, epoch=1), plan(10, 4, seed=2, epoch=0)):
        assert not np.array_equal(np.concatenate(one), np.concatenate(other))


def test_drawn_negatives_keep_all_that_has_feedback_and_draw_the_absent_last() -> None:
    rng = np.random.default_rng(0)
    numbers = np.arange(60).reshape(3, 20)
    labels = np.zeros((3, 20, 2))
    labels[0, [3, 9, 17], 0] = 1
    labels[1, 5, 1] = 1  # of any task
    labels[:, 4, 0] = NAN  # known in part is there
    labels[2, 8:] = NAN  # a short list
    positions = np.tile(np.arange(1, 21), (3, 1))
    lists = arrays(numbers, labels, positions)
    which = np.array([2, 0, 1])
    seen = set()
    for _ in range(20):
        feeds, kept, places = drawn(lists, which, 4, rng)
        own = feeds["candidate_numbers"][..., 0].astype(int)
        assert own.shape == kept.shape[:2] == places.shape == (3, 7)  # 4 and the three of the first list
        assert {3, 9, 17} <= {*own[1].tolist()}
        assert 25 in own[2]
        assert len({*own[0].tolist()} & set(range(40, 48))) == 7  # seven of the eight that are there
        for line, r in enumerate(which):
            assert (np.diff(own[line]) > 0).all()
            columns = own[line] - 20 * r
            assert np.array_equal(kept[line], lists.labels[r, columns], equal_nan=True)
            assert np.array_equal(places[line], positions[r, columns])
        seen |= {*own[1].tolist()}
    assert seen == set(range(20))
    again = [drawn(lists, which, 4, np.random.default_rng(5))[0]["candidate_numbers"] for _ in range(2)]
    assert np.array_equal(*again)


@pytest.mark.parametrize("negatives", [0, 20, 50])
def test_without_drawing_every_candidate_is_taken(negatives: int) -> None:
    lists = sorted_lists(4, upwards=True)
    feeds, labels, _ = drawn(lists, np.array([1, 3]), negatives, np.random.default_rng(0))
    assert np.array_equal(feeds["candidate_numbers"], lists.feeds["candidate_numbers"][[1, 3]])
    assert np.array_equal(labels, lists.labels[[1, 3]])


# Runs


@pytest.mark.train
def test_places_learn_and_are_left_behind() -> None:
    rng = np.random.default_rng(0)
    positions = np.tile(np.arange(1, 9), (2000, 1))
    numbers = rng.normal(size=positions.shape)
    truth = 1.5 * numbers - 0.4 * (positions - 1)
    labels = rng.random(truth.shape) < 1 / (1 + np.exp(-truth))
    model, lists = Line(), arrays(numbers, labels, positions)
    model.dropout = torch.nn.Dropout(0.0)
    fitted = fit(model, lists, lists, epochs=4, batch=20)
    assert fitted.places.shape == (9, 1)
    assert fitted.places.dtype == np.float32
    assert fitted.places[:2].tolist() == [[0.0], [0.0]]
    assert fitted.places[2:, 0] == pytest.approx(-0.4 * np.arange(1, 8), abs=0.35)
    assert float(model.weight.detach()) == pytest.approx(1.5, abs=0.2)
    assert float(model.bias.detach()) == pytest.approx(0.0, abs=0.25)  # as if each stood first
    said = model.probabilities(lists.batch(np.arange(3)))
    assert said == pytest.approx(
        1 / (1 + np.exp(-(numbers[:3, :, None] * float(model.weight.detach()) + float(model.bias.detach())))), abs=1e-5
    )


def test_lists_that_were_never_shown_have_no_places() -> None:
    lists = sorted_lists(8, upwards=True)
    assert fit(Line(), lists, lists).places.tolist() == [[0.0]]


def test_it_stops_when_nothing_gets_better_and_gives_back_the_best_weights() -> None:
    """Training pulls the weight below zero, where the validation lists are in the wrong order."""
    train, validation = sorted_lists(64, upwards=False), sorted_lists(16, upwards=True, seed=1)
    model, first = Line(start=0.5), Line(start=0.5)
    fitted = fit(model, train, validation, epochs=20, patience=4)
    fit(first, train, validation, epochs=1)
    assert (fitted.facts["epochs_run"], fitted.facts["best_epoch"]) == (5, 1)
    assert torch.equal(model.weight, first.weight)
    assert float(model.weight.detach()) > 0
    assert not model.training


def test_the_mean_of_weights_over_steps_is_what_is_kept() -> None:
    train, validation = sorted_lists(40, upwards=True), sorted_lists(10, upwards=True, seed=1)
    own, mean = Line(), Line()
    for model, average in ((own, 0.0), (mean, 0.9)):
        fit(model, train, validation, average=average, epochs=1, learning_rate=0.1)
    # One direction from nought: the mean over steps lags behind the last one, and is on its way.
    assert 0 < float(mean.weight.detach()) < float(own.weight.detach())


def test_the_same_seed_gives_the_same_weights_and_another_others() -> None:
    lists = sorted_lists(24, upwards=True)
    weights = []
    for seed in (1, 1, 2):
        model = Line()
        fit(model, lists, lists, seed=seed, negatives=2)
        weights.append(float(model.weight.detach()))
    assert weights[0] == weights[1] != weights[2]


def test_a_loss_that_is_no_number_is_named() -> None:
    lists = sorted_lists(8, upwards=True)
    with pytest.raises(Diverged, match=r"the loss is nan in epoch 1; lower --set learning_rate="):
        fit(Line(start=NAN), lists, lists)


def test_cancelled_by_ctrl_c_it_ends_after_the_step_and_gives_the_signal_back() -> None:
    def stop(step: int) -> None:
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    lists, model = sorted_lists(64, upwards=True), Line(stop=stop)
    with pytest.raises(KeyboardInterrupt):
        fit(model, lists, lists)
    assert model.steps == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_empty_training_is_refused_and_empty_validation_is_no_progress() -> None:
    lists, nothing = sorted_lists(8, upwards=True), sorted_lists(0, upwards=True)
    with pytest.raises(EmptyLog, match="there is no list to learn from"):
        fit(Line(), nothing, lists)
    assert fit(Line(), lists, nothing, patience=2, epochs=9).facts["epochs_run"] == 3


def test_the_mode_of_a_network_is_as_it_was() -> None:
    model = Line(start=1.0)
    feeds = sorted_lists(2, upwards=True).batch(np.arange(2))
    for training in (True, False):
        model.train(training)
        assert np.array_equal(model.probabilities(feeds), model.probabilities(feeds))  # no dropout
        assert model.training == training


def test_the_graph_says_probabilities_for_any_number_of_candidates(tmp_path: Path) -> None:
    model = Line(tasks=2, start=0.7)
    write_network(model, tmp_path / "ranker.onnx", sorted_lists(2, upwards=True).feeds)
    session = open_graph(tmp_path / "ranker.onnx", threads=1, device="cpu")
    for feeds in ({"candidate_numbers": np.ones((1, 1, 1), np.float32)}, sorted_lists(5, upwards=False).feeds):
        (said,) = session.run(["probabilities"], feeds)
        assert said == pytest.approx(model.probabilities(feeds), abs=1e-6)


# Judging


def test_ndcg_by_hand() -> None:
    scores = np.array([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    gains = np.array([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    ideal = 2 + 1 / math.log2(3)
    found = ndcg(scores, gains)
    assert found[0] == pytest.approx((2 / math.log2(3) + 1 / 2) / ideal)
    assert np.isnan(found[1])
    assert found[2] == 1.0
    assert ndcg(scores[:1], gains[:1], k=1).tolist() == [0.0]


def test_grade_is_over_lists_with_feedback_and_leaves_absent_candidates_out() -> None:
    labels = np.array([[[1.0, 1.0], [0.0, 1.0], [NAN, NAN]], [[0.0, 0.0], [0.0, NAN], [0.0, 0.0]]])
    lists = arrays(np.array([[0.2, 0.1, 0.9], [0.1, 0.2, 0.3]]), labels)

    def by_number(feeds: Any) -> np.ndarray:
        return np.repeat(feeds["candidate_numbers"], 2, axis=2)

    assert grade(by_number, lists) == 1.0
    assert grade(lambda feeds: 1 - by_number(feeds), lists) == 0.0
    assert grade(by_number, arrays(np.ones((2, 3)), np.zeros((2, 3, 2)))) == 0.0


def test_grade_judges_shown_lists_with_what_their_places_add() -> None:
    lists = arrays(np.array([[0.6, 0.5]]), np.array([[0, 1]]), np.array([[2, 1]]))
    places = np.array([[0.0], [0.0], [-3.0]], dtype=np.float32)

    def by_number(feeds: Any) -> np.ndarray:
        return np.array(feeds["candidate_numbers"])

    assert grade(by_number, lists) < 1.0
    assert grade(by_number, lists, places) == 1.0


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate 0.0 must be above zero"),
        ({"batch": 0}, "batch 0 must be above zero"),
        ({"epochs": math.inf}, "epochs inf must be above zero"),
        ({"negatives": -1}, "negatives -1 must not be negative"),
        ({"average": 1.0}, "average 1.0 must be at least 0 and below 1"),
        ({"listwise": NAN}, "listwise nan must not be negative"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        RankerTraining(**options)


def test_task_weights_are_one_number_each() -> None:
    assert RankerTraining().weights(2) == [1.0, 1.0]
    assert RankerTraining(task_weights="1, 0.5").weights(2) == [1.0, 0.5]
    for text in ("1", "1,2,3", "1,-1", "1,x", "1,nan"):
        with pytest.raises(InvalidOption, match="2 numbers of 0 or more were expected"):
            RankerTraining(task_weights=text).weights(2)
