import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from service import metrics


def test_a_p90_of_7_ms_can_be_read():
    for buckets in (metrics.REQUEST_BUCKETS, metrics.STAGE_BUCKETS):
        resolving = [edge for edge in buckets if 0.0005 <= edge <= 0.5]
        assert resolving[0] < 0.0008
        assert resolving[-1] >= 0.35
        assert all(after / before <= 1.51 for before, after in itertools.pairwise(resolving))


def test_names_follow_the_rules_of_prometheus():
    for family in metrics.REGISTRY.collect():
        if family.name.startswith("sequitur_"):
            assert family.documentation.endswith(".")
            assert not family.name.endswith(("_ms", "_milliseconds"))


def test_known_series_exist_before_they_are_counted():
    text = metrics.exposition().decode()
    for series in (
        'degraded_total{reason="deadline"}',
        'shed_total{reason="queue_full"}',
        'dispatch_total{reason="full"}',
    ):
        assert f"sequitur_{series}" in text


def test_increases_that_are_kept_are_counted_before_a_scrape():
    from prometheus_client import CollectorRegistry, Counter

    registry = CollectorRegistry()
    kept = metrics.KeptCount(Counter("kept", "Kept.", registry=registry))
    for _ in range(3):
        kept.inc()
    assert registry.get_sample_value("kept_total") == 0
    for _ in range(2):
        metrics.count_kept()
        assert registry.get_sample_value("kept_total") == 3


def test_no_other_file_makes_a_metric():
    for file in Path(metrics.__file__).parent.rglob("*.py"):
        if file.name == "metrics.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert not node.module.startswith("prometheus_client"), f"{file} imports {node.module}"


WORKER = """
from service import metrics
metrics.EVENTS.labels("accepted").inc(2)
metrics.IN_FLIGHT.set(3)
metrics.READY.set(1)
print(metrics.exposition().decode())
"""


@pytest.mark.parametrize("processes", [2])
def test_several_workers_add_up_and_a_dead_one_takes_its_gauges_along(tmp_path, processes):
    """Each process ends before the next one asks: its counters stay, what was in flight in it does not."""
    seen = ""
    for _ in range(processes):
        done = subprocess.run(
            [sys.executable, "-c", WORKER],
            env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(Path(metrics.__file__).parents[1])},
            capture_output=True,
            text=True,
            check=True,
        )
        seen = done.stdout
    assert 'sequitur_events_total{outcome="accepted"} 4.0' in seen
    assert "sequitur_in_flight 3.0" in seen
    assert "sequitur_ready 1.0" in seen


def test_observations_that_were_kept_are_counted_as_if_each_had_been_counted_at_once():
    from prometheus_client import CollectorRegistry, Histogram

    registry = CollectorRegistry()
    one, other = (
        Histogram(name, "For this test.", ["stage"], buckets=(0.1, 1.0, 5.0), registry=registry)
        for name in ("kept", "counted")
    )
    series = metrics.kept(one, ["encode"])["encode"]
    for amount in (0.0, 0.1, 0.10001, 1.0, 4.0, 5.0, 700.0, 0.5):
        series.observe(amount)
        other.labels("encode").observe(amount)
    assert registry.get_sample_value("kept_count", {"stage": "encode"}) == 0
    metrics.count_kept()
    metrics.count_kept()  # and not twice
    for bound in ("0.1", "1.0", "5.0", "+Inf"):
        labels = {"stage": "encode", "le": bound}
        want = registry.get_sample_value("counted_bucket", labels)
        assert registry.get_sample_value("kept_bucket", labels) == want
    assert registry.get_sample_value("kept_sum", {"stage": "encode"}) == pytest.approx(710.70001)


def test_a_gauge_that_is_watched_shows_what_there_is_when_it_is_looked_at():
    from prometheus_client import CollectorRegistry, Gauge

    class Queue(list):
        __hash__ = object.__hash__

    registry = CollectorRegistry()
    queue = Queue()
    metrics.watch(Gauge("depth", "For this test.", registry=registry), queue, len)
    for waiting in (0, 1, 2):
        metrics.count_kept()
        assert registry.get_sample_value("depth") == waiting
        queue.append("somebody")
