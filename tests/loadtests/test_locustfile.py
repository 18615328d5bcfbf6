"""The Locust readers, as their container runs them: content with a right service, and with no other."""

import os
import subprocess
import sys
from pathlib import Path

from containers import PATH, ROOT, free_port


def locust(url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two users for two seconds."""
    command = [str(Path(sys.executable).parent / "locust"), "-f", "loadtests/locustfile.py", "--headless"]
    command += ["--users", "2", "--spawn-rate", "2", "--run-time", "2s", "--host", url, "--json"]
    settings = {"PATH": PATH, "PYTHONPATH": str(ROOT), "LOADTEST_K": "5", "LOADTEST_RATE": "4", **environment}
    home = {"HOME": os.environ.get("HOME", "/")}
    return subprocess.run(command, cwd=ROOT, env=settings | home, capture_output=True, text=True, timeout=60)


def test_readers_ask_click_and_ask_again(service):
    done = locust(service)
    assert done.returncode == 0, done.stderr
    assert "/v1/events" in done.stdout
    assert "/v1/recommendations" in done.stdout


def test_a_clicked_item_that_comes_back_fails_the_run(fake_service):
    fake = fake_service()
    done = locust(fake.url)  # it remembers nothing, so it shows again what was clicked
    assert done.returncode == 1, done.stderr
    assert "list is wrong: seen" in done.stderr + done.stdout
    clicks = [event for body in fake.asked if "events" in body for event in body["events"]]
    assert clicks
    assert all(click["recommendation_id"] == "r" for click in clicks)
    assert len({click["event_id"] for click in clicks}) == len(clicks)


def test_nobody_there_ends_the_run_with_the_reason():
    done = locust(f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 2
    assert "start `python -m service` first" in done.stdout


def test_a_foreign_host_is_left_alone():
    done = locust("http://example.com")
    assert done.returncode == 2
    assert "another machine" in done.stdout
