"""`python -m service.worker LISTENING LINE`: one of several processes, started by the supervisor alone.

Both arguments are file descriptors that it handed over: the socket to accept from, and the line between the two.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Sequence

from retrieval.errors import BundleError
from service import logs, memory, settings
from service.app import create_app
from service.errors import ConfigurationError
from service.server import Server

BEAT_S = 1.0  # between two words over the line
REFUSED = 2


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a terminal sends it to all: no trace while the bundle loads
    memory.share_one_arena()
    listening, line = (socket.socket(fileno=int(number)) for number in arguments)
    line.setblocking(False)
    chosen = settings.read()
    logs.configure(level=chosen.log_level, form=chosen.log_format)

    def connect() -> None:
        loop = asyncio.get_running_loop()

        def beat() -> None:
            try:
                line.send(b".")
            except OSError:  # nobody is there; `hear` will know
                return
            loop.call_later(BEAT_S, beat)

        def hear() -> None:
            word = line.recv(1)
            loop.remove_reader(line)
            server.leave(signal.Signals(word[0]) if word else signal.SIGTERM)

        loop.add_reader(line, hear)
        beat()

    try:
        server = Server(create_app(chosen), drain_s=chosen.drain_s, on_ready=connect, is_supervised=True)
        server.run(sockets=[listening])
    except (ConfigurationError, BundleError) as error:
        sys.stderr.write(f"sequitur cannot start: {error}\n")
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
