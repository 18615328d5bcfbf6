"""Columns in natural types: numbers where every value is one, and never at the price of a leading zero."""

import polars as pl
import pytest

from models import columns


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["1", "-20", ""], [1, -20, None]),
        (["1", "2.50", "1e3"], [1.0, 2.5, 1000.0]),
        (["02460", "10115"], ["02460", "10115"]),
        (["1", "x"], ["1", "x"]),
        (["", None], [None, None]),
        (["1234567890123456789012"], [1234567890123456789012.0]),
        (["-0"], [-0.0]),
        (["nan"], ["nan"]),
    ],
)
def test_natural(given, wanted):
    found = columns.natural(pl.Series("n", given, dtype=pl.String))
    assert found.to_list() == wanted
    assert type(found.to_list()[0]) is type(wanted[0])


def test_natural_looks_at_every_value():
    given = ["1"] * 500 + ["x"]
    assert columns.natural(pl.Series(given)).dtype == pl.String


def test_tags():
    assert columns.tags(pl.Series(["a|b", " a b |", "", None])).to_list() == [["a", "b"], ["a b"], [], []]
    assert columns.tags(pl.Series([["a", " "], None, [1]], dtype=pl.List(pl.String), strict=False)).to_list()[:2] == [
        ["a"],
        [],
    ]
