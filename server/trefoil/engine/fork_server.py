"""The fork server: loads torch and the engine's code once; every engine is a fork of it, made in milliseconds.

Started by the API as `python -m trefoil.engine.fork_server FD`, FD being its end of a socket that keeps messages apart:
Fork and Kill come in, Ended goes out. It leaves when the other end closes, and no engine outlives it.

Nothing here may start a thread or touch a device: a fork has neither.
"""

import contextlib
import ctypes
import gc
import os
import selectors
import signal
import socket
import sys

import msgspec
import structlog
from setproctitle import setproctitle

from trefoil import wire
from trefoil.engine import process
from trefoil_kernels.cpu.build import NativeUnavailable, cache_folders, choose_variant, cpu_flags, find_or_build

log = structlog.get_logger()

PR_SET_PDEATHSIG = 1
EXIT_FAILED = 4


class ForkServer:
    """Makes engines on command, and tells when they end."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._decoder = msgspec.msgpack.Decoder(wire.Fork | wire.Kill)
        self._pids: dict[int, int] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(line, selectors.EVENT_READ, None)

    def serve(self) -> None:
        """Until the other end closes."""
        while True:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._bury(key.data, key.fd)
                elif message := self._line.recv(wire.LONGEST_FORK):
                    self._obey(self._decoder.decode(message))
                else:
                    return

    def _obey(self, command: wire.Fork | wire.Kill) -> None:
        if isinstance(command, wire.Fork):
            self._fork(command)
        elif command.number in self._pids:
            os.kill(self._pids[command.number], signal.SIGKILL)

    def _fork(self, command: wire.Fork) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_engine(command.spec, parent)
        self._pids[command.number] = pid
        self._selector.register(os.pidfd_open(pid), selectors.EVENT_READ, command.number)

    def _become_engine(self, spec: wire.EngineSpec, parent: int) -> None:
        """The forked half: never returns, so that nothing of the server's runs here."""
        status = EXIT_FAILED
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            self._selector.close()
            self._line.close()
            setproctitle(f"trefoil engine {spec.name}")
            status = process.run(spec, parent)
        except BaseException:
            log.exception("engine_failed", model=spec.name)
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _bury(self, number: int, pidfd: int) -> None:
        _, status = os.waitpid(self._pids.pop(number), 0)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        self._line.send(msgspec.msgpack.encode(wire.Ended(number, os.waitstatus_to_exitcode(status))))


def main() -> None:
    """Serve the socket whose number is the only argument."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the API drains first, then ends us
    setproctitle("trefoil fork server")
    with contextlib.suppress(NativeUnavailable):  # each engine says so, and that torch serves instead
        find_or_build(choose_variant(cpu_flags()), cache_folders())  # once, instead of in each engine
    gc.freeze()  # what is here stays: a collection in an engine would only copy its pages
    with socket.socket(fileno=int(sys.argv[1])) as line:
        ForkServer(line).serve()


if __name__ == "__main__":
    main()
