"""The supervisor over workers that are a few lines each; the real ones are in tests/e2e/test_lifecycle.py."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.supervisor import Supervisor

# A worker that is ready, beats, and leaves with status 0 when its line says so or ends.
GOOD = """
line.send(b".")
while True:
    line.settimeout(0.1)
    try:
        word = line.recv(1)
    except TimeoutError:
        line.send(b".")
        continue
    note(f"left for {word[0] if word else None}")
    break
"""
BROKEN = "sys.exit(2)"
HUNG = "line.send(b'.'); time.sleep(60)"
DEAF = "line.send(b'.'); signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
FIRST_ONLY = "first = not os.path.exists(path); note('came');\nif not first: sys.exit(2)\n" + GOOD
BEGINNING = """
import os, signal, socket, sys, time
path = os.environ["NOTES"]
def note(text):
    with open(path, "a") as notes:
        notes.write(text + "\\n")
listening, line = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
"""


class Watched:
    """A supervisor under way, and what came of it."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes
        self.ready = asyncio.Event()
        self.listening = socket.create_server(("127.0.0.1", 0))

    def start(self, script: str, count: int = 2, **limits: float) -> Supervisor:
        self.supervisor = Supervisor(
            self.listening,
            count=count,
            environment={"NOTES": str(self.notes), **os.environ},
            on_ready=self.ready.set,
            command=(sys.executable, "-S", "-E", "-c", BEGINNING + script),
            first_pause_s=0.01,
            **{"stop_s": 10.0, **limits},
        )
        self.running = asyncio.create_task(self.supervisor.run())
        return self.supervisor

    def pids(self) -> set[int]:
        return {worker.process.pid for worker in self.supervisor._workers if worker.is_ready}

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not holds():
                await asyncio.sleep(0.01)  # other processes: there is nothing to wait on but what they do

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        os.kill(os.getpid(), number)
        return await self.running


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def watched(tmp_path: Path):
    made = Watched(tmp_path / "notes")
    yield made
    if not made.running.done():
        made.supervisor._leave(signal.SIGTERM)
    while not made.running.done():
        made.supervisor._kill()
        await asyncio.sleep(0.01)
    made.listening.close()


pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_workers_hear_what_they_are_stopped_for_and_all_have_left_at_the_end(watched, number):
    watched.start(GOOD)
    await watched.ready.wait()
    assert len(watched.pids()) == 2
    assert await watched.end(number) == 0
    assert watched.notes.read_text().splitlines() == [f"left for {number.value}"] * 2


async def test_killed_a_worker_is_replaced_and_the_others_stay(watched):
    watched.start(GOOD)
    await watched.ready.wait()
    killed, kept = sorted(watched.pids())
    os.kill(killed, signal.SIGKILL)
    await watched.until(lambda: len(watched.pids() - {killed}) == 2)
    assert kept in watched.pids()
    assert await watched.end() == 0


async def test_hung_a_worker_is_killed_and_replaced(watched):
    watched.start(HUNG, count=1, hung_s=0.2)
    await watched.ready.wait()
    (first,) = watched.pids()
    await watched.until(lambda: watched.pids() not in ({first}, set()))


async def test_deaf_workers_are_killed_when_the_time_is_up_and_the_status_says_so(watched):
    watched.start(DEAF, stop_s=0.2)
    await watched.ready.wait()
    assert await watched.end() == 1


async def test_nobody_comes_up_ends_with_the_status_of_the_workers(watched):
    watched.start(BROKEN)
    assert await asyncio.wait_for(watched.running, 20) == 2
    assert not watched.ready.is_set()


async def test_a_replacement_that_fails_is_tried_again_until_nobody_has_survived(watched):
    watched.start(FIRST_ONLY, count=1)
    await watched.ready.wait()
    os.kill(watched.pids().pop(), signal.SIGKILL)
    assert await asyncio.wait_for(watched.running, 20) == 2
    assert watched.notes.read_text().splitlines() == ["came"] * 6


async def test_stopped_while_a_worker_still_loads_nobody_waits_for_it(watched):
    watched.start("note('came'); time.sleep(60)")
    await watched.until(lambda: watched.notes.exists() and watched.notes.read_text().count("came") == 2)
    assert await watched.end() == 0
