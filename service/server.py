"""One serving process: it says where it is once it is ready, and leaves without losing anybody.

Told to stop it is unready first, so that balancers send the next request elsewhere; what still comes is answered, with
`Connection: close`, so that clients which keep connections alive look for another. After a grace it accepts nothing,
answers what is under way, and lets the application flush and close.
"""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service import metrics
from service.connections import Connection
from service.settings import CLOSE_S, KEEP_ALIVE_S, STOP_S

_log = logging.getLogger(__name__)

WHOLE_S = 0.5  # how long a request may still take to arrive once nothing more is accepted


class Server(uvicorn.Server):
    """Serves one application until it is told to leave.

    Args:
        app: the application; `app.state.leaving` is set when it is told to.
        drain_s: between being unready and accepting nothing, where the signal is SIGTERM; a person at a terminal, who
            sends SIGINT, has no balancer to wait for.
        on_ready: called when it accepts.
        is_supervised: whether signals are somebody else's affair: then a second one is none. Otherwise it ends the
            process at once.
    """

    def __init__(
        self, app: FastAPI, *, drain_s: float, on_ready: Callable[[], None], is_supervised: bool = False
    ) -> None:
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",  # where its library is installed, an upgrade would be answered past the application
            lifespan="off",  # `serve` has it, where its errors are ours to tell
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,  # who calls is who connects; a header must not turn a stranger into this machine
            timeout_graceful_shutdown=int(STOP_S),
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s
        self._on_ready = on_ready
        self._is_supervised = is_supervised
        self._why: signal.Signals | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """The life of the application around that of the sockets.

        Raises:
            BundleError, ConfigurationError: the application cannot begin.
            TimeoutError: it did not close in time.
        """
        with self.capture_signals():
            async with asyncio.timeout(None) as limit, self._app.router.lifespan_context(self._app):
                await super().serve(sockets)
                limit.reschedule(asyncio.get_running_loop().time() + CLOSE_S)
        _log.info("stopped")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def leave(self, why: signal.Signals) -> None:
        """Begins to leave, which is noticed within a tenth of a second; safe in a signal handler."""
        if self._why is None:
            self._why = why
            self._app.state.leaving = True
            self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Hears SIGTERM and SIGINT. Before anything is served there is nothing to be careful about."""
        if not self.started or (self._why is not None and not self._is_supervised):
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.leave(signal.Signals(sig))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        why = self._why or signal.SIGTERM
        drain_s = self._drain_s if why == signal.SIGTERM else 0.0
        _log.info("stopping for %s: unready now, accepting nothing in %g s", why.name, drain_s)
        metrics.READY.set(0)
        close = (b"connection", b"close")
        self.config.encoded_headers.append(close)
        self.server_state.default_headers.append(close)
        await asyncio.sleep(drain_s)
        await self._close(sockets or [])
        await self._whole_requests()
        await super().shutdown(sockets)

    async def _close(self, sockets: list[socket.socket]) -> None:
        """Accepts nothing more, but takes in who has connected: the kernel would turn them away with the socket."""
        last = []
        for listening in sockets:
            listening.setblocking(False)
            with contextlib.suppress(OSError):  # nobody is left
                while True:
                    last.append(listening.accept()[0])
        for server in self.servers:
            server.close()
        for listening in sockets:
            listening.close()
        for connection in last:
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, connection)

    def _connection(self) -> Connection:
        return Connection(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def _whole_requests(self) -> None:
        """Waits a moment for requests that are still arriving, and for the first one of a new connection."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + WHOLE_S
        while loop.time() < give_up:
            if not any(getattr(connection, "is_waiting", False) for connection in self.server_state.connections):
                return
            await asyncio.sleep(0.01)
