"""From bodies to rows: the details that the story of a request passes over."""

import time

import numpy as np
import pytest

from retrieval.filters import AttributeRule, Filter
from retrieval.sequences import EMPTY
from service.errors import InvalidRequest
from service.ladder import Call
from service.questions import Questions, filter_of, joined, request_of, rows_of, stored_rows
from service.schemas import FilterRequest, HistoryEvent, RankingRequest
from service.sessions import NO_EVENTS, Columns, open_store
from service.timing import Timings
from service.variants import Variant

pytestmark = pytest.mark.anyio
NOW = 1_700_000_000.0


@pytest.fixture
def call(served) -> Call:
    return Call(served, NOW, 1e9, 0.1, Timings(time.monotonic))


def questions(store=None) -> Questions:
    store = store or open_store("memory://")
    return Questions(store, deadline_s=0.1, store_timeout_s=0.04, clock=lambda: 7.0, now=lambda: NOW)


def asked(**fields) -> RankingRequest:
    return RankingRequest(candidates=["i01"], **fields)


def test_ids_and_events_of_both_kinds_become_rows_and_unknown_items_are_left_out(call):
    history = rows_of(
        [
            "i01",
            "unheard of",
            HistoryEvent(item_id="i02", event_type="click"),
            HistoryEvent(item_id="i03", event_type="odd", value=2.0, timestamp=5.0),
        ],
        call,
    )
    assert history.rows.tolist() == [1, 2, 3]
    assert history.event_types.tolist() == [1, 2, 0]
    assert history.timestamps.tolist() == [NOW, NOW, 5.0]
    assert rows_of([], call) is EMPTY


def test_ids_alone_become_what_events_without_more_become(call):
    given = ["i03", "unheard of", "i01"]
    alone, long = rows_of(given, call), rows_of([HistoryEvent(item_id=item_id) for item_id in given], call)
    for name in ("rows", "event_types", "values", "timestamps"):
        np.testing.assert_array_equal(getattr(alone, name), getattr(long, name))
        assert getattr(alone, name).dtype == getattr(long, name).dtype


def test_what_is_stored_becomes_what_the_same_events_of_a_body_become(call):
    columns = Columns(("i01", "unheard of", "i03"), ("click", "view", "odd"), (None, 1.0, 2.0), (3.0, 4.0, 5.0))
    events = [
        HistoryEvent(item_id=i, event_type=t, value=v, timestamp=at) for i, t, v, at in zip(*columns, strict=True)
    ]
    stored, given = stored_rows(columns, call), rows_of(events, call)
    for name in ("rows", "event_types", "values", "timestamps"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(given, name))
        assert getattr(stored, name).dtype == getattr(given, name).dtype
    assert stored_rows(NO_EVENTS, call) is EMPTY


def test_numbers_of_the_context_reach_the_model_and_words_do_not(call):
    context = {"hour": 3, "share": 0.5, "page": "home", "signed_in": True, "nothing": None}
    assert request_of(EMPTY, context, call).context == {"hour": 3.0, "share": 0.5}


def test_equal_filters_are_equal_whatever_ids_they_leave_out():
    given = {"include_ids": ["a"], "categories": {"any": ["x"], "none": ["y"]}, "new_only": True}
    rule = {"name": "price", "op": "<=", "value": 20}
    made = [
        filter_of(FilterRequest.model_validate({**given, "attributes": [rule], "exclude_ids": ids}))
        for ids in ([], ["b"])
    ]
    assert made[0] == made[1]
    assert made[0] == Filter(
        include_ids=("a",),
        any_categories=("x",),
        no_categories=("y",),
        attributes=(AttributeRule("price", "<=", 20),),
        new_only=True,
    )


def test_rows_of_several_lists_are_joined():
    assert joined([]).tolist() == []
    assert joined([np.array([1])]).tolist() == [1]
    assert joined([np.array([1]), np.array([2, 1])]).tolist() == [1, 2, 1]


def test_a_call_has_the_time_that_its_body_names_from_when_it_arrived(served):
    variant = Variant("other", served)
    own = questions().call(asked(deadline_ms=500), variant, arrived=3.0)
    assert (own.deadline, own.budget_s, own.now) == (3.5, 0.5, NOW)
    assert questions().call(asked(), variant, arrived=3.0).budget_s == 0.1
    assert (own.served, own.variant) == (served, "other")


def test_events_of_the_future_are_refused(served):
    with pytest.raises(InvalidRequest):
        questions().call(
            asked(history=[{"item_id": "i01", "timestamp": NOW + 1e6}]), Variant("default", served), arrived=0.0
        )


async def test_gone_store_leaves_an_empty_history_and_a_reason(call, away_store):
    assert await questions(away_store).remembered(asked(user_id="anna"), call) is EMPTY
    assert call.reasons == ["store_unavailable"]


async def test_without_consent_or_user_nothing_is_looked_up(call, away_store):
    for fields in ({"user_id": "anna", "consent": False}, {}):
        assert await questions(away_store).remembered(asked(**fields), call) is EMPTY
    assert call.reasons == []
