"""The benchmark measures a real load in a process of its own and ends with one JSON document."""

import json

import pytest

from models import loading_bench


@pytest.mark.parametrize("layout", ["csv", "parquet"])
def test_last_line_is_json(capfd, layout):
    loading_bench.main(["--rows", "2000", "--layout", layout])
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert found["rows"] == 2000
    assert found["rows_per_s"] > 0
    assert found["peak_memory_bytes"] > 10 << 20


def test_the_log_is_seeded():
    first, second, other = (loading_bench.synthetic_events(50, seed=seed) for seed in (1, 1, 2))
    assert first.equals(second)
    assert not first.equals(other)
