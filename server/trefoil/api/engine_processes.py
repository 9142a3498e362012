"""The API's hold on engine processes: forks of one fork server, which is started when an engine is first asked for."""

import asyncio
import contextlib
import itertools
import os
import socket
import sys
from dataclasses import dataclass

import msgspec

from trefoil import wire


@dataclass(frozen=True, slots=True)
class EngineProcess:
    """One engine process. `ended` holds its exit status, or minus the signal that ended it."""

    number: int
    ended: "asyncio.Future[int]"


class EngineProcesses:
    """All engine processes of one server, and the fork server that they come from."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._running: dict[int, EngineProcess] = {}
        self._server: asyncio.subprocess.Process | None = None
        self._line: socket.socket | None = None
        self._listening: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    async def start(self, spec: wire.EngineSpec) -> EngineProcess:
        """A new engine process."""
        async with self._starting:
            if self._line is None:
                await self._start_server()
        process = EngineProcess(next(self._numbers), asyncio.get_running_loop().create_future())
        self._running[process.number] = process
        await self._say(wire.Fork(process.number, spec))
        return process

    async def kill(self, process: EngineProcess) -> None:
        """End a process now; returns when it is gone."""
        if not process.ended.done():
            await self._say(wire.Kill(process.number))
            await asyncio.wait([process.ended])

    async def stop(self) -> None:
        """End the fork server, and with it whatever still runs."""
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                self._server.kill()
        if self._listening is not None:
            await self._listening

    async def _start_server(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._server = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "trefoil.engine.fork_server", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={"THP_MEM_ALLOC_ENABLE": "1", **os.environ},  # torch asks for huge pages for what is large
            )
        self._line = ours
        self._listening = asyncio.create_task(self._listen(ours, self._server), name="listen-fork-server")

    async def _say(self, command: wire.Fork | wire.Kill) -> None:
        """Send a command; where the server is dying, the end of all its engines is the answer."""
        if self._line is not None:
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_sendall(self._line, msgspec.msgpack.encode(command))

    async def _listen(self, line: socket.socket, server: asyncio.subprocess.Process) -> None:
        """Tell of every end, until the server is gone and its engines with it."""
        loop, decoder = asyncio.get_running_loop(), msgspec.msgpack.Decoder(wire.Ended)
        with contextlib.suppress(OSError):
            while message := await loop.sock_recv(line, wire.LONGEST_FORK):
                ended = decoder.decode(message)
                self._running.pop(ended.number).ended.set_result(ended.status)
        status = await server.wait()
        line.close()
        self._line = None
        for process in self._running.values():
            process.ended.set_result(status)
        self._running.clear()
