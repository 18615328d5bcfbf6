"""From bodies to rows: the details that the story of a request passes over."""

import time

import numpy as np
import pytest

from retrieval.filters import AttributeRule, Filter
from retrieval.sequences import EMPTY
from service.errors import InvalidRequest
from service.ladder import Call
from service.questions import Questions, filter_of, joined, request_of, rows_of
from service.schemas import FilterRequest, HistoryEvent, RankingRequest
from service.sessions import StoredEvent, open_store
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
        ["i01", "unheard of", HistoryEvent(item_id="i02", event_type="click"), StoredEvent("i03", "odd", 2.0, 5.0)],
        call,
    )
    assert history.rows.tolist() == [1, 2, 3]
    assert history.event_types.tolist() == [1, 2, 0]
    assert history.timestamps.tolist() == [NOW, NOW, 5.0]
    assert rows_of([], call) is EMPTY


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
