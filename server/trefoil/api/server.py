"""From settings to a listening server and back: models are checked first, then the port opens; SIGTERM drains."""

import asyncio
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import structlog
import uvicorn

from trefoil.api.app import create_app
from trefoil.api.connection import Connection
from trefoil.api.fine_tuned import FineTuned
from trefoil.api.fleet import Fleet, StartRefused
from trefoil.api.own_worker import keep_worker
from trefoil.api.tracing import Traces
from trefoil.logs import configure_logs
from trefoil.metrics import Metrics
from trefoil.settings import Settings
from trefoil.store.store import Store

log = structlog.get_logger()

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAST_WORDS_S = 3
"""For error events to reach their clients once the shutdown timeout is over."""

EXIT_OK = 0
EXIT_REFUSED = 2


class Server(uvicorn.Server):
    """Ends with status 0 after a signal, once running requests are answered or their time is over."""

    def __init__(self, config: uvicorn.Config, fleet: Fleet) -> None:
        super().__init__(config)
        self._fleet = fleet
        self._is_cut = False

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._leave)
        yield

    def _leave(self) -> None:
        """The first signal drains, a second one does not wait for answers, a third for nothing."""
        self.force_exit = self._is_cut
        if self.should_exit:
            self._cut()
        else:
            asyncio.get_running_loop().call_later(self._fleet.settings.shutdown_timeout, self._cut)
        self.should_exit = True

    def _cut(self) -> None:
        """Whoever still waits is told so, and its connection ends in order."""
        self._is_cut = True
        self._fleet.cut("the server is shutting down; ask again when it is back")


async def run(settings: Settings) -> int:
    """Serve until a signal; the exit status."""
    configure_logs(as_json=settings.log_json)
    endpoint = settings.otlp_traces_endpoint
    traces = Traces(endpoint) if endpoint is not None else None
    store = await asyncio.to_thread(Store.open, settings.database, settings.data_dir)
    try:
        listener = bind(settings)
    except OSError as error:
        return _refuse(f"{_place(settings)}: cannot be listened on: {error.strerror or error}")
    try:
        fleet = await start_fleet(settings)
    except StartRefused as error:
        listener.close()
        return _refuse(str(error))
    except asyncio.CancelledError:
        listener.close()
        log.info("stopped", before="the models were read")
        return EXIT_OK
    tuned = FineTuned(fleet, store)
    await tuned.catch_up()
    config = uvicorn.Config(
        create_app(fleet, store, tuned, traces),
        lifespan="off",
        http=partial(Connection, head_timeout_s=settings.body_timeout),  # type: ignore[arg-type]  # it is only called
        ws="none",
        log_config=None,
        access_log=False,
        timeout_keep_alive=settings.keep_alive_timeout,
        timeout_graceful_shutdown=settings.shutdown_timeout + LAST_WORDS_S,
    )
    listener.listen(2048)
    log.info("listening", url=_url(listener), models=",".join((*fleet.models, *fleet.remotes)))
    beside = [asyncio.create_task(tuned.follow(), name="follow-catalog")]
    if settings.has_worker:
        beside.append(asyncio.create_task(keep_worker(settings), name="keep-worker"))
    try:
        await Server(config, fleet).serve(sockets=[listener])
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        await fleet.stop()
        store.close()
        if traces is not None:
            await asyncio.to_thread(traces.close)
    log.info("stopped")
    return EXIT_OK


async def start_fleet(settings: Settings) -> Fleet:
    """Start every engine. Raises StartRefused, or CancelledError where a signal came first."""
    loop = asyncio.get_running_loop()
    starting = asyncio.ensure_future(Fleet.start(settings, Metrics()))
    for number in SIGNALS:
        loop.add_signal_handler(number, starting.cancel)
    return await starting


def bind(settings: Settings) -> socket.socket:
    """The port, or the Unix socket, is ours, and nobody can connect yet."""
    host, address = settings.host, settings.uds or (settings.host, settings.port)
    family = socket.AF_UNIX if settings.uds else socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _place(settings: Settings) -> str:
    return f"--uds {settings.uds}" if settings.uds else f"--host {settings.host} --port {settings.port}"


def _url(listener: socket.socket) -> str:
    """Where we listen, for people."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://{host}:{port}"


def _refuse(message: str) -> int:
    print(f"trefoil: {message}", file=sys.stderr)
    return EXIT_REFUSED
