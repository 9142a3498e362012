"""From settings to a listening server and back: models are checked first, then the port opens; SIGTERM drains."""

import asyncio
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import uvicorn

from trefoil.api.app import create_app
from trefoil.api.fleet import Fleet, StartRefused
from trefoil.logs import configure_logs
from trefoil.metrics import Metrics
from trefoil.settings import Settings

log = structlog.get_logger()

EXIT_OK = 0
EXIT_REFUSED = 2


class Server(uvicorn.Server):
    """Ends with status 0 after a signal, once running requests are answered."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._leave)
        yield

    def _leave(self) -> None:
        """The first signal drains; a second one does not wait."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


async def run(settings: Settings) -> int:
    """Serve until a signal; the exit status."""
    configure_logs(as_json=settings.log_json)
    try:
        listener = bind(settings.host, settings.port)
    except OSError as error:
        return _refuse(f"--host {settings.host} --port {settings.port}: cannot be listened on: {error.strerror}")
    try:
        fleet = await Fleet.start(settings, Metrics())
    except StartRefused as error:
        listener.close()
        return _refuse(str(error))
    config = uvicorn.Config(
        create_app(fleet),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.shutdown_timeout,
    )
    host, port = listener.getsockname()[:2]
    listener.listen(2048)
    log.info("listening", url=f"http://{host}:{port}", models=",".join(fleet.models))
    try:
        await Server(config).serve(sockets=[listener])
    finally:
        await fleet.stop()
    log.info("stopped")
    return EXIT_OK


def bind(host: str, port: int) -> socket.socket:
    """The port is ours, and nobody can connect yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _refuse(message: str) -> int:
    print(f"trefoil: {message}", file=sys.stderr)
    return EXIT_REFUSED
