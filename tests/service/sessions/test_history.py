"""The rules of a history where they are pure; the contract suite asks the stores for the rest."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.sessions.history import merge, newcomers


@dataclass(frozen=True)
class Dated:
    timestamp: float
    event_id: str | None = None
    name: str = ""


def never(_: str) -> bool:
    return False


def test_late_equal_and_duplicate_events():
    kept = [Dated(1, "a"), Dated(3, None, "first")]
    merged = merge(kept, [Dated(3, None, "second"), Dated(2), Dated(9, "a")], cap=9, was_trimmed=never)
    assert merged.outcomes == ("accepted", "accepted", "duplicate")
    assert merged.history == [Dated(1, "a"), Dated(2), Dated(3, None, "first"), Dated(3, None, "second")]
    assert merged.trimmed == []
    assert len(kept) == 2, "the history that came in is not changed"


def test_full_history_trims_from_the_old_end_and_says_what_left():
    merged = merge([Dated(1, "a"), Dated(2)], [Dated(0), Dated(3), Dated(4), Dated(5, "a")], cap=2, was_trimmed=never)
    assert merged.outcomes == ("too_old", "accepted", "accepted", "duplicate")
    assert merged.history == [Dated(3), Dated(4)]
    assert merged.trimmed == [Dated(1, "a"), Dated(2)]


def test_the_id_of_an_event_that_left_earlier_is_asked_for():
    merged = merge([], [Dated(1, "gone"), Dated(2, "new")], cap=2, was_trimmed="gone".__eq__)
    assert merged.outcomes == ("duplicate", "accepted")


@pytest.mark.parametrize("cap", [1, 2, 3])
def test_empty_appends_only_apply_the_cap(cap):
    kept = [Dated(1), Dated(2), Dated(3)]
    merged = merge(kept, [], cap=cap, was_trimmed=never)
    assert (merged.outcomes, merged.history, merged.trimmed) == ((), kept[-cap:], kept[:-cap])


def test_an_event_held_already_is_no_newcomer_as_often_as_it_is_held():
    held, other = Dated(1, None, "held"), Dated(1, None, "other")
    words = lambda event: (event.timestamp, event.name)  # noqa: E731
    assert newcomers([held, Dated(2)], [held, other, held, other], words=words) == [other, held, other]
    assert newcomers([], [held], words=words) == [held]


dated = st.builds(Dated, st.integers(0, 5).map(float), st.sampled_from([None, "a", "b", "c"]), st.text(max_size=1))


@given(st.lists(dated, max_size=9), st.lists(dated, max_size=9), st.integers(1, 5))
def test_nothing_is_lost_and_nothing_is_invented(first, second, cap):
    before = merge([], first, cap=cap, was_trimmed=never)
    after = merge(before.history, second, cap=cap, was_trimmed=never)
    assert len(after.outcomes) == len(second)
    assert len(after.history) <= cap
    assert [e.timestamp for e in after.history] == sorted(e.timestamp for e in after.history)
    accepted = [e for e, outcome in zip(second, after.outcomes, strict=True) if outcome == "accepted"]
    assert sorted(map(repr, after.history + after.trimmed)) == sorted(map(repr, before.history + accepted))
