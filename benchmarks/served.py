"""`trefoil serve` as a child process on a free loopback port: started, listened to, ended by SIGTERM."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue

from neighbours import cpu_s

START_LIMIT_S = 120.0
STOP_LIMIT_S = 60.0
URL = re.compile(r"event=listening.*\burl=(\S+)")


class ServerFailed(Exception):
    """The server did not come up, or did not end well."""


@dataclass(slots=True)
class Served:
    """A running server. `started_s` is when its process was asked for, by time.perf_counter()."""

    process: subprocess.Popen[str]
    started_s: float
    url: str = ""
    log: list[str] = field(default_factory=list)
    _lines: SimpleQueue[str] = field(default_factory=SimpleQueue)

    def read_log(self) -> None:
        """Hand on every line until the server closes its end."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            self._lines.put(line)

    def wait_for(self, pattern: str | re.Pattern[str]) -> re.Match[str]:
        """The next line of the log that has it. Raises ServerFailed where the server ends, or takes too long."""
        limit_s = time.perf_counter() + START_LIMIT_S
        while time.perf_counter() < limit_s:
            try:
                line = self._lines.get(timeout=0.5)
            except Empty:
                if self.process.poll() is not None:
                    break
                continue
            if found := re.search(pattern, line):
                return found
        raise ServerFailed(f"no {pattern!r} from the server; its last lines:\n{''.join(self.log[-10:])}")

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds so far of the API process and of what it started: fork server, engine, worker."""
        api = self.process.pid
        return {"api": cpu_s(api), "engine": sum(map(cpu_s, descendants(api)))}


@contextmanager
def serve(arguments: Sequence[str], *, before: Sequence[str] = ()) -> Iterator[Served]:
    """Run `trefoil serve` with these arguments, from the line that it listens to the end of the block.

    `before` goes between the interpreter and `-m trefoil`. Raises ServerFailed.
    """
    started_s = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *before, "-m", "trefoil", "serve", *arguments, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    served = Served(process, started_s)
    reader = threading.Thread(target=served.read_log, daemon=True)
    reader.start()
    try:
        served.url = served.wait_for(URL)[1].strip('"')
        yield served
        process.send_signal(signal.SIGTERM)
        if status := process.wait(STOP_LIMIT_S):
            raise ServerFailed(f"the server ended with status {status}:\n{''.join(served.log[-10:])}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        reader.join(STOP_LIMIT_S)


def descendants(pid: int) -> list[int]:
    """A process's children, theirs, and so on."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [other for child in children for other in (child, *descendants(child))]


def environment() -> dict[str, str]:
    """Nothing is downloaded; threads wait as each program has them wait."""
    return {"HF_HUB_OFFLINE": "1", **os.environ}
