import pytest

from service import metrics
from service.budgets import DAY_S, TOLD_AT_ONCE, Budgets
from service.errors import BudgetExhausted, StoreUnavailable
from service.keys import Key

pytestmark = pytest.mark.anyio

NOON = 20_000 * DAY_S + DAY_S / 2


class Clock:
    """Seconds since 1970 that only a test moves."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


class Store:
    """Counts exactly, as stores without a server do."""

    def __init__(self) -> None:
        self.sets: dict[str, set[bytes]] = {}
        self.is_away = False
        self.calls = 0

    async def count_distinct(self, name, members, *, ttl_s):
        self.calls += 1
        assert len(members) <= TOLD_AT_ONCE
        assert DAY_S / 2 < ttl_s < 2 * DAY_S
        if self.is_away:
            raise StoreUnavailable("count_distinct", "it is away")
        self.sets.setdefault(name, set()).update(members)
        return len(self.sets[name])


def key(name: str = "shop", budget: int | None = None) -> Key:
    return Key(name, frozenset({"read"}), b"", None, budget)


def passed(budgets: Budgets, of: Key, sequences: range) -> int:
    """How many of these sequences are answered."""
    count = 0
    for number in sequences:
        try:
            budgets.spend(of, str(number).encode())
        except BudgetExhausted:
            continue
        count += 1
    return count


async def test_only_new_sequences_cost_and_repeats_stay_free_beyond_the_end():
    budgets = Budgets(5, now=Clock())
    for _ in range(3):
        assert passed(budgets, key(), range(5)) == 5
    assert passed(budgets, key(), range(3, 9)) == 2
    budgets.spend(key(), b"")  # no history: the popular items


async def test_each_key_has_a_budget_of_its_own():
    budgets = Budgets(2, now=Clock())
    assert passed(budgets, key("a"), range(9)) == 2
    assert passed(budgets, key("b"), range(9)) == 2
    assert passed(budgets, key("c", 4), range(9)) == 4
    assert passed(budgets, key("d", 0), range(9)) == 9


async def test_a_new_day_is_a_new_budget_and_that_is_when_to_come_back():
    clock = Clock()
    budgets = Budgets(1, now=clock)
    budgets.spend(key(), b"1")
    with pytest.raises(BudgetExhausted) as refused:
        budgets.spend(key(), b"2")
    clock.now += refused.value.after_s - 1
    with pytest.raises(BudgetExhausted):
        budgets.spend(key(), b"2")
    clock.now += 1
    budgets.spend(key(), b"2")


async def test_one_budget_among_all_processes():
    store, clock = Store(), Clock()
    here, there = Budgets(10, now=clock), Budgets(10, now=clock)
    assert passed(here, key(), range(6)) == 6
    assert passed(there, key(), range(3, 7)) == 4
    await here.share(store)
    await there.share(store)
    assert passed(there, key(), range(20, 40)) == 3  # 7 are known to all
    await there.share(store)
    await here.share(store)
    assert passed(here, key(), range(40, 60)) == 0
    assert passed(here, key(), range(6)) == 6


async def test_much_that_is_new_is_told_in_parts():
    store = Store()
    budgets = Budgets(10_000, now=Clock())
    passed(budgets, key(), range(2 * TOLD_AT_ONCE))
    await budgets.share(store)
    assert [len(members) for members in store.sets.values()] == [2 * TOLD_AT_ONCE]
    assert store.calls == 2


async def test_a_restart_does_not_give_a_budget_back():
    store, clock = Store(), Clock()
    before = Budgets(5, now=clock)
    passed(before, key(), range(4))
    await before.share(store)
    after = Budgets(5, now=clock)
    assert passed(after, key(), range(10, 11)) == 1
    await after.share(store)
    assert passed(after, key(), range(20, 30)) == 0


async def test_gone_store_leaves_each_process_with_its_own_count_and_hears_it_all_later():
    store, clock = Store(), Clock()
    budgets = Budgets(5, now=clock)
    passed(budgets, key(), range(3))
    store.is_away = True
    with pytest.raises(StoreUnavailable):
        await budgets.share(store)
    assert passed(budgets, key(), range(9)) == 5
    store.is_away = False
    await budgets.share(store)
    assert [len(members) for members in store.sets.values()] == [5]


async def test_what_is_used_is_shown_and_said_once_before_the_end(caplog):
    budgets = Budgets(10, now=Clock())
    passed(budgets, key("near"), range(7))
    await budgets.share(None)
    assert metrics.REGISTRY.get_sample_value("sequitur_budget_used_ratio", {"key": "near"}) == 0.7
    assert caplog.text == ""
    passed(budgets, key("near"), range(20))
    await budgets.share(None)
    await budgets.share(None)
    assert metrics.REGISTRY.get_sample_value("sequitur_budget_used_ratio", {"key": "near"}) == 1.0
    assert caplog.text.count("API key 'near' has used 100 % of its query budget") == 1
    labels = {"key": "near", "limit": "budget"}
    assert metrics.REGISTRY.get_sample_value("sequitur_limited_total", labels) == 10


async def test_nobody_pays_where_there_is_no_budget():
    store = Store()
    budgets = Budgets(0, now=Clock())
    assert passed(budgets, key(), range(1_000)) == 1_000
    await budgets.share(store)
    assert store.calls == 0
