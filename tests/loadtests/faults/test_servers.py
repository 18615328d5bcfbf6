"""Processes of a run: started, signalled, ended, and no other."""

import os
import signal
import subprocess
import sys

import pytest

from loadtests.faults import servers
from loadtests.faults.servers import Child, Line, Missing, Redis
from loadtests.target import LoadError


def child(tmp_path, code, **options):
    return Child([sys.executable, "-c", code], tmp_path / "log", os.environ, **options)


def test_one_that_ends_early_is_said_with_what_it_said(tmp_path):
    process = child(tmp_path, "print('no such bundle'); raise SystemExit(3)")
    with pytest.raises(LoadError, match=r"(?s)ended with 3 before readiness.*no such bundle"):
        process.until(lambda: False, "readiness")


def test_one_that_does_not_get_there_is_said_too(tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "START_S", 0.1)
    process = child(tmp_path, "import time; time.sleep(60)")
    try:
        with pytest.raises(LoadError, match=r"no readiness within 0\.1 s"):
            process.until(lambda: False, "readiness")
    finally:
        process.end()
    assert not process.is_running


def test_one_that_does_not_end_is_killed_even_when_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "END_S", 0.1)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    process = child(tmp_path, code)
    process.until(lambda: "up" in process.said(), "start")
    process.send(signal.SIGSTOP)
    process.end()
    assert not process.is_running


def test_one_runs_where_it_is_put(tmp_path):
    core = max(os.sched_getaffinity(0))
    process = child(tmp_path, "import os, time; print(os.sched_getaffinity(0), flush=True); time.sleep(60)", core=core)
    process.until(lambda: "}" in process.said(), "start")
    process.end()
    assert process.said().strip() == f"{{{core}}}"
    assert core in os.sched_getaffinity(0)


@pytest.mark.redis
def test_redis_keeps_what_it_acknowledged_when_it_is_killed(tmp_path):
    redis = Redis(tmp_path)
    redis.start()
    try:
        assert redis.ask("SET", "key", "value") == "+OK\r\n"
        assert redis.used_bytes() > 100_000
        redis.kill()
        with pytest.raises(ConnectionError):
            redis.ask("PING")
        redis.start()
        assert redis.ask("GET", "key") == "$5\r\nvalue\r\n"
        line = Line(redis.port, tmp_path)
        try:
            redis.port = line.port
            assert redis.ask("GET", "key") == "$5\r\nvalue\r\n"
        finally:
            line.end()
    finally:
        redis.end()


def test_where_there_is_no_redis_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Missing, match="apt-get install redis-server"):
        Redis(tmp_path)


def test_a_disk_of_that_size_or_the_reason_why_not(tmp_path, monkeypatch):
    def refused(command, **_options):
        return subprocess.CompletedProcess(command, 32, "", "mount: must be superuser\n")

    monkeypatch.setattr(subprocess, "run", refused)
    with pytest.raises(Missing, match="must be superuser"), servers.mounted(tmp_path / "disk", 1 << 20):
        pytest.fail("there is none")
