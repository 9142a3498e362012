"""Whom a command asks: the server of `--url`, or one of its own on a private Unix socket that ends with it."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from trefoil.errors import InvalidSetting
from trefoil_client import Retries, Trefoil, TrefoilError

STOP_S = 10.0
POLL_S = 0.05


class NotStarted(TrefoilError):
    """The command's own server said why it does not run the model."""


@contextmanager
def asking(url: str | None, api_key: str | None, model: str | None) -> Iterator[tuple[Trefoil, str | None]]:
    """A client, and the name that it has to give for the model."""
    if url is not None:
        if not url.startswith(("http://", "https://")):
            raise InvalidSetting("--url", url, "an address such as http://127.0.0.1:8000")
        with Trefoil(url, api_key=api_key) as client:
            yield client, model
    else:
        with own_server(model) as client:
            yield client, None


@contextmanager
def own_server(model: str | None, *, data_dir: Path | None = None, device: str = "cpu") -> Iterator[Trefoil]:
    """Serve a folder or Hub id, or the demo models, for this command alone; with a data folder, it trains too.

    Raises NotStarted.
    """
    with tempfile.TemporaryDirectory(prefix="trefoil-") as folder:
        socket, log = Path(folder, "s"), Path(folder, "log")
        data = data_dir or Path(folder)
        flags = ["--uds", str(socket), "--data-dir", str(data), "--database-url", database_in(data)]
        flags += ["--device", device, "--no-access-log", *(["--no-worker"] if data_dir is None else [])]
        command = [sys.executable, "-m", "trefoil", "serve", *([f"model={model}"] if model else []), *flags]
        with log.open("wb") as stderr:
            process = subprocess.Popen(  # noqa: S603 - our own command
                command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True
            )
        try:
            with Trefoil(transport=httpx.HTTPTransport(uds=str(socket)), retries=Retries(most=0)) as client:
                _wait_ready(client, process, log)
                yield client
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def database_in(folder: Path) -> str:
    """The address of a database of this folder's own, whatever the environment says."""
    return f"sqlite:///{folder.absolute() / 'trefoil.db'}"


def _wait_ready(client: Trefoil, process: "subprocess.Popen[bytes]", log: Path) -> None:
    while process.poll() is None:
        try:
            if client.ready().status == "ready":
                return
        except TrefoilError:
            pass  # it does not listen yet
        time.sleep(POLL_S)
    *_, last = ["the model could not be served", *log.read_text(encoding="utf-8", errors="replace").splitlines()]
    raise NotStarted(last.removeprefix("trefoil: "))
