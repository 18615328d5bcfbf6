"""Servers beside each other: started, compared, stopped; and refused where they do not do the same."""

import asyncio
import os
import sys

import pytest

from loadtests import rivals
from loadtests.target import LoadError

ENVIRONMENT = {"PATH": os.environ["PATH"]}


def test_a_server_that_ends_is_said_with_what_it_said():
    command = [sys.executable, "-c", "print('no such bundle'); raise SystemExit(3)"]
    with pytest.raises(LoadError, match=r"ended with 3.*no such bundle"), rivals.started(command, ENVIRONMENT):
        pytest.fail("it never was ready")


def test_a_server_is_stopped_at_the_end_of_the_block():
    code = "import time; print('ready on http://127.0.0.1:9', __import__('os').getpid(), flush=True); time.sleep(60)"
    with rivals.started([sys.executable, "-c", code], ENVIRONMENT) as url:
        assert url == "http://127.0.0.1:9"


def measured(service, plain):
    return asyncio.run(
        rivals._measured({"service": service.url, "plain": plain.url}, {"history": ["f1"], "k": 3}, rounds=2, calls=4)
    )


def test_the_ratio_is_stated(fake_service):
    figures, said = measured(fake_service(5), fake_service(5))
    ratio = figures["HTTP, service / plain endpoint"]
    assert ratio["latency_ratio"]["low"] <= ratio["latency_ratio"]["median"] <= ratio["latency_ratio"]["high"]
    assert figures["HTTP, plain endpoint, 16 callers"]["per_s"]["median"] > 0
    assert "times as long as the plain endpoint" in said[0]


def test_rivals_that_disagree_are_not_compared(fake_service):
    other = fake_service(5)
    other.item_ids.reverse()
    with pytest.raises(LoadError, match="disagree"):
        measured(fake_service(5), other)


def test_a_rival_that_fails_ends_the_comparison(fake_service):
    other = fake_service(5)
    other.recommend = lambda _body: (500, {"code": "internal"})
    with pytest.raises(LoadError, match="plain answers 500"):
        measured(fake_service(5), other)


def test_a_core_each_is_needed():
    allowed = sorted(os.sched_getaffinity(0))
    for said in ("0", "0,x", f"{allowed[-1]},{allowed[-1] + 1}"):
        with pytest.raises(LoadError, match="a core each"):
            rivals.two_cores(said)
