"""What an id says of who answered, and what it does not."""

import re

import pytest

from service.attribution import new_id, variant_of

KNOWN = ("default", "next_one", "a-b")


@pytest.mark.parametrize("variant", KNOWN)
def test_an_id_carries_its_variant_and_goes_into_any_url(variant):
    made = new_id(variant)
    assert re.fullmatch(r"[A-Za-z0-9_.-]{16,}", made)
    assert variant_of(made, KNOWN) == variant


def test_no_id_comes_twice():
    assert len({new_id("default") for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize(
    "foreign",
    ["", ".", "default", ".default", "r1", "short.default", f"{'r' * 22}.gone", f"{'r' * 22}.defaultx", "." * 256],
)
def test_an_id_of_somebody_else_or_of_a_variant_that_is_gone_has_none(foreign):
    assert variant_of(foreign, KNOWN) is None
