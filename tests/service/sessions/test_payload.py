"""An event as bytes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.sessions import StoredEvent
from service.sessions.payload import check_user_id, decode, encode

text = st.text(st.characters(exclude_categories=["Cs"]))
number = st.floats(allow_nan=False, allow_infinity=False)
json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | number | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
events = st.builds(
    StoredEvent, text, text, st.none() | number, number, st.none() | text, st.none() | text,
    st.none() | st.dictionaries(text, json, max_size=3),
)  # fmt: skip


@given(events)
def test_what_is_encoded_comes_back_on_one_line(event):
    payload = encode(event)
    assert b"\n" not in payload
    assert decode([event.timestamp], [event.event_id], [payload]) == [event]


@pytest.mark.parametrize("extra", [{}, {"value": 2.0}, {"context": {"a": None}}])
def test_a_history_comes_back_in_its_order_whatever_some_of_it_says_beyond_the_item(extra):
    plain = [StoredEvent(f"i{n}", "view", None, float(n), None if n % 2 else f"e{n}") for n in range(5)]
    history = [*plain, plain[0]._replace(**extra), *plain]
    decoded = decode(
        [event.timestamp for event in history],
        [event.event_id for event in history],
        [encode(event) for event in history],
    )
    assert decoded == history
    assert all(type(event) is StoredEvent for event in decoded)
    assert decode([], [], []) == []


def test_what_is_absent_takes_no_room():
    assert encode(StoredEvent("i1", "view", None, 0.0)) == b'["i1","view"]'
    assert encode(StoredEvent("i1", "view", 2.0, 0.0, "e1", "r1")) == b'["i1","view",2.0,"r1"]'


def test_a_refusal_names_the_field_and_the_value():
    with pytest.raises(InvalidRequest, match=r"timestamp: nan .* give seconds"):
        encode(StoredEvent("a", "view", None, math.nan))
    with pytest.raises(InvalidRequest, match=r"value: inf "):
        encode(StoredEvent("a", "view", math.inf, 0.0))
    with pytest.raises(InvalidRequest, match=r"user_id: '\\ud800'"):
        check_user_id("\ud800")
