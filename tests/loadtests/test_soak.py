"""Requests are set against swaps by when they were due; and a short soak of a real service."""

import json
import os

import pytest

from loadtests import __main__ as commands
from loadtests import objectives, soak


def test_latencies_are_split_by_the_spans_of_swaps():
    moments = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    latencies = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert soak.split(moments, latencies, [(1.5, 3.0), (4.0, 4.5)]) == ([0.0, 0.1], [0.3, 0.5, 0.6], [0.2, 0.4])
    assert soak.split(moments, latencies, []) == (latencies, [], [])


def test_traffic_is_mixed_and_the_same_but_for_who_asks():
    ids = [f"i{n}" for n in range(50)]
    made, told = soak.requests(ids, {"authorization": "Bearer x"}, seed=1, count=2_000, k=5)
    calls = [raw.split(b" ")[:2] for raw in made]
    events = sum(path == b"/v1/events" for _, path in calls)
    assert 0.35 < events / len(made) < 0.6
    assert len(told) == events
    assert sum(path == b"/v1/recommendations" for _, path in calls) > 600
    assert {path.split(b"/")[-1].split(b"?")[0] for method, path in calls if method == b"GET"} == {
        b"recommendations",
        b"similar",
        b"history",
    }
    assert all(b"authorization: Bearer x" in raw for raw in made)


def test_memory_of_a_process_is_read():
    assert soak.resident_mb(os.getpid()) > 10


@pytest.mark.slow
@pytest.mark.redis
def test_a_short_soak(toy_bundle, capsys):
    affinity = os.sched_getaffinity(0)
    few = ["--requests", "3000", "--first", "1000", "--swaps", "3", "--swap-every", "0.5", "--rate", "50", "--k", "3"]
    try:
        commands.main(["soak", "--bundle", str(toy_bundle), *few])  # 3,000 requests say nothing of growth
    finally:
        os.sched_setaffinity(0, affinity)
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert results["errors"] == 0
    assert set(results["memory_mb"]) == {"start", "first", "after_swaps", "after_requests"}
    # The name of a figure is the end of its path: what counts swaps must not judge megabytes as well.
    assert objectives.judge(results, ["swaps==5", f"requests=={results['requests']}"]) == 0
