"""`python -m service` where it refuses; where it serves is in tests/e2e/test_story.py."""

import os
import shutil
import socket

import pytest

from service.__main__ import REFUSED, main


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("SEQUITUR_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SEQUITUR_STORE", "memory://")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # so that the process which runs the tests keeps its own
    monkeypatch.chdir(tmp_path)


def refusal(capsys, *arguments: str) -> str:
    assert main(arguments) == REFUSED
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()  # the reason and nothing else: no trace
    return line


def test_a_port_in_use_is_known_before_anything_is_loaded(capsys):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        line = refusal(capsys, "--bundle", "none", "--port", str(port))
    assert f"port {port} on 127.0.0.1 is in use; stop what holds it or choose another with --port" in line


def test_an_address_that_is_not_ours_is_named(capsys, monkeypatch):
    monkeypatch.setenv("SEQUITUR_ALLOW_ANONYMOUS", "true")
    assert "192.0.2.1:0 cannot be listened on" in refusal(capsys, "--host", "192.0.2.1", "--port", "0")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_missing_bundle_is_named(capsys, workers):
    line = refusal(capsys, "--bundle", "none", "--port", "0", "--workers", workers)
    assert "there is no bundle directory at" in line


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_torn_bundle_is_named(capsys, toy_bundle, tmp_path, workers):
    shutil.copytree(toy_bundle, tmp_path / "torn")
    (tmp_path / "torn" / "item_vectors.npy").unlink()
    line = refusal(capsys, "--bundle", "torn", "--port", "0", "--workers", workers)
    assert "item_vectors.npy is listed in the manifest and missing" in line


def test_others_are_not_served_without_keys(capsys):
    assert "SEQUITUR_ALLOW_ANONYMOUS=true" in refusal(capsys, "--host", "0.0.0.0", "--port", "0")


def test_a_misspelt_setting_is_refused(capsys, monkeypatch):
    monkeypatch.setenv("SEQUITUR_BUNDEL", "x")
    assert "did you mean SEQUITUR_BUNDLE" in refusal(capsys)


def test_a_store_that_cannot_be_meant_is_refused(capsys, monkeypatch, toy_bundle):
    monkeypatch.setenv("SEQUITUR_STORE", "postgres://x")
    assert "not the scheme of a session store" in refusal(capsys, "--bundle", str(toy_bundle), "--port", "0")


def test_an_argument_out_of_range_is_refused(capsys):
    assert "SEQUITUR_PORT=99999 is refused" in refusal(capsys, "--port", "99999")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_place_for_traces_that_cannot_be_meant_is_refused(capsys, monkeypatch, toy_bundle, workers):
    monkeypatch.setenv("SEQUITUR_TRACES", "collector:4318")
    line = refusal(capsys, "--bundle", str(toy_bundle), "--port", "0", "--workers", workers)
    assert "is no place for traces; say http://host:4318" in line
