"""What keeps the number of worker processes: it starts them, watches them, replaces them and ends them.

Each worker has a line to its supervisor, one end each of a pair of sockets. It says over it that it is ready, and from
then on every second that its loop still turns; the supervisor says the signal to leave for. When a line ends so has
whoever was at the other end: a worker then leaves, and the supervisor puts another in its place. One that dies before
it was ever ready is tried again after a pause that doubles: what is broken does not get better by being tried faster.

Signals are the supervisor's affair. A terminal sends SIGINT, and a service manager SIGTERM, to every process of a
group, so that a worker hears of one stop twice and must not take the second for impatience.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

_log = logging.getLogger(__name__)

WORKER = (sys.executable, "-m", "service.worker")
HUNG_S = 30.0  # without a word from a worker that was ready: longer than any pause of a loop that is still in use
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 30.0
FAILURES = 5  # in a row and with nobody left who serves: then whoever started the service has to know


@dataclass(eq=False, slots=True)
class _Worker:
    process: asyncio.subprocess.Process
    hears: asyncio.StreamReader
    says: asyncio.StreamWriter
    is_ready: bool = False

    def leave(self, why: signal.Signals) -> None:
        """Asks it to go; who has not served yet may go at once."""
        if self.is_ready:
            self.says.write(bytes([why]))
        elif self.process.returncode is None:
            self.process.terminate()


class Supervisor:
    """Keeps `count` workers, which accept from one socket.

    Args:
        listening: the socket.
        count: how many.
        environment: of the workers.
        stop_s: how long they may take to leave.
        on_ready: called when all are ready for the first time.
        command: starts a worker; the file descriptors of the socket and of its line are put behind it.
        hung_s: without a word from a worker that was ready, after which it is replaced.
        first_pause_s: before one that never was ready is tried again; it doubles.
    """

    def __init__(
        self,
        listening: socket.socket,
        *,
        count: int,
        environment: Mapping[str, str],
        stop_s: float,
        on_ready: Callable[[], None],
        command: Sequence[str] = WORKER,
        hung_s: float = HUNG_S,
        first_pause_s: float = FIRST_PAUSE_S,
    ) -> None:
        self._listening = listening
        self._count = count
        self._environment = environment
        self._stop_s = stop_s
        self._on_ready: Callable[[], None] | None = on_ready
        self._command = command
        self._hung_s = hung_s
        self._first_pause_s = first_pause_s
        self._workers: set[_Worker] = set()
        self._failures = 0
        self._status = 0
        self._stopping = asyncio.Event()

    async def run(self) -> int:
        """Until it is told to stop, or nobody comes up; the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._hear, number)
        await asyncio.gather(*[self._keep() for _ in range(self._count)])
        return self._status

    async def _keep(self) -> None:
        """One place among the workers: somebody is in it until the service stops."""
        while not self._stopping.is_set():
            worker = await self._start()
            await self._watch(worker)
            status = await self._end(worker)
            if self._stopping.is_set():
                return
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            _log.error("worker %d ended %s", worker.process.pid, how)
            if not worker.is_ready:
                await self._pause(status)

    async def _start(self) -> _Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            handed = (self._listening.fileno(), theirs.fileno())
            process = await asyncio.create_subprocess_exec(
                *self._command, *map(str, handed), pass_fds=handed, env=self._environment
            )
        worker = _Worker(process, *await asyncio.open_connection(sock=ours))
        self._workers.add(worker)
        if self._stopping.is_set():
            process.terminate()
        return worker

    async def _watch(self, worker: _Worker) -> None:
        """Listens to a worker until its line ends; one that falls silent is killed."""
        silences = 0  # two in a row: when it was this process that stood still, the word is there at the second look
        while silences < 2:
            try:
                async with asyncio.timeout(self._hung_s / 2 if worker.is_ready else None):
                    said = await worker.hears.read(1024)
            except TimeoutError:
                silences += 1
                continue
            except ConnectionError:
                return
            if not said:
                return
            silences = 0
            if worker.is_ready:
                continue
            worker.is_ready = True
            self._failures = 0
            _log.info("worker %d is ready", worker.process.pid)
            if self._on_ready is not None and sum(one.is_ready for one in self._workers) == self._count:
                self._on_ready()
                self._on_ready = None
        _log.error("worker %d has not been heard of for %g s and is killed", worker.process.pid, self._hung_s)
        worker.process.kill()

    async def _end(self, worker: _Worker) -> int:
        """The exit status of a worker whose line has ended."""
        try:
            async with asyncio.timeout(self._stop_s):
                status = await worker.process.wait()
        except TimeoutError:
            worker.process.kill()
            status = await worker.process.wait()
        self._workers.discard(worker)
        worker.says.close()
        with contextlib.suppress(ConnectionError):
            await worker.says.wait_closed()
        return status

    async def _pause(self, status: int) -> None:
        """What follows on a worker that never was ready: a while without it, or the end of all where nobody serves."""
        self._failures += 1
        is_first = self._on_ready is not None
        if not any(other.is_ready for other in self._workers) and (is_first or self._failures >= FAILURES):
            self._status = status if status > 0 else 1
            self._leave(signal.SIGTERM)
            return
        pause_s = min(LAST_PAUSE_S, self._first_pause_s * 2 ** (self._failures - 1))
        _log.error("no worker came up at try %d, the next one is in %g s", self._failures, pause_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()

    def _hear(self, number: signal.Signals) -> None:
        if self._stopping.is_set():  # a second signal ends everything at once
            self._kill()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        _log.info("stopping %d workers for %s", len(self._workers), number.name)
        self._leave(number)

    def _leave(self, why: signal.Signals) -> None:
        self._stopping.set()
        self._listening.close()  # the workers have theirs; what only this one held would wait for nobody
        for worker in self._workers:
            worker.leave(why)
        asyncio.get_running_loop().call_later(self._stop_s, self._give_up)

    def _give_up(self) -> None:
        for worker in self._workers:
            _log.error("worker %d did not stop within %g s and is killed", worker.process.pid, self._stop_s)
            self._status = 1
        self._kill()

    def _kill(self) -> None:
        for worker in self._workers:
            if worker.process.returncode is None:
                worker.process.kill()
