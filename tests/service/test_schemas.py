import pytest
from pydantic import ValidationError

from service.errors import InvalidRequest
from service.schemas import (
    MAX_DEADLINE_MS,
    MAX_EVENTS,
    MAX_HISTORY,
    MAX_ID,
    MAX_K,
    Event,
    EventsRequest,
    RecommendationRequest,
    check_times,
)


def event(**fields):
    return Event.model_validate({"user_id": "u", "item_id": "i", **fields})


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (0, 0.0),
        (1.5, 1.5),
        ("1970-01-01T00:01:00Z", 60.0),
        ("1970-01-01T01:00:00+01:00", 0.0),
        ("1970-01-02", 86_400.0),
    ],
)
def test_times_are_seconds_or_iso_8601(given, seconds):
    assert event(timestamp=given).timestamp == seconds


@pytest.mark.parametrize(
    "given",
    [-1, float("nan"), float("inf"), 10**400, True, "yesterday", "", "9999999", [], "0001-01-01T00:00:00+14:00"],
)
def test_times_that_are_none_are_refused(given):
    with pytest.raises(ValidationError, match="time"):
        event(timestamp=given)


def test_milliseconds_are_found_out():
    events = [event(), event(timestamp=1000.0), event(timestamp=1_700_000_000_000)]
    with pytest.raises(InvalidRequest, match=r"events\[2\]\.timestamp: 1700000000000 is more than a day ahead"):
        check_times(events, 1_700_000_000.0, field="events")
    check_times(events[:2], 1_700_000_000.0, field="events")
    check_times(["an id"], 0.0, field="history")


@pytest.mark.parametrize("item_id", ["a,b", '"quoted"', "📚", "a/b?c#d", " ", "x" * MAX_ID, "a\x00b"])
def test_ids_are_any_text_up_to_the_limit(item_id):
    assert event(item_id=item_id).item_id == item_id


@pytest.mark.parametrize("item_id", ["", "x" * (MAX_ID + 1), 5, None])
def test_ids_that_are_none_are_refused(item_id):
    with pytest.raises(ValidationError, match="item_id"):
        event(item_id=item_id)


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), "4", True])
def test_values_are_finite_numbers(value):
    with pytest.raises(ValidationError, match="value"):
        event(value=value)


def test_a_context_is_small_and_flat():
    assert event(context={"page": "home", "n": 1, "x": 0.5, "ok": True, "none": None}).context["n"] == 1
    for context in (
        {"deep": {}},
        {str(n): n for n in range(33)},
        {"long": "x" * 257},
        {"x" * 65: 1},
        {"huge": 10**400},
    ):
        with pytest.raises(ValidationError, match="context"):
            event(context=context)


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"k": MAX_K + 1}, "500"),
        ({"k": 0}, "greater than or equal to 1"),
        ({"k": "5"}, "integer"),
        ({"k": True}, "integer"),
        ({"k": 2.5}, "integer"),
        ({"history": ["i"] * (MAX_HISTORY + 1)}, "1000"),
        ({"user_id": "x" * (MAX_ID + 1)}, "256"),
        ({"deadline_ms": 0}, "greater than 0"),
        ({"deadline_ms": MAX_DEADLINE_MS + 1}, "10000"),
        ({"diversity": 2}, "less than or equal to 1"),
        ({"fliter": {}}, "fliter"),
        ({"filter": {"attributes": [{"name": "price", "op": "~", "value": 1}]}}, "op"),
        ({"filter": {"attributes": [{"name": "price", "op": "<", "value": float("nan")}]}}, "finite"),
        ({"consent": "no"}, "boolean"),
    ],
)
def test_beyond_a_limit_the_limit_is_named(body, limit):
    with pytest.raises(ValidationError, match=limit):
        RecommendationRequest.model_validate(body)


def test_the_whole_body_of_the_contract_is_understood():
    asked = RecommendationRequest.model_validate(
        {
            "user_id": "u",
            "history": ["i1", {"item_id": "i2", "event_type": "click", "value": 1, "timestamp": 5}],
            "k": 500,
            "placement": {"name": "home", "goals": {"click": 1}, "caps": [{"most": 3}]},
            "context": {"hour": 12},
            "filter": {
                "exclude_ids": ["a"],
                "include_ids": [],
                "categories": {"any": [], "none": ["x"]},
                "attributes": [
                    {"name": "price", "op": "<=", "value": 20},
                    {"name": "l", "op": "in", "value": ["a", 1]},
                ],
            },
            "exclude_seen": False,
            "diversity": 0.3,
            "model": "default",
            "consent": True,
            "deadline_ms": 50,
            "explain": True,
        }
    )
    assert asked.history[1].timestamp == 5.0


def test_empty_and_too_many_events_are_refused():
    for count in (0, MAX_EVENTS + 1):
        with pytest.raises(ValidationError, match="events"):
            EventsRequest.model_validate({"events": [{"user_id": "u", "item_id": "i"}] * count})
