import subprocess
import sys
from pathlib import Path

import pytest

import service
from service import metrics
from service.app import create_app
from service.errors import ConfigurationError
from service.settings import Settings

ROOT = Path(service.__file__).parent.parent


def test_importing_the_service_imports_nothing_that_trains():
    """In a fresh interpreter: this one has met torch in other tests."""
    script = """
import sys, service.app, service.__main__
heavy = {"torch", "polars", "onnx", "pandas", "scipy", "redis", "models", "loadtests"}
print(*sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_reading_the_settings_does_not_import_numpy_yet():
    """Its threads are counted from the settings, and it counts them when it is imported."""
    script = "import sys, service.__main__; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_application_that_others_could_reach_is_not_made_without_keys():
    with pytest.raises(ConfigurationError, match="there are no API keys"):
        create_app(Settings(host="0.0.0.0", store="memory://"))


def test_a_store_that_cannot_be_meant_is_refused_at_once():
    with pytest.raises(ConfigurationError, match="redis"):
        create_app(Settings(store="postgres://x"))


def test_a_server_that_gives_no_settings_gets_those_of_the_environment(monkeypatch):
    configured = []
    monkeypatch.setattr("service.app.logs.configure", lambda **given: configured.append(given))
    monkeypatch.setenv("SEQUITUR_STORE", "memory://")
    monkeypatch.setenv("SEQUITUR_LOG_LEVEL", "error")
    create_app()
    assert configured == [{"level": "error", "form": "text"}]


@pytest.mark.anyio
async def test_memory_is_given_back_by_every_life(open_client):
    """Starting and stopping leaves no series of an old bundle behind."""
    for _ in range(2):
        async with open_client() as client:
            assert (await client.get("/readyz")).status_code == 200
    assert b"sequitur_bundle_info{" not in metrics.exposition()
