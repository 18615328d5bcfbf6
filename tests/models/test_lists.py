"""Lists with labels: what training reads is, byte for byte, what serving would build."""

from collections.abc import Sequence

import numpy as np
import pytest
import toy
import toy_ranker

from models import lists
from models.lists import Arrays, Lists
from retrieval.features import ARRAYS, Category, FeatureSet, FeatureTables, Number, build
from retrieval.inputs import Request
from retrieval.sequences import History
from retrieval.tasks import Task

CITIES = ("here", "there")


@pytest.fixture
def tables() -> FeatureTables:
    """Features of every kind over the toy's catalog."""
    features = FeatureSet(
        tasks=(Task("click", event_type=2), Task("like", op=">=", value=4.0)),
        candidate_codes=(Category("id", toy.N), Category("attribute:categories", 3, 1, 2)),
        candidate_numbers=(Number("retrieval:score"), Number("attribute:price"), Number("similarity:max")),
        request_codes=(Category("context:city", 2, words=CITIES),),
        request_numbers=(Number("length"), Number("hour")),
        event_fields=(0, 1),
        behaviours=("all", "like"),
        windows=(6, 3),
    )
    return FeatureTables.of(features, toy_ranker.statistics(), toy.catalog(), toy.vectors())


def made(lengths: Sequence[int], *, seed: int = 0) -> Lists:
    """Lists of these lengths; histories of 0 to 8 events."""
    rng = np.random.default_rng(seed)
    n, requests = sum(lengths), []
    for r in range(len(lengths)):
        events = (r * 3) % 9
        history = History(
            rng.integers(1, toy.N + 1, events),
            rng.integers(0, 4, events),
            rng.integers(1, 6, events).astype(np.float32),
            np.arange(events, dtype=np.float64),
        )
        requests.append(Request(history, 3600.0 * r, words={"city": CITIES[r % 2]}))
    return Lists(
        tasks=("click", "like"),
        requests=requests,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rows=np.concatenate([np.zeros(0, np.int64), *(rng.permutation(toy.N)[:m] + 1 for m in lengths)]),
        scores=rng.normal(size=n).astype(np.float32),
        labels=rng.choice([0.0, 1.0, np.nan], (n, 2)).astype(np.float32),
        positions=np.concatenate([np.zeros(0, np.int64), *(np.arange(1, m + 1) for m in lengths)]),
        users=np.arange(len(lengths)),
    )


def test_arrays_are_what_serving_builds_to_the_last_byte(
    tables: FeatureTables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "BATCH", 3)  # batches of several widths
    one = made([4, 0, 2, 7, 1, 5, 3, 6])
    arrays = Arrays.of(tables, one)
    assert len(arrays) == len(one) == 8
    for which in (np.arange(8), np.array([5, 2]), np.array([1, 0])):
        served, learnt = build(tables, one.candidates(which.tolist())), arrays.batch(which)
        assert list(learnt) == list(ARRAYS)
        for name in ARRAYS:
            width = served[name].shape[1]
            own = learnt[name][:, :width] if name.startswith("candidate") else learnt[name]
            assert own.dtype == served[name].dtype
            assert own.tobytes() == served[name].tobytes(), (name, which)
            # Beyond the batch's longest list there is what `build` gives for no item.
            rest = learnt[name][:, width:] if name.startswith("candidate") else learnt[name][:0]
            assert np.isnan(rest).all() if rest.dtype == np.float32 else not rest.any()


def test_labels_and_positions_stand_where_their_candidates_do(tables: FeatureTables) -> None:
    one = made([2, 0, 3])
    arrays = Arrays.of(tables, one, ["candidate_codes"])
    assert arrays.labels.shape == (3, 3, 2)
    for r in range(3):
        span, n = one.span(r), one.span(r).stop - one.span(r).start
        assert arrays.labels[r, :n].tobytes() == one.labels[span].tobytes()
        assert np.isnan(arrays.labels[r, n:]).all()
        assert arrays.positions[r].tolist() == [*one.positions[span].tolist(), *[0] * (3 - n)]


def test_batch_leaves_out_columns_of_events_that_are_all_padding(tables: FeatureTables) -> None:
    arrays = Arrays.of(tables, made([2] * 6))
    lengths = (arrays.feeds["event_behaviours"] > 0).sum(axis=1)
    assert lengths[0] == 0
    for which in ([0], [1], [0, 1], [2, 1], [0, 3, 4]):
        batch = arrays.batch(np.array(which))
        longest = max(1, int(lengths[which].max()))
        assert batch["event_behaviours"].shape == (len(which), longest)
        assert batch["event_codes"].shape[:2] == (len(which), longest)
        assert ((batch["event_behaviours"] > 0).sum(axis=1) == lengths[which]).all()
        assert all(feed.dtype in (np.int64, np.float32) for feed in batch.values())


def test_codes_are_kept_in_half_the_memory(tables: FeatureTables) -> None:
    arrays = Arrays.of(tables, made([3, 2]))
    assert {feed.dtype.name for feed in arrays.feeds.values()} == {"int32", "float32"}


def test_empty_lists_have_arrays_too(tables: FeatureTables) -> None:
    none = Arrays.of(tables, made([]))
    assert len(none) == 0
    assert none.labels.shape == (0, 0, 2)
    assert {name: len(feed) for name, feed in none.batch(np.zeros(0, np.int64)).items()} == dict.fromkeys(ARRAYS, 0)
    bare = Arrays.of(tables, made([0, 0]))
    assert bare.labels.shape == (2, 0, 2)
    assert bare.batch(np.arange(2))["candidate_codes"].shape[:2] == (2, 0)


def test_take_keeps_whole_lists_in_the_order_that_is_asked_for() -> None:
    one = made([2, 0, 3, 1])
    some = one.take(np.array([3, 0, 1]))
    assert some.offsets.tolist() == [0, 1, 3, 3]
    assert some.rows.tolist() == [*one.rows[5:6].tolist(), *one.rows[:2].tolist()]
    assert some.labels.tobytes() == np.concatenate([one.labels[5:6], one.labels[:2]]).tobytes()
    assert some.users.tolist() == [3, 0, 1]
    assert [request.time for request in some.requests] == [3 * 3600.0, 0.0, 3600.0]
    assert [c.rows.tolist() for c in some.candidates([1])] == [one.rows[:2].tolist()]
    nothing = one.take(np.zeros(0, np.int64))
    assert (len(nothing), nothing.offsets.tolist(), len(nothing.rows)) == (0, [0], 0)
