"""The nearest item of a history, against a loop that looks at every pair."""

import numpy as np
import pytest
import toy

from retrieval.queries import Answer
from retrieval.reasons import Reads, Reasons
from retrieval.recommenders import Served
from retrieval.sequences import EMPTY, PAD_ROW, FloatArray

FOUND, OTHER = "retrieval", "generated"
WINDOW = 4


def cosine(one: FloatArray, other: FloatArray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def by_hand(vectors: FloatArray, rows: list[int], history: list[int], known: set[int], window: int) -> list[int]:
    """The slow oracle: one pair at a time."""
    read = [row for row in history if row in known and vectors[row].any()][-window:]
    near = []
    for row in rows:
        likeness = [(cosine(vectors[row], vectors[past]), past) for past in read] if vectors[row].any() else []
        near.append(max(likeness, default=(0.0, PAD_ROW))[1])
    return near


def reasons_of(vectors: FloatArray, **reads: Reads) -> Reasons:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return Reasons((vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32), reads)


def answer_of(rows: list[int], *sources: str) -> Answer:
    return Answer(np.array(rows, dtype=np.int64), np.zeros(len(rows), np.float32), sources)


@pytest.mark.parametrize("seed", range(20))
def test_every_item_is_near_what_a_loop_over_all_pairs_says(seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(60, 8)).astype(np.float32)
    vectors[[0, 7, 30]] = 0  # two items of which nothing is known
    known, coded = random.random(60) < 0.8, random.random(60) < 0.6
    rows = random.permutation(np.arange(1, 60))[:20].tolist()
    sources = [random.choice([FOUND, OTHER, "popular"]) for _ in rows]
    history = random.integers(1, 60, size=30)
    said = reasons_of(vectors, **{FOUND: Reads(known, WINDOW), OTHER: Reads(coded, 9)}).nearest(
        answer_of(rows, *map(str, sources)), history
    )
    for source, mask, window in ((FOUND, known, WINDOW), (OTHER, coded, 9)):
        expected = by_hand(vectors, rows, history.tolist(), set(np.flatnonzero(mask).tolist()), window)
        at = [place for place, own in enumerate(sources) if own == source]
        assert said[at].tolist() == [expected[place] for place in at]
    assert not said[[place for place, own in enumerate(sources) if own == "popular"]].any()


@pytest.mark.parametrize("count", [0, 1, 7, 20, 30])
def test_the_first_of_a_list_are_near_what_they_are_in_the_whole_of_it(count: int) -> None:
    random = np.random.default_rng(3)
    vectors = random.normal(size=(60, 8)).astype(np.float32)
    reads = {FOUND: Reads(np.ones(60, bool), WINDOW), OTHER: Reads(np.arange(60) < 40, 9)}
    reasons, history = reasons_of(vectors, **reads), random.integers(1, 60, size=30)
    rows = random.permutation(np.arange(1, 60))[:20].tolist()
    for sources in ([FOUND] * 20, [FOUND] * 5 + [OTHER] * 10 + ["popular"] * 5, ["popular"] * 20):
        answer = answer_of(rows, *sources)
        whole = reasons.nearest(answer, history)
        assert reasons.nearest(answer, history, count=count).tolist() == whole[:count].tolist()


@pytest.mark.parametrize("history", [[], [PAD_ROW], [2]])
def test_empty_or_unknown_histories_give_no_reason(history: list[int]) -> None:
    known = np.array([False, True, False])
    reasons = reasons_of(np.eye(3, dtype=np.float32), **{FOUND: Reads(known, WINDOW)})
    assert reasons.nearest(answer_of([1, 2], FOUND, FOUND), np.array(history, dtype=np.int64)).tolist() == [0, 0]


def test_an_empty_answer_has_no_reasons(generating: Served) -> None:
    assert len(generating.reasons.nearest(answer_of([]), EMPTY.rows)) == 0


def test_nothing_is_named_that_lies_beyond_the_window(generating: Served) -> None:
    beyond = np.array([6, *[15] * toy.WINDOW])
    assert generating.reasons.nearest(answer_of([5], FOUND), beyond).tolist() == [15]
    assert generating.reasons.nearest(answer_of([5], FOUND), beyond[:-1]).tolist() == [6]
