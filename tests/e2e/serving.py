"""A real `trefoil serve` process for tests: started on a free port, asked, signalled, and ended whatever happens."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

START_S = 60.0
POLL_S = 0.02
ENGINE = "trefoil engine "


class Server:
    """One running server; its standard error lies in `log`."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process, self.log = process, log
        self.url = ""

    @property
    def base_url(self) -> str:
        """What an OpenAI client is given."""
        return f"{self.url}/v1"

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def said(self, text: str) -> bool:
        """Has the server written this to its log?"""
        return text in self.log.read_text(encoding="utf-8")

    def wait_listening(self) -> None:
        """Wait for the port to open, and learn it."""
        pattern = re.compile(r'\burl(?:=|": ")(http[^\s"]+)')  # key=value or JSON
        eventually(lambda: self.process.poll() is not None or pattern.search(self.log.read_text()), within_s=START_S)
        found = pattern.search(self.log.read_text())
        assert found, f"the server did not start:\n{self.log.read_text()}"
        self.url = found[1]

    def wait_ready(self, within_s: float = START_S) -> None:
        """Wait until every model can answer."""
        eventually(lambda: httpx.get(f"{self.url}/ready", timeout=10).status_code == 200, within_s=within_s)

    def engines(self) -> dict[str, int]:
        """Process ids of the engines, by model name."""
        titles = {pid: title(pid) for pid in children(self.process.pid)}
        return {name.removeprefix(ENGINE): pid for pid, name in titles.items() if name.startswith(ENGINE)}

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def exit_status(self, within_s: float) -> int:
        return self.process.wait(timeout=within_s)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 where there are none."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        return sum(s.value for s in samples if s.name == f"trefoil:{name}" and labels.items() <= s.labels.items())

    def is_idle(self) -> bool:
        """No sequence runs or waits and no page is held."""
        gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return all(self.metric(name) == 0 for name in gauges)


def eventually(holds: Callable[[], Any], *, within_s: float) -> None:
    """Ask until it holds; fail at the deadline."""
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(POLL_S)


def command(*arguments: str) -> list[str]:
    """The command line of `trefoil` in this interpreter."""
    return [sys.executable, "-m", "trefoil", *arguments]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The tests' environment without flags of the caller's own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("TREFOIL_")}
    return {**own, **(extra or {})}


@contextmanager
def launch(log: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start `trefoil serve` without waiting for it; it and its engines are gone afterwards.

    Its data lie beside the log; it trains nothing unless `env` says otherwise.
    """
    own = {"TREFOIL_DATA_DIR": str(log.parent / "data"), "TREFOIL_NO_WORKER": "1"}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command("serve", "--port", "0", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=environment({**own, **(env or {})}),
        )
    try:
        yield Server(process, log)
    finally:
        engines = descendants(process.pid)
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        eventually(lambda: not any(is_alive(pid) for pid in engines), within_s=20)


@contextmanager
def serving(log: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start `trefoil serve` and wait until every model can answer."""
    with launch(log, *arguments, env=env) as server:
        server.wait_listening()
        server.wait_ready()
        yield server


@contextmanager
def serving_soundly(log: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """The same, and no bad word is in its log at the end."""
    with serving(log, *arguments, env=env) as server:
        yield server
        assert not any(server.said(f"event={bad}") for bad in ("unhandled", "stream_failed", "engine_lost"))


def children(pid: int) -> list[int]:
    """A process's children; none where it is gone."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(pid: int) -> list[int]:
    """A process's children, theirs, and so on."""
    return [other for child in children(pid) for other in (child, *descendants(child))]


def title(pid: int) -> str:
    """What `ps` shows of a process; nothing where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    """Does a process run? One that nobody reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
