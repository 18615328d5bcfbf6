"""Cases are made from a seed and a number, and one thing in them is spoilt."""

import random

import pytest

from loadtests import cases
from loadtests.cases import Ground
from loadtests.fuzz import FAMILIES

GROUND = Ground([f"i{n:02d}" for n in range(1, 21)], headers={"authorization": "Bearer key"})


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_makes_the_same_case_from_the_same_numbers(name):
    made = FAMILIES[name][0]
    for number in range(25):
        case = made(random.Random(number), GROUND)
        assert case == made(random.Random(number), GROUND)
        assert case.family == name
        assert case.parts
        assert all(case.parts)


def test_all_families_come_and_each_case_can_be_made_alone():
    made = cases.cases(FAMILIES, GROUND, seed=3, count=2_000)
    again = cases.cases(FAMILIES, GROUND, seed=3, count=2_000)
    assert {make().family for make in made} == set(FAMILIES)
    assert again[1_234]() == made[1_234]()
    assert cases.cases(FAMILIES, GROUND, seed=4, count=2_000)[1_234]() != made[1_234]()


def test_one_value_of_a_body_is_replaced_wherever_it_is():
    body = {"a": [1, {"b": 2}], "c": 3}
    assert set(cases.places(body)) == {(), ("a",), ("a", 0), ("a", 1), ("a", 1, "b"), ("c",)}
    assert cases.replaced(body, ("a", 1, "b"), None) == {"a": [1, {"b": None}], "c": 3}
    assert cases.replaced(body, (), 0) == 0
    assert body == {"a": [1, {"b": 2}], "c": 3}
