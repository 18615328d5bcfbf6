"""What the deployment files say, and a container's command run as a plain process: no container engine is needed."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
# The interpreter's own directory comes first, so that `python` and `locust` are those of the environment under test.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def binary(name: str, package: str) -> str:
    """The path of an installed program; skips with the reason and the remedy where it is missing."""
    found = shutil.which(name, path=PATH)
    if found is None:
        pytest.skip(f"{name} is not installed; on Debian: apt-get install {package}")
    return found


def compose(*options: str, **environment: str) -> dict[str, Any]:
    """The compose file as docker-compose itself understands it, with every profile and nothing from outside."""
    program = binary("docker-compose", "docker-compose")
    with NamedTemporaryFile() as empty:  # instead of a .env file that a developer may have
        command = [program, "--env-file", empty.name, "-f", "docker-compose.yml", *options]
        command += ["--profile", "load", "--profile", "gpu", "config"]
        done = subprocess.run(command, cwd=ROOT, env={"PATH": PATH, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded: dict[str, Any] = yaml.safe_load(done.stdout)
    return loaded


def free_port() -> int:
    """A port on the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Process:
    """A running command; its output is kept for the message of a failure."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        environment = {"PATH": PATH, "SEQUITUR_DRAIN_S": "0", **environment}  # no balancer is waited for
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT)

    def until(self, ready: Callable[[], bool], what: str, *, limit_s: float = 30.0, pause_s: float = 0.2) -> None:
        """Returns when `ready` holds; fails with the output when the process ends first or the time is up."""
        for _ in range(int(limit_s / pause_s)):
            if ready():
                return
            try:
                code = self._process.wait(timeout=pause_s)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"exit {code} before {what}:\n{self._log.read_text()[-4000:]}")
        pytest.fail(f"no {what} within {limit_s} s:\n{self._log.read_text()[-4000:]}")

    def stop(self) -> int:
        """Asks the process to end, as `docker stop` does, and returns its exit status."""
        self._process.terminate()
        try:
            return self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


@contextmanager
def running(command: Sequence[str], log: Path, **environment: str) -> Iterator[Process]:
    """A command that runs inside the block and is stopped at its end."""
    process = Process(command, log, environment)
    try:
        yield process
    finally:
        process.stop()


class Dockerfile:
    """The stages of the Dockerfile, each with its instructions; continuation lines are joined."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.parents: dict[str, str] = {}
        self._instructions: dict[str, list[tuple[str, str]]] = {}
        lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
            word, _, rest = line.partition(" ")
            if word == "FROM":
                parent, _, name = rest.partition(" AS ")
                self.parents[name] = parent
                self._instructions[name] = []
            elif self.parents:
                self._instructions[list(self.parents)[-1]].append((word, rest))

    @classmethod
    def read(cls) -> "Dockerfile":
        """The one in `deploy/`."""
        return cls((DEPLOY / "Dockerfile").read_text())

    def all(self, stage: str, instruction: str) -> list[str]:
        """What one stage says with one instruction, in order."""
        return [rest for word, rest in self._instructions[stage] if word == instruction]

    def lineage(self, stage: str) -> list[str]:
        """A stage and those it is built on, nearest first."""
        line = [stage]
        while self.parents[line[-1]] in self.parents:
            line.append(self.parents[line[-1]])
        return line

    def sources(self, stage: str) -> set[str]:
        """Every stage whose content ends up in this one: its lineage, and what those copy from."""
        reached: set[str] = set()
        for name in self.lineage(stage):
            reached.add(name)
            for copy in self.all(name, "COPY"):
                if match := re.match(r"--from=(\S+)", copy):
                    reached |= self.sources(match[1])
        return reached

    def last(self, stage: str, instruction: str) -> str:
        """The value of an instruction of which the last one wins."""
        return next(found[-1] for name in self.lineage(stage) if (found := self.all(name, instruction)))

    def command(self, stage: str) -> list[str]:
        """The command that an image runs."""
        words: list[str] = json.loads(self.last(stage, "CMD"))
        return words

    def healthcheck(self, stage: str) -> list[str]:
        """The command of an image's health check."""
        words: list[str] = json.loads(self.last(stage, "HEALTHCHECK").partition(" CMD ")[2])
        return words
