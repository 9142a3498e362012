"""The API's hold on engine processes: forks of a fork server, adopted here, watched and ended.

The fork server runs while engines are being started and leaves when the last one is.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec

from trefoil import wire

PR_SET_CHILD_SUBREAPER = 36


def compute_environment() -> dict[str, str]:
    """Ours, and where it says nothing: huge pages for what is large, and threads that spin for half a millisecond.
    The ranks of one model meet on this host alone.

    A thread that slept takes 50 us to wake, and a pass over one text has 50 places to wait. Spinning for long, as
    OpenMP would by itself, takes the processor from the API.
    """
    waits = {} if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": "30000"}
    return {"THP_MEM_ALLOC_ENABLE": "1", "GLOO_SOCKET_IFNAME": "lo", **waits, **os.environ}


class EngineNotStarted(Exception):
    """The fork server did not start, or ended before it made the engine."""


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """A running engine. `ended` will hold its exit status, or minus the signal that ended it."""

    pid: int
    ended: "asyncio.Future[int]"

    @classmethod
    def adopt(cls, pid: int) -> "EngineProcess":
        """Watch a process that has become our child."""
        loop = asyncio.get_running_loop()
        process, pidfd = cls(pid, loop.create_future()), os.pidfd_open(pid)

        def bury() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            process.ended.set_result(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

        loop.add_reader(pidfd, bury)
        return process

    async def kill(self) -> None:
        """End it now; returns when it is gone."""
        if not self.ended.done():
            os.kill(self.pid, signal.SIGKILL)
            await asyncio.wait([self.ended])


class EngineProcesses:
    """Starts engine processes."""

    def __init__(self) -> None:
        self._server: ForkServer | None = None
        self._num_starting = 0

    async def start(self, spec: wire.EngineSpec) -> EngineProcess:
        """A new engine process. Raises EngineNotStarted."""
        async with self._fork_server() as server:
            return await server.fork(spec)

    @contextlib.asynccontextmanager
    async def _fork_server(self) -> "AsyncIterator[ForkServer]":
        """One for all who start engines at the same time."""
        if self._server is None or self._server.is_gone:
            self._server = ForkServer()
        server = self._server
        self._num_starting += 1
        become_subreaper(True)
        try:
            yield server
        finally:
            self._num_starting -= 1
            if self._num_starting == 0:
                become_subreaper(False)  # nobody else's orphans are ours
                self._server = None
                await server.close()


class ForkServer:
    """One fork server's life; its process starts at the first question."""

    def __init__(self) -> None:
        self._forked: dict[int, asyncio.Future[EngineProcess]] = {}
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._line.setblocking(False)
        self._life = asyncio.create_task(self._live(theirs), name="fork-server")

    @property
    def is_gone(self) -> bool:
        return self._life.done()

    async def fork(self, spec: wire.EngineSpec) -> EngineProcess:
        """An engine as our child. Raises EngineNotStarted."""
        number = len(self._forked)
        self._forked[number] = asyncio.get_running_loop().create_future()
        with contextlib.suppress(OSError):  # its end is the answer
            await asyncio.get_running_loop().sock_sendall(self._line, msgspec.msgpack.encode(wire.Fork(number, spec)))
        return await self._forked[number]

    async def close(self) -> None:
        """Let it go; an engine that is not forked by now never will be."""
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)
        await self._life

    async def _live(self, theirs: socket.socket) -> None:
        """Run the process until it ends or the line is closed; who waits for an engine then hears why there is none."""
        try:
            with self._line, theirs:
                why = f"the fork server ended with status {await self._serve(theirs)}"
        except OSError as error:
            why = f"the fork server did not start: {error.strerror}"
        for future in self._forked.values():
            if not future.done():
                future.set_exception(EngineNotStarted(why))

    async def _serve(self, theirs: socket.socket) -> int:
        """The process's exit status. Raises OSError where it cannot be started."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "trefoil.engine.fork_server", str(theirs.fileno())),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=compute_environment(),
        )
        theirs.close()
        with contextlib.suppress(OSError):  # a line that breaks has ended too
            while message := await asyncio.get_running_loop().sock_recv(self._line, wire.LONGEST_FORK):
                forked = msgspec.msgpack.decode(message, type=wire.Forked)
                engine, future = EngineProcess.adopt(forked.pid), self._forked[forked.number]
                if future.cancelled():
                    await engine.kill()
                else:
                    future.set_result(engine)
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()


def become_subreaper(is_one: bool) -> None:
    """Be the parent of descendants whose own parent ends, or no longer (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(is_one))
