"""How much of the machine others used while we measured: with two cores, one busy neighbour makes a time worthless."""

import os
import time
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
QUIET_CORES = 0.2
"""Below this, a run counts as undisturbed."""

MOMENT_S = 1.0


class Neighbours:
    """Watches from its making to `cores()`; our own processes are this one and all that descend from it."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._busy, self._own = busy_s(), own_s()

    def cores(self) -> float:
        """Cores that others kept busy since, on average."""
        others_s = (busy_s() - self._busy) - (own_s() - self._own)
        return max(others_s, 0.0) / (time.perf_counter() - self._started)


def wait_for_quiet(limit_s: float) -> None:
    """Return once others have left the machine alone for a moment, or after `limit_s` in any case."""
    started = time.perf_counter()
    while time.perf_counter() - started < limit_s:
        neighbours = Neighbours()
        time.sleep(MOMENT_S)
        if neighbours.cores() < QUIET_CORES:
            return


def busy_s() -> float:
    """Processor seconds that all processes have used: the first line of proc_stat(5) without idle and iowait."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = Path("/proc/stat").read_text().split()[1:9]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / TICKS_PER_S


def own_s() -> float:
    """Processor seconds of our processes, with those of children that have ended and were waited for."""
    parents, seconds = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended just now
            continue
        parents[int(path.parent.name)] = int(fields[1])
        seconds[int(path.parent.name)] = sum(map(int, fields[11:15])) / TICKS_PER_S
    return sum(seconds[pid] for pid in parents if _descends(pid, parents))


def cpu_s(pid: int) -> float:
    """Processor seconds of one process, its children not counted."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _descends(pid: int, parents: dict[int, int]) -> bool:
    while pid in parents and pid != os.getpid():
        pid = parents[pid]
    return pid == os.getpid()
