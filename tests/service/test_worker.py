"""A worker's command line; that it serves and leaves is in tests/e2e/test_lifecycle.py."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from service.worker import REFUSED

ROOT = Path(__file__).resolve().parents[2]


def test_a_worker_that_cannot_begin_says_why_in_one_line(tmp_path):
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listening:
        handed = (listening.fileno(), theirs.fileno())
        done = subprocess.run(
            [sys.executable, "-m", "service.worker", *map(str, handed)],
            pass_fds=handed,
            env={**os.environ, "SEQUITUR_BUNDLE": str(tmp_path / "none"), "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert done.returncode == REFUSED
    (line,) = done.stderr.splitlines()
    assert "there is no bundle directory at" in line
