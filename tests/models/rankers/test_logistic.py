"""Logistic regression by hand. What every ranker owes is in `tests/contracts/test_rankers.py`."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.errors import InvalidOption
from models.lists import Arrays
from models.progress import Progress
from models.ranker_training import RankerTraining
from models.rankers.logistic import Logistic, LogisticConfig
from retrieval.features import Category, FeatureSet, Number
from retrieval.tasks import Task

FEATURES = FeatureSet(
    tasks=(Task("click"), Task("like", op=">=", value=4.0)),
    candidate_codes=(Category("attribute:shelf", known=3), Category("attribute:genres", known=4, width=3)),
    candidate_numbers=(Number("popularity"), Number("retrieval:score")),
    request_codes=(Category("context:place", known=2, words=("home", "work")),),
    request_numbers=(Number("hour"),),
)
QUIETLY = Progress(io.StringIO())


def arrays(lists: int, seed: int = 0, candidates: int = 12) -> Arrays:
    """Lists whose clicks follow the first number and the shelf, and whose likes follow the second number."""
    rng = np.random.default_rng(seed)
    feeds = {
        "candidate_codes": np.concatenate(
            [rng.integers(0, 5, (lists, candidates, 1)), rng.integers(0, 6, (lists, candidates, 3))], axis=2
        ),
        "candidate_numbers": rng.normal(size=(lists, candidates, 2)).astype(np.float32),
        "request_codes": rng.integers(0, 4, (lists, 1)),
        "request_numbers": rng.normal(size=(lists, 1)).astype(np.float32),
    }
    numbers, shelf = feeds["candidate_numbers"], feeds["candidate_codes"][:, :, 0]
    logits = np.stack([2 * numbers[:, :, 0] + 1.5 * (shelf == 2) - 1, -2 * numbers[:, :, 1] - 1], axis=2)
    labels = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    return Arrays(feeds, labels, np.zeros((lists, candidates), np.int64), np.arange(lists))


def fitted(train: Arrays, **options: object) -> Logistic:
    model = Logistic(LogisticConfig(), FEATURES)
    how = replace(RankerTraining(), **{"learning_rate": 0.05, "epochs": 12, "patience": 12, "threads": 1, **options})
    model.fit(train, arrays(20, seed=9), how, QUIETLY)
    return model


def test_a_logit_is_the_sum_of_the_weights_of_what_is_there() -> None:
    model = Logistic(LogisticConfig(), FEATURES)
    for weights in model.parameters():
        torch.nn.init.normal_(weights)
    assert model.inputs == ("candidate_numbers", "request_numbers", "candidate_codes", "request_codes")
    feeds = {name: feed.copy() for name, feed in arrays(1).feeds.items()}
    feeds["candidate_codes"][0, 0] = [2, 5, 0, 3]
    feeds["candidate_numbers"][0, 0] = [0.5, np.nan]
    feeds["request_codes"][0] = [0]
    feeds["request_numbers"][0] = [np.nan]
    own = {name: weights.detach().numpy() for name, weights in model.named_parameters()}
    words = own["parts.candidate_codes.table.weight"]  # 5 of the shelf, then 6 of the genres
    logit = (
        own["bias"]
        + 0.5 * own["parts.candidate_numbers.weight"][0]
        + own["parts.candidate_numbers.weight"][2 + 1]  # absent
        + own["parts.request_numbers.weight"][1 + 0]
        + words[2]
        + (words[5 + 5] + words[5 + 3]) / 2
    )
    said = model.probabilities(feeds)
    assert said.shape == (1, 12, 2)
    np.testing.assert_allclose(said[0, 0], 1 / (1 + np.exp(-logit)), rtol=1e-5)


def test_it_finds_what_the_labels_follow() -> None:
    model = fitted(arrays(300), batch=8)
    numbers = model.parts["candidate_numbers"].weight.detach().numpy()
    # Those of the epoch with the best order, which may come before the weights have all their size.
    np.testing.assert_allclose(numbers[:2] / np.abs(numbers[:2]).max(axis=0), [[1, 0], [0, -1]], atol=0.15)
    shelves = model.parts["candidate_codes"].table.weight.detach().numpy()[:5, 0]
    assert shelves[2] - shelves[[1, 3, 4]].max() > 1


def test_tasks_share_nothing() -> None:
    """Other likes leave the regression of clicks as it is."""
    train = arrays(50)
    other = replace(train, labels=train.labels.copy())
    other.labels[:, :, 1] = 1 - other.labels[:, :, 1]
    one, two = (fitted(each, epochs=1) for each in (train, other))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a[..., 0], b[..., 0])
    assert not torch.equal(one.bias[1], two.bias[1])


def test_a_strong_penalty_makes_weights_small() -> None:
    weak, strong = (
        fitted(arrays(50), decay=decay, batch=8, average=0.0).parts["candidate_numbers"].weight for decay in (0.0, 1.0)
    )
    assert float(strong.detach().abs().max()) < 0.2 * float(weak.detach().abs().max())


def test_only_what_is_declared_is_an_input() -> None:
    bare = replace(FEATURES, candidate_codes=(), request_numbers=())
    assert Logistic(LogisticConfig(), bare).inputs == ("candidate_numbers", "request_codes")
    assert Logistic(LogisticConfig(codes=False), FEATURES).inputs == ("candidate_numbers", "request_numbers")


def test_without_anything_of_candidates_it_is_refused() -> None:
    bare = replace(FEATURES, candidate_numbers=())
    assert Logistic(LogisticConfig(), bare).inputs[0] == "request_numbers"
    with pytest.raises(InvalidOption, match="needs a number of candidates"):
        Logistic(LogisticConfig(codes=False), bare)
