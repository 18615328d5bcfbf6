"""Rules are values, and one that cannot be carried out is refused where it is made."""

from collections.abc import Callable

import pytest

from retrieval.errors import InvalidRule
from retrieval.filters import AttributeRule
from retrieval.rules import NO_RULES, Cap, Freshness, Pin, Promotion, Rules


def test_equal_rules_are_one_key():
    first = Rules(caps=(Cap(3),), pins=(Pin("a", 2),), promotion=Promotion(0.2, ("b",)), diversity=0.5)
    second = Rules(caps=(Cap(3),), pins=(Pin("a", 2),), promotion=Promotion(0.2, ("b",)), diversity=0.5)
    assert hash(first) == hash(second)
    assert first == second != NO_RULES


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Cap(0), "shows nothing"),
        (lambda: Pin("a", 0), "the first place is 1"),
        (lambda: Promotion(0.0, ("a",)), "above 0 and at most 1"),
        (lambda: Promotion(0.5), "say what is promoted"),
        (lambda: Freshness(0.0), "half_life_s 0.0"),
        (lambda: Freshness(60.0, weight=2.0), "weight 2.0"),
        (lambda: Rules(diversity=1.5), "between 0 and 1"),
        (lambda: Rules(pins=(Pin("a", 1), Pin("b", 1))), "position 1 is pinned twice"),
        (lambda: Rules(pins=(Pin("a", 1), Pin("a", 2))), "item_id 'a' is pinned twice"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_name(make: Callable[[], object], said: str):
    with pytest.raises(InvalidRule, match=said):
        make()


def test_a_promotion_may_name_items_by_attribute():
    assert Promotion(0.5, where=AttributeRule("price", "<=", 5)).item_ids == ()
