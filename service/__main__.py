"""`python -m service`: read the settings, load the bundle, serve. Whatever is wrong is said in one line.

The application is imported late: its metrics look for the directory that worker processes share when they are imported.
"""

import argparse
import errno
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn

from retrieval.errors import BundleError
from service import settings
from service.connections import Connection
from service.errors import ConfigurationError
from service.keys import open_keys
from service.settings import Settings

REFUSED = 2  # exit status: nothing was started, and trying again without a change will not help
DRAIN_S = 10  # how long open requests may take after the signal to stop
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
            return _serve_one(chosen, listening) if chosen.workers == 1 else _serve_many(chosen, listening)
    except (ConfigurationError, BundleError) as error:
        sys.stderr.write(f"sequitur cannot start: {error}\n")
        return REFUSED


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
    from service import logs
    from service.app import create_app
    from service.state import load_bundle

    logs.configure(level=chosen.log_level, form=chosen.log_format)
    app = create_app(chosen, served=load_bundle(chosen))
    server = _Announced(uvicorn.Config(app, **_OPTIONS), url=_url(listening))
    server.run(sockets=[listening])
    return 0 if server.started else 1


def _serve_many(chosen: Settings, listening: socket.socket) -> int:
    """A supervisor and its workers; each loads the bundle by itself, and all write their metrics to one directory."""
    from retrieval.bundle import Bundle
    from service.journal import open_journal
    from service.placements import Placements
    from service.variants import Plan

    Bundle.open(chosen.bundle_dir)  # refused here once instead of in every worker
    Placements.read(chosen.placements)
    Plan.read(chosen.variants)
    open_journal(chosen.log)
    host, port = listening.getsockname()[:2]
    sys.stdout.write(f"Sequitur starts {chosen.workers} workers on {_url(listening)}\n")
    sys.stdout.flush()
    listening.close()  # the supervisor makes its own, which the workers share
    settings.publish(chosen.model_copy(update={"port": port}))
    with tempfile.TemporaryDirectory(prefix="sequitur-metrics-") as directory:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory
        uvicorn.run("service.app:create_app", factory=True, host=host, port=port, workers=chosen.workers, **_OPTIONS)
    return 0


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


_OPTIONS: dict[str, Any] = {
    "http": Connection,
    "ws": "none",  # where its library is installed, an upgrade would be answered past the application
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "date_header": False,
    "proxy_headers": False,  # who calls is who connects; a header must not turn a stranger into this machine
    "timeout_graceful_shutdown": DRAIN_S,
    "backlog": BACKLOG,
}


class _Announced(uvicorn.Server):
    """A server that says where it is once it is ready."""

    def __init__(self, config: uvicorn.Config, *, url: str) -> None:
        super().__init__(config)
        self._url = url

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            sys.stdout.write(f"Sequitur is ready on {self._url}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
