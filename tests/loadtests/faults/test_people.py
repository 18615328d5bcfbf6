"""Users: histories of their own, and requests that show them."""

from itertools import combinations

import pytest

from loadtests.faults.people import RECENT, People, owner
from loadtests.target import LoadError

ITEMS = [f"i{n:03}" for n in range(100)]


def people(count=50, items=ITEMS):
    return People(items, count=count, seed=3, prefix="p")


def handfuls(crowd):
    told = {}
    for step in crowd.pasts():
        told.setdefault(step.user_id, set()).add(step.item_id)
    return told


def test_nobodys_handful_holds_anybody_elses():
    told = handfuls(people())
    assert len(told) == 50
    assert all(not one <= other and not other <= one for one, other in combinations(told.values(), 2))


def test_a_small_catalog_has_histories_for_some_and_says_for_how_many():
    assert len(handfuls(people(20, ITEMS[:19]))) == 20
    with pytest.raises(LoadError, match="give 36 users"):
        people(50, ITEMS[:19])


def test_events_are_of_their_users_and_never_the_same():
    crowd = people()
    steps = [*crowd.pasts(), *crowd.steps(2_000)]
    events = [step for step in steps if step.item_id is not None]
    assert len({step.event_id for step in events}) == len(events)
    assert all(owner(step.event_id) == step.user_id for step in events)


def test_what_is_clicked_in_a_run_tells_nothing_of_anybody():
    crowd = people()
    clicked = {step.item_id for step in crowd.steps(1_000)} - {None}
    assert clicked.isdisjoint(crowd.pool)


def test_a_question_is_about_the_pool_and_the_latest_clicks():
    crowd = people(1)
    clicked = []
    for step in crowd.steps(60):
        if step.item_id is not None:
            clicked.append(step.item_id)
        else:
            assert step.among == {*crowd.pool, *clicked[-RECENT:]}
            assert step.body["k"] == len(step.among)
    assert 10 < len(clicked) < 40


def test_two_crowds_of_one_seed_do_the_same():
    assert list(people().steps(100)) == list(people().steps(100))
