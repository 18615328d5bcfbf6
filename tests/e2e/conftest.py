"""A real service in a process of its own, on a free port of the loopback."""

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN_S = 60.0


class ServiceProcess:
    """`python -m service`, started, asked and stopped.

    Args:
        directory: its working directory, with its log.
        arguments: of the command line; the port is chosen by the service.
        settings: SEQUITUR_ variables without their prefix.
    """

    def __init__(self, directory: Path, *arguments: str, **settings: str) -> None:
        self._directory = directory
        self._arguments = ("--port", "0", *arguments)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SEQUITUR_")}
        # What is not about time must not depend on how busy the machine is; nor is there a balancer to wait for.
        chosen = {"DEADLINE_MS": "5000", "DRAIN_S": "0", **settings}
        self._environment = clean | {f"SEQUITUR_{name}": value for name, value in chosen.items()}
        self._environment["PYTHONPATH"] = str(ROOT)
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self, saying: str = "ready") -> "ServiceProcess":
        """Starts it and waits for the line that says where it is."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with (self._directory / "log").open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service", *self._arguments],
                cwd=self._directory,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        line = self._line()
        assert saying in line, f"{line!r}; the log says:\n{self.log()}"
        self.url = line.split()[-1]
        return self

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            assert selector.select(READY_WITHIN_S), f"nothing was said in {READY_WITHIN_S} s; the log:\n{self.log()}"
        return self._process.stdout.readline()

    def wait_until_ready(self) -> None:
        """For several workers, whose supervisor speaks before they do."""
        give_up = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < give_up:
            try:
                if httpx.get(f"{self.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)  # another process: there is nothing to wait on but its answer
        raise AssertionError(f"not ready in {READY_WITHIN_S} s; the log says:\n{self.log()}")

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        assert self._process is not None
        return self._process.pid

    def said(self) -> str:
        """The next line that it writes to standard output."""
        return self._line()

    def log(self) -> str:
        """What it wrote to standard error."""
        return (self._directory / "log").read_text()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ends it; the exit status."""
        if self._process is None:
            return 0
        self._process.send_signal(how)
        status = self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return status


@pytest.fixture
def start_service(tmp_path: Path, toy_bundle: Path) -> Iterator[object]:
    """Starts services on the toy bundle; whatever still runs at the end of the test is ended."""
    started: list[ServiceProcess] = []

    def start(*arguments: str, saying: str = "ready", **settings: str) -> ServiceProcess:
        service = ServiceProcess(tmp_path, "--bundle", str(toy_bundle), *arguments, **settings)
        started.append(service)
        return service.start(saying)

    yield start
    for service in started:
        service.stop(signal.SIGKILL)
