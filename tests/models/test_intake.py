"""Batches keep rows, lines and counts together; values are shown short."""

from pathlib import Path

import numpy as np
import polars as pl

from models.intake import Batch, shown, utc


def test_rows_taken_out_are_counted_with_their_lines():
    batch = Batch(Path("x"), np.array([2, 3, 4, 5]), pl.DataFrame({"a": ["w", "x", None, "z"]}))
    batch = batch.drop(pl.Series([True, False, False, False]), "no time")
    batch = batch.reject(pl.Series([False, True, False]), "missing", "rule", batch.frame["a"])
    assert batch.lines.tolist() == [3, 5]
    assert batch.frame["a"].to_list() == ["x", "z"]
    assert batch.dropped == {"no time": 1}
    assert batch.faults[0].examples == ((4, "''"),)
    assert batch.rows_read == 4


def test_values_are_shown_short():
    assert shown("x") == "'x'"
    assert shown("x" * 300) == f"'{'x' * 80}'... (300 characters)"


def test_a_time_beyond_the_calendar_is_shown_as_a_number():
    assert utc(0.0) == "1970-01-01 00:00:00"
    assert utc(1.7e12) == "1700000000000 s"
