"""Counting methods against counts made by hand."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.baselines import ItemKnn, Popular, Random, Transitions, fitted
from models.evaluate import evaluate
from models.events import read_log
from models.histories import Histories, catalog_from_log
from models.splits import leave_one_out
from retrieval.errors import InvalidInput
from retrieval.sequences import EMPTY, History

TRAIN = Histories.from_rows([[1, 2, 3], [1, 2, 4], [2, 1, 5], [4]])
N = 6  # item 6 has no event


def one(scorer: Random | Popular | Transitions | ItemKnn, *rows: int) -> np.ndarray:
    """The scores for one history."""
    scores = scorer.scores([History.of_rows(rows)], [0.0])
    assert scores.shape == (1, N + 1)
    assert scores.dtype == np.float32
    return scores[0]


def test_popular_is_the_count_whatever_the_history() -> None:
    assert one(Popular(TRAIN, N), 6).tolist() == [0, 3, 3, 1, 2, 1, 0]


def test_transitions_count_followers_by_their_distance() -> None:
    votes = one(Transitions(TRAIN, N, window=2, decay=0.5, damping=0.0), 1)
    # After 1 come: 2 twice at once, 5 once at once, 3 and 4 once each at two places.
    np.testing.assert_allclose(votes[1:], [0, 2, 0.5, 0.5, 1, 0], atol=1e-5)


def test_the_older_of_two_items_votes_with_less_weight() -> None:
    scorer = Transitions(TRAIN, N, window=2, decay=0.5, damping=0.0)
    np.testing.assert_allclose(one(scorer, 1, 2), 0.5 * one(scorer, 1) + one(scorer, 2), atol=1e-5)


def test_transitions_forget_what_lies_before_the_window() -> None:
    scorer = Transitions(TRAIN, N, window=2, decay=0.5)
    np.testing.assert_array_equal(one(scorer, 1, 4, 2), one(scorer, 3, 4, 2))


def test_damping_makes_votes_into_shares() -> None:
    scorer = Transitions(TRAIN, N, window=1, decay=1.0, damping=1.0)
    np.testing.assert_allclose(one(scorer, 2), [0, 1 / 3, 0, 1 / 3, 1 / 3, 0, 0], atol=1e-5)  # 2 occurs three times


def test_transitions_do_not_cross_from_one_user_to_the_next() -> None:
    assert one(Transitions(TRAIN, N), 5).max() < 1e-5  # 5 ends its history; 4 begins another


def test_item_knn_is_the_cosine_of_shared_users() -> None:
    votes = one(ItemKnn(TRAIN, N, shrinkage=0.0), 2)
    # U_1 = U_2 = {0, 1, 2}, U_3 = {0}, U_4 = {1, 3}, U_5 = {2}.
    expected = [0, 1, 0, 1 / np.sqrt(3), 1 / np.sqrt(6), 1 / np.sqrt(3), 0]
    np.testing.assert_allclose(votes, expected, atol=1e-5)


def test_shrinkage_draws_similarities_down() -> None:
    np.testing.assert_allclose(one(ItemKnn(TRAIN, N, shrinkage=3.0), 2)[1], 3 / (3 + 3), atol=1e-5)


def test_item_knn_keeps_only_the_nearest() -> None:
    votes = one(ItemKnn(TRAIN, N, shrinkage=0.0, neighbours=1), 2)
    assert np.flatnonzero(votes > 1e-5).tolist() == [1]


def test_an_item_counts_once_per_user() -> None:
    twice = Histories.from_rows([[1, 2, 2, 2], [1, 3]])
    assert ItemKnn(twice, 3, shrinkage=0.0).scores([History.of_rows([1])], [0.0])[0, 2] == pytest.approx(
        1 / np.sqrt(2), abs=1e-5
    )


@pytest.mark.parametrize("kind", [Transitions, ItemKnn])
def test_without_a_count_popularity_decides(kind: type[Transitions] | type[ItemKnn]) -> None:
    scorer = kind(TRAIN, N)
    for history in (History.of_rows([6]), EMPTY):
        scores = scorer.scores([history], [0.0])[0]
        assert scores.argsort(kind="stable")[::-1][:2].tolist() == [2, 1]
        assert scores[6] == 0


@pytest.mark.parametrize("at", range(4))
def test_a_batch_is_scored_like_its_histories_alone(at: int) -> None:
    histories = [History.of_rows([1, 2]), EMPTY, History.of_rows([3])]
    together = fitted(TRAIN, N)[at].scores(histories, [0.0] * 3)
    alone_scorer = fitted(TRAIN, N)[at]
    alone = np.concatenate([alone_scorer.scores([history], [0.0]) for history in histories])
    np.testing.assert_allclose(together, alone, rtol=1e-6)


@pytest.mark.parametrize("kind", [Popular, Transitions, ItemKnn])
def test_nothing_to_learn_from_is_refused(kind: type[Popular]) -> None:
    with pytest.raises(InvalidInput, match="no training event"):
        kind(Histories.from_rows([[], []]), N)


@pytest.mark.data
@pytest.mark.parametrize(
    ("layout", "events", "least"),
    [
        ("sasrec-txt", "ml-1m/sasrec_ml-1m.txt.gz", {"popular": 0.017, "transitions": 0.152, "item-knn": 0.095}),
        ("s3rec", "amazon-beauty-2014/Beauty.txt", {"popular": 0.005, "transitions": 0.052, "item-knn": 0.043}),
    ],
)
def test_baselines_are_no_straw_men(
    shared_data: Callable[[str], Path], layout: str, events: str, least: dict[str, float]
) -> None:
    log = read_log(layout, shared_data(events))
    catalog = catalog_from_log(log)
    split = leave_one_out(Histories.from_log(log, catalog, ()))
    for scorer in fitted(split.train, len(catalog))[1:]:
        report = evaluate(scorer, split.test, n_items=len(catalog), ks=(10,))
        assert report.measures["ndcg@10"].value > least[scorer.name]
