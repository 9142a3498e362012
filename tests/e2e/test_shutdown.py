"""Signals: running streams end whole where there is time, the exit status is 0, and no process stays behind."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from e2e.asking import short, streaming
from e2e.serving import Server, descendants, eventually, is_alive, launch, serving

pytestmark = pytest.mark.slow

FLAGS = ("--dtype", "float32", "--max-num-seqs", "8", "--kv-cache-memory", "64MiB")


@contextmanager
def served(folders: dict[str, Path], log: Path, *flags: str) -> Iterator[Server]:
    with serving(log, f"a={folders['a']}", *FLAGS, *flags) as server:
        yield server


def refuses_connections(server: Server) -> bool:
    try:
        httpx.get(f"{server.url}/health", timeout=5)
    except httpx.ConnectError:
        return True
    return False


def test_sigterm_lets_a_running_stream_end_whole(folders: dict[str, Path], log: Path) -> None:
    with served(folders, log) as server:
        engines = list(server.engines().values())
        with streaming(server, max_tokens=1500) as events:
            server.signal(signal.SIGTERM)
            eventually(lambda: refuses_connections(server), within_s=10)
            *_, last, done = events.rest()
        assert done == "[DONE]"
        assert last["choices"][0]["finish_reason"] == "length"
        assert server.exit_status(within_s=15) == 0
        assert not any(map(is_alive, engines))


def test_a_stream_that_outlasts_the_timeout_is_cut_and_the_exit_is_clean(folders: dict[str, Path], log: Path) -> None:
    with served(folders, log, "--shutdown-timeout", "1") as server, streaming(server) as events:
        server.signal(signal.SIGTERM)
        begun = time.monotonic()
        assert server.exit_status(within_s=15) == 0
        assert time.monotonic() - begun < 8
        assert "Traceback" not in server.log.read_text()
        last = events.rest()[-1]
        assert last["error"]["code"] == "engine_lost"
        assert "shutting down" in last["error"]["message"]


def test_a_second_signal_does_not_wait(folders: dict[str, Path], log: Path) -> None:
    with served(folders, log) as server, streaming(server):
        server.signal(signal.SIGTERM)
        eventually(lambda: refuses_connections(server), within_s=10)
        server.signal(signal.SIGTERM)
        assert server.exit_status(within_s=10) == 0
        assert "Traceback" not in server.log.read_text()


def test_ctrl_c_while_idle_leaves_nothing(folders: dict[str, Path], log: Path) -> None:
    with served(folders, log) as server:
        engines = list(server.engines().values())
        assert short(server).is_success
        with httpx.Client() as idle:
            idle.get(f"{server.url}/health")  # a connection kept alive is no reason to wait
            server.signal(signal.SIGINT)
            assert server.exit_status(within_s=10) == 0
        assert engines
        assert not any(map(is_alive, engines))
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_while_models_load_ends_the_server_promptly(
    folders: dict[str, Path], log: Path, number: signal.Signals
) -> None:
    with launch(log, f"a={folders['a']}", f"b={folders['b']}", *FLAGS) as server:
        eventually(lambda: descendants(server.process.pid), within_s=30)
        engines = descendants(server.process.pid)
        server.signal(number)
        assert server.exit_status(within_s=5) == 0
        eventually(lambda: not any(map(is_alive, engines)), within_s=5)
        assert "Traceback" not in server.log.read_text()
