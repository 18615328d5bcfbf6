"""`python -m service`: read the settings, load the bundle, serve. Whatever is wrong is said in one line.

The application is imported late: its metrics look for the directory that worker processes share when they are imported.
"""

import argparse
import asyncio
import errno
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from retrieval.errors import BundleError
from service import logs, memory, settings
from service.errors import ConfigurationError
from service.keys import open_keys
from service.settings import CLOSE_S, STOP_S, Settings

REFUSED = 2  # exit status: nothing was started, and trying again without a change will not help
INTERRUPTED = 130  # exit status: Ctrl-C before anything was served
BACKLOG = 2048  # connections that the kernel holds for us


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m service", description="Serve a bundle over REST.")
    parser.add_argument("--bundle", type=Path, help="bundle directory (SEQUITUR_BUNDLE)")
    parser.add_argument("--host", help="address to listen on (SEQUITUR_HOST, 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (SEQUITUR_PORT, 8000; 0 takes a free one)")
    parser.add_argument("--workers", type=int, help="processes (SEQUITUR_WORKERS, 1)")
    said = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    try:
        chosen = settings.read(**said)
        open_keys(chosen)  # before anything is loaded, like the port
        listening = _listen(chosen)
        with listening:
            memory.share_one_arena()
            logs.configure(level=chosen.log_level, form=chosen.log_format)
            return _serve_one(chosen, listening) if chosen.workers == 1 else _serve_many(chosen, listening)
    except (ConfigurationError, BundleError) as error:
        sys.stderr.write(f"sequitur cannot start: {error}\n")
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except TimeoutError as error:
        sys.stderr.write(f"sequitur was stopped before it had closed everything: {error}\n")
        return 1


def _listen(chosen: Settings) -> socket.socket:
    """The listening socket, taken before anything is loaded: a port in use is known at once."""
    family = socket.AF_INET6 if ":" in chosen.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((chosen.host, chosen.port))
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            reason = f"port {chosen.port} on {chosen.host} is in use; stop what holds it or choose another with --port"
        else:
            reason = f"{chosen.host}:{chosen.port} cannot be listened on: {error.strerror or error}"
        raise ConfigurationError(reason) from error
    listening.listen(BACKLOG)
    return listening


def _serve_one(chosen: Settings, listening: socket.socket) -> int:
    from service.app import create_app
    from service.server import Server

    url = _url(listening)
    server = Server(create_app(chosen), drain_s=chosen.drain_s, on_ready=lambda: _say(f"Sequitur is ready on {url}"))
    server.run(sockets=[listening])
    return 0


def _serve_many(chosen: Settings, listening: socket.socket) -> int:
    """A supervisor and its workers; each loads the bundle by itself, and all write their metrics to one directory."""
    from retrieval.bundle import Bundle
    from service.journal import open_journal
    from service.placements import Placements
    from service.supervisor import Supervisor
    from service.tracing import check_place
    from service.variants import Plan

    Bundle.open(chosen.bundle_dir)  # refused here once instead of in every worker
    Placements.read(chosen.placements)
    Plan.read(chosen.variants)
    open_journal(chosen.log)
    check_place(chosen.traces)
    url = _url(listening)
    _say(f"Sequitur starts {chosen.workers} workers on {url}")
    with tempfile.TemporaryDirectory(prefix="sequitur-metrics-") as directory:
        supervisor = Supervisor(
            listening,
            count=chosen.workers,
            environment=settings.environment(chosen, PROMETHEUS_MULTIPROC_DIR=directory),
            stop_s=chosen.drain_s + STOP_S + CLOSE_S,
            on_ready=lambda: _say(f"Sequitur is ready on {url}"),
        )
        return asyncio.run(supervisor.run())


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


if __name__ == "__main__":
    sys.exit(main())
