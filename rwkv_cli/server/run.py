"""Run the server until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from rwkv_cli.errors import UsageError
from rwkv_cli.reporting import Reporter
from rwkv_cli.server.app import make_app
from rwkv_cli.server.loaded import Log
from rwkv_cli.server.service import Service
from rwkv_cli.server.settings import ServerSettings


def serve(settings: ServerSettings, reporter: Reporter, log: Log, ready: Callable[[str], None]) -> None:
    """Serve until a signal ends it. `ready` is called with the address once the default model is loaded.

    Raises UsageError for a port in use, and what loading the model raises.
    """
    app = make_app(settings, reporter, log)
    service: Service = app.state.service
    with contextlib.closing(_bound(settings.host, settings.port)) as listening:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            server_header=False,
            timeout_graceful_shutdown=max(1, round(settings.grace)),
            h11_max_incomplete_event_size=1 << 16,
        )
        server = _Server(config)

        async def run() -> None:
            _, loaded = await service.models.acquire(None)
            loaded.release()
            ready(_address(settings.host, listening))
            await server.serve([listening])

        asyncio.run(run())


class _Server(uvicorn.Server):
    """A server that a signal ends without an exit code of failure."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop gracefully at the first signal, and at once at the second."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def _bound(host: str, port: int) -> socket.socket:
    """A socket on an address. Raises UsageError where that is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(2048)  # who comes while the model is loaded waits
    except OSError as error:
        raise UsageError(
            f"cannot listen at {host}, port {port}: {(error.strerror or str(error)).lower()}; "
            "choose another one with {port}"
        ) from None
    return opened


def _address(host: str, listening: socket.socket) -> str:
    port = listening.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
