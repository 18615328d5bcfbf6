"""Readers are the same for the same seed, skewed, and come back."""

from collections import Counter, defaultdict
from itertools import islice, pairwise

import numpy as np
import pytest

from loadtests.traffic import Habits, PowerLaw, Readers, arrivals, click_position, visit_length

IDS = [f"i{n}" for n in range(200)]


def steps(seed, count=400, **habits):
    return list(islice(Readers(IDS, seed=seed, habits=Habits(**habits)).steps(4.0), count))


def test_the_same_seed_gives_the_same_requests():
    assert steps(1) == steps(1)
    assert steps(1) != steps(2)


def test_a_power_law_is_the_one_it_says():
    drawn = PowerLaw(4, 1.0).draw(np.random.default_rng(0), 24_000)
    # 1 + 1/2 + 1/3 + 1/4 = 25/12, so of 25 draws 12, 6, 4 and 3 fall on the four ranks
    assert np.bincount(drawn) / 24_000 == pytest.approx([0.48, 0.24, 0.16, 0.12], abs=0.01)


def test_an_empty_power_law_is_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        PowerLaw(0, 1.0)


def test_few_items_get_most_clicks():
    clicks = Counter(item for past in Readers(IDS, seed=3).pasts.values() for item in past)
    top = sum(count for _, count in clicks.most_common(20))
    assert top > 0.5 * clicks.total()
    assert clicks["i0"] > 5 * clicks["i100"]


def test_users_return_and_newcomers_come():
    visits = list(islice(Readers(IDS, seed=4, habits=Habits(newcomer_share=0.25, users=50)).visits(), 400))
    seen = Counter(visit.user_id for visit in visits)
    newcomers = [user for user in seen if "-new-" in user]
    assert len(newcomers) == pytest.approx(100, abs=30)
    assert all(seen[user] == 1 for user in newcomers)
    assert seen.most_common(1)[0][1] >= 10


def test_most_visits_are_short_and_none_is_endless():
    lengths = [len(visit.clicks) for visit in islice(Readers(IDS, seed=5).visits(), 500)]
    assert np.median(lengths) <= 3
    assert max(lengths) > 10
    assert 1 <= min(lengths) <= max(lengths) <= Habits().longest_visit


def test_everybody_asks_before_each_click_and_after_the_last():
    by_user = defaultdict(list)
    for step in steps(6, newcomer_share=1.0):
        by_user[step.user_id].append(step)
    assert len(by_user) > 5
    for own in by_user.values():
        assert own[0].item_id is None
        assert own[0].history == ()
        for before, after in pairwise(own):
            assert (before.item_id is None) != (after.item_id is None)
            grown = (after.item_id,) if after.item_id else ()
            assert after.history == before.history + grown


def test_a_history_holds_the_past_of_who_returns():
    readers = Readers(IDS, seed=7, habits=Habits(newcomer_share=0.0))
    pasts = readers.pasts
    first = next(readers.steps(1.0))
    assert list(first.history) == pasts[first.user_id]
    assert len(first.history) <= Habits().longest_past


def test_arrivals_are_a_poisson_process():
    times = arrivals(100.0, 60.0, seed=1)
    assert len(times) == pytest.approx(6000, abs=4 * 6000**0.5)
    assert 0 <= times[0] <= times[-1] < 60
    gaps = np.diff(times)
    assert gaps.min() >= 0
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as of an exponential distribution
    assert np.array_equal(times, arrivals(100.0, 60.0, seed=1))


def test_the_first_of_a_list_is_clicked_most():
    rng = np.random.default_rng(8)
    clicks = Counter(click_position(5, rng) for _ in range(500))
    assert set(clicks) <= set(range(5))
    assert clicks[0] > clicks[2] > 0
    assert click_position(1, rng) == 0


def test_a_visit_has_a_length():
    rng = np.random.default_rng(9)
    assert {visit_length(rng, Habits(longest_visit=3)) for _ in range(100)} == {1, 2, 3}
