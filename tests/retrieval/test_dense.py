"""Dense retrieval and likeness: what is encoded, what is grouped, what is ranked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import toy

from retrieval.dense import Dense, Similar
from retrieval.encoder import MeanEncoder
from retrieval.errors import EmptyHistory
from retrieval.filters import NO_FILTER, Eligible, Filters
from retrieval.index import ExactIndex
from retrieval.inputs import Request
from retrieval.recommenders import Composed, Popular, Query
from retrieval.sequences import FloatArray, History

NONE = np.zeros(0, np.int64)


def query(history: Sequence[int], k: int, eligible: Eligible, exclude: Sequence[int] = ()) -> Query:
    return Query(Request(History.of_rows(history)), k, eligible, np.array(exclude, np.int64))


@pytest.fixture
def anything() -> Eligible:
    return Filters(toy.catalog()).eligible(NO_FILTER)


class Watched:
    """An exact index that remembers how it was asked."""

    name = "watched"

    def __init__(self, vectors: FloatArray) -> None:
        self.index = ExactIndex(vectors)
        self.sizes: list[int] = []

    def search(self, queries, k, eligible, exclude, _ahead=None):
        self.sizes.append(len(queries))
        return self.index.search(queries, k, eligible, exclude)


def test_a_batch_is_encoded_once_and_searched_once_per_selection(anything: Eligible) -> None:
    encoder, index, stages = MeanEncoder(toy.vectors()), Watched(toy.vectors()), []

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        stages.append(name)
        yield

    other = Eligible.of(anything.mask.copy())
    batch = [query([n + 1], 3, other if n == 2 else anything) for n in range(5)]
    answers = Dense(encoder, index).recommend(batch, stage)
    assert stages == ["encode", "retrieve"]
    assert sorted(index.sizes) == [1, 4]
    assert [int(answer.rows[0]) for answer in answers] == [1, 2, 3, 4, 5]


def test_dense_alone_refuses_an_empty_history(anything: Eligible) -> None:
    dense = Dense(MeanEncoder(toy.vectors()), ExactIndex(toy.vectors()))
    with pytest.raises(EmptyHistory, match="popular items"):
        dense.recommend([query([1], 3, anything), query([], 3, anything)])


class Sick:
    """Encodes item 7 to NaN, everything else well."""

    def encode(self, requests: Sequence[Request]) -> FloatArray:
        encoded = MeanEncoder(toy.vectors()).encode(requests)
        encoded[[7 in r.history.rows for r in requests]] = np.nan
        return encoded


def test_an_embedding_of_nan_retrieves_nothing_and_harms_nobody_else(anything: Eligible) -> None:
    dense = Dense(Sick(), ExactIndex(toy.vectors()))
    well, sick, also_well = dense.recommend([query([n], 3, anything, [n]) for n in (3, 7, 9)])
    assert (len(well), len(sick), len(also_well)) == (3, 0, 3)
    (filled,) = Composed(dense, Popular(toy.catalog())).recommend([query([7], 3, anything, [7])])
    assert filled.sources == ("popular",) * 3
    assert filled.rows.tolist() == [1, 2, 3]


def test_a_rank_is_the_inner_product_that_retrieval_would_have_given(anything: Eligible) -> None:
    dense = Dense(MeanEncoder(toy.vectors()), ExactIndex(toy.vectors()))
    requests = [Request(History.of_rows([3, 4])), Request(History.of_rows([9]))]
    (first, second) = dense.recommend([Query(request, 19, anything, NONE) for request in requests])
    scores = dense.rank(requests, [first.rows, np.append(second.rows[::-1], second.rows[0])])
    assert scores[0].tolist() == first.scores.tolist()
    assert scores[1].tolist() == [*second.scores[::-1].tolist(), float(second.scores[0])]
    assert dense.rank([], []) == []


def test_items_without_a_vector_rank_last() -> None:
    vectors = toy.vectors()
    vectors[4] = 0
    (scores,) = Dense(MeanEncoder(vectors), ExactIndex(vectors)).rank(
        [Request(History.of_rows([3]))], [np.array([4, 0, 13])]
    )
    assert np.isneginf(scores).tolist() == [True, True, False]


def test_items_that_the_encoder_never_met_are_left_out_of_histories(anything: Eligible) -> None:
    dense = Dense(MeanEncoder(toy.vectors()), ExactIndex(toy.vectors()), trained=10)
    assert not dense.reads(Request(History.of_rows([11, 12])))
    with_them, without = dense.recommend([query([3, 11, 4, 12], 3, anything), query([3, 4], 3, anything)])
    assert with_them.rows.tolist() == without.rows.tolist()
    with pytest.raises(EmptyHistory):
        dense.recommend([query([11], 3, anything)])


def test_similar_items_point_the_same_way_and_never_are_the_item_itself(anything: Eligible) -> None:
    vectors = toy.vectors()
    answer = Similar(vectors).similar(5, 6, anything, np.array([4]))
    cosine = vectors @ vectors[5] / (np.linalg.norm(vectors, axis=1).clip(1e-9) * np.linalg.norm(vectors[5]))
    want = [row for row in np.argsort(-cosine) if row not in (0, 4, 5, 20)][:6]
    assert sorted(answer.rows.tolist()) == sorted(want)
    np.testing.assert_allclose(answer.scores, cosine[answer.rows], rtol=1e-5)
    assert answer.sources == ("similar",) * 6


def test_similarity_is_not_a_matter_of_length(anything: Eligible) -> None:
    vectors = toy.vectors()
    vectors[12] *= 1000
    assert Similar(vectors).similar(5, 2, anything, NONE).rows.tolist() == [6, 4]


def test_an_item_without_a_vector_has_similar_items_all_the_same(anything: Eligible) -> None:
    vectors = toy.vectors()
    vectors[5] = 0
    answer = Similar(vectors).similar(5, 3, anything, NONE)
    assert answer.rows.tolist() == [1, 2, 3]
    assert np.isfinite(answer.scores).all()
