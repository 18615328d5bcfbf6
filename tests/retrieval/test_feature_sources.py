"""Every source of numbers against slow plain Python, on random catalogs and histories."""

import numpy as np
import pytest
from oracles_features import FEATURES, TASKS, TRAINED, candidates, of_candidate, of_request, transformed, world

from retrieval.features import Candidates, Number, build
from retrieval.inputs import Request
from retrieval.sequences import EMPTY, History

SOURCES = [number.source for number in FEATURES.candidate_numbers]
REQUEST_SOURCES = [number.source for number in FEATURES.request_numbers]


def column(made: np.ndarray, source: str) -> np.ndarray:
    return made[..., SOURCES.index(source)]


def close(got: float, expected: float) -> bool:
    return np.isclose(got, expected, rtol=2e-5, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("seed", range(6))
def test_every_number_of_every_candidate(seed: int) -> None:
    rng = np.random.default_rng(seed)
    of = world(rng)
    lists = [candidates(rng) for _ in range(16)]
    lists[3] = Candidates(lists[3].request, np.append(lists[3].rows, 0), np.append(lists[3].scores, np.float32(1)))
    made = build(of.tables(), lists, ["candidate_numbers"])["candidate_numbers"]
    present = np.zeros(len(SOURCES), int)
    for b, one in enumerate(lists):
        for place in range(len(one.rows)):
            for f, number in enumerate(FEATURES.candidate_numbers):
                expected = transformed(number, of_candidate(of, number.source, one, place))
                assert close(made[b, place, f], expected), (number.source, one.rows[place], b)
                present[f] += np.isfinite(made[b, place, f])
        assert np.isnan(made[b, len(one.rows) :]).all()
    assert (present > 20).all()  # a source that is always absent would be held to nothing


@pytest.mark.parametrize("seed", range(6))
def test_every_number_of_every_request(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lists = [candidates(rng) for _ in range(40)]
    made = build(world(rng).tables(), lists, ["request_numbers"])["request_numbers"]
    assert (made.dtype, made.shape) == (np.float32, (40, len(REQUEST_SOURCES)))
    for own, one in zip(made, lists, strict=True):
        for f, number in enumerate(FEATURES.request_numbers):
            expected = transformed(number, of_request(number.source, one.request))
            assert close(own[f], expected), (number.source, one.request.time)
    assert np.isfinite(made).sum(axis=0).min() > 5


class TestWithoutSomething:
    """Absence, source by source."""

    rng = np.random.default_rng(1)
    of = world(rng)
    rows = np.array([1, 2, 3, TRAINED + 2])
    scores = np.array([3, 2, 1, 0], np.float32)

    def numbers(self, request: Request, scores: np.ndarray | None = None) -> np.ndarray:
        one = Candidates(request, self.rows, self.scores if scores is None else scores)
        return build(self.of.tables(), [one], ["candidate_numbers"])["candidate_numbers"][0]

    def test_empty_history(self) -> None:
        made = self.numbers(Request(EMPTY, 1.7e9))
        for source in SOURCES:
            if source.split(":")[0] in ("similarity", "affinity", "closeness"):
                assert np.isnan(column(made, source)).all(), source
        assert (column(made, "transition:all") == 0).all()
        assert np.isfinite(column(made, "retrieval:share")).all()
        asked = build(self.of.tables(), [Candidates(Request(EMPTY, 1.7e9), self.rows, self.scores)])["request_numbers"]
        absent = dict(zip(REQUEST_SOURCES, np.isnan(asked[0]).tolist(), strict=True))
        assert [source for source, is_absent in absent.items() if is_absent] == [
            "recency",
            *(f"share:{task.name}" for task in TASKS),
            "context:mood",
        ]
        assert asked[0][REQUEST_SOURCES.index("length")] == -2.0  # log1p(0), shifted

    def test_one_event(self) -> None:
        made = self.numbers(Request(History.of_rows([2])))
        for kind in ("last", "max", "mean"):
            assert column(made, f"similarity:{kind}")[1] == pytest.approx(1.0, abs=1e-6)
        assert (column(made, "transition:all") == column(made, "transition:1")).all()
        assert (column(made, "transition:2") == 0).all()

    def test_an_item_without_vector_is_like_nothing(self) -> None:
        made = self.numbers(Request(History.of_rows([7, 7])))
        assert (column(made, "similarity:max") == 0).all()
        assert (column(made, "similarity:mean") == 0).all()

    def test_a_list_without_scores(self) -> None:
        made = self.numbers(Request(History.of_rows([2])), np.array([np.nan, -np.inf, np.inf, np.nan], np.float32))
        for part in ("score", "share", "rank"):
            assert np.isnan(column(made, f"retrieval:{part}")).all()

    def test_ranks_count_those_that_have_a_score(self) -> None:
        one = Candidates(Request(EMPTY), self.rows, np.array([5, np.nan, 5, -np.inf], np.float32))
        bare = self.of.tables(
            type(FEATURES)(FEATURES.tasks, candidate_numbers=(Number("retrieval:rank"), Number("retrieval:share")))
        )
        made = build(bare, [one], ["candidate_numbers"])["candidate_numbers"][0]
        np.testing.assert_array_equal(made[:, 0], [0, np.nan, 1, np.nan])
        np.testing.assert_allclose(made[:, 1], [np.log(0.5), np.nan, np.log(0.5), np.nan], rtol=1e-6)

    def test_rows_beyond_the_trained_ones_follow_nothing(self) -> None:
        made = self.numbers(Request(History.of_rows([TRAINED + 1, TRAINED + 4])))
        for source in SOURCES:
            if source.startswith("transition"):
                assert (column(made, source) == 0).all(), source

    def test_scores_of_any_size_have_a_softmax(self) -> None:
        made = self.numbers(Request(EMPTY), np.array([3e38, 1.0, -3e38, -3e38], np.float32))
        assert np.isfinite(column(made, "retrieval:share")).all()
        assert column(made, "retrieval:share")[0] == pytest.approx(1.0)  # log 1, shifted by -3 and scaled by 3
