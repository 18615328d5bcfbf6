import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service import settings
from service.errors import ConfigurationError
from service.settings import Settings


def test_the_environment_is_read_and_the_command_line_goes_first():
    read = settings.read({"SEQUITUR_PORT": "81", "SEQUITUR_BUNDLE": "b", "PATH": "/bin"}, bundle=Path("other"))
    assert (read.port, read.bundle_dir) == (81, Path("other"))


def test_a_misspelt_variable_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigurationError, match="no setting SEQUITUR_DEADLNE_MS; did you mean SEQUITUR_DEADLINE_MS"):
        settings.read({"SEQUITUR_DEADLNE_MS": "50"})


@pytest.mark.parametrize("name", ["SEQUITUR_TEST_DATA", "SEQUITUR_PROPERTY_REQUESTS", "SEQUITUR_PORT_8000_TCP"])
def test_variables_that_others_write_are_let_pass(name):
    assert settings.read({name: "x"}) == Settings()


def test_a_value_out_of_range_is_named_with_its_meaning():
    with pytest.raises(ConfigurationError, match=r"SEQUITUR_PORT='tcp://1.2.3.4:80' is refused: .* Port to listen on"):
        settings.read({"SEQUITUR_PORT": "tcp://1.2.3.4:80"})


def test_an_empty_variable_is_an_unset_one():
    assert settings.read({"SEQUITUR_API_KEYS_FILE": ""}).api_keys_file is None


def test_limits_follow_from_the_one_dial():
    assert settings.read({"SEQUITUR_DEADLINE_MS": "50"}).store_timeout_s == pytest.approx(0.02)
    assert settings.read({"SEQUITUR_STORE_TIMEOUT_MS": "7"}).store_timeout_s == pytest.approx(0.007)


def test_cores_are_shared_between_workers_and_every_worker_has_one():
    assert Settings(cores=8, workers=2).threads == 4
    assert Settings(cores=1, workers=4).threads == 1
    assert Settings().threads == settings.available_cores() >= 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000", 0), ("150000 100000", 1), ("50000 100000", 1), ("99900000 100000", 0), ("", 0)],
)
def test_a_containers_quota_counts(tmp_path, text, expected):
    (tmp_path / "cpu.max").write_text(text)
    every = len(os.sched_getaffinity(0))
    assert settings.available_cores(tmp_path / "cpu.max") == (expected or every)
    assert settings.available_cores(tmp_path / "none") == every


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("shop", False)]
)
def test_loopback_is_told_from_the_rest(host, expected):
    assert Settings(host=host).is_loopback is expected


def test_the_default_bundle_is_the_current_one_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Settings().bundle_dir == Path("artifacts/demo")
    Path("artifacts/current").mkdir(parents=True)
    assert Settings().bundle_dir == Path("artifacts/current")


def test_settings_are_frozen_described_and_silent_about_the_store():
    with pytest.raises(ValidationError):
        Settings().port = 1
    assert all(field.description for field in Settings.model_fields.values())
    assert "secret" not in repr(Settings(store="redis://:secret@host/0"))


def test_another_process_reads_the_same_settings():
    chosen = Settings(port=81, bundle=Path("b"), workers=3, deadline_ms=12.5, allow_anonymous=True)
    handed = settings.environment(chosen, PROMETHEUS_MULTIPROC_DIR="/m")
    assert handed["PROMETHEUS_MULTIPROC_DIR"] == "/m"
    assert settings.read(handed) == chosen
