"""The fork server: loads torch and the engine's code once; every engine is a fork of it, made in milliseconds.

Started by the API as `python -m trefoil.engine.fork_server FD`, FD being its end of a socket that keeps messages apart:
Fork comes in, Forked goes out. It leaves when the other end closes. The API adopts the engines: each is forked twice,
so that its parent is gone at once and the API, being a subreaper (prctl(2)), becomes it.

Nothing here may start a thread or touch a device: a fork has neither.
"""

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
import time
import warnings

import msgspec
import structlog
from setproctitle import setproctitle

from trefoil import wire
from trefoil.engine import process
from trefoil_kernels.cpu.build import NativeUnavailable, cache_folders, choose_variant, cpu_flags, find_or_build

log = structlog.get_logger()

PR_SET_PDEATHSIG = 1
EXIT_ORPHANED = 5


def serve(line: socket.socket, api: int) -> None:
    """Fork on command until the other end closes."""
    decoder = msgspec.msgpack.Decoder(wire.Fork)
    # from Python 3.12 on: numpy's idle threads are counted, which holds no lock of ours when it forks
    warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
    while message := line.recv(wire.LONGEST_FORK):
        command = decoder.decode(message)
        between = os.fork()
        if between == 0:
            if os.fork() == 0:
                become_engine(command, line, api)
            os._exit(0)
        os.waitpid(between, 0)


def become_engine(command: wire.Fork, line: socket.socket, api: int) -> None:
    """The forked half, which never returns: nothing of the fork server's may run here."""
    status = process.EXIT_FAILED
    try:
        if not is_adopted(api):
            os._exit(EXIT_ORPHANED)
        setproctitle(f"trefoil engine {command.spec.name}")
        with line:
            line.send(msgspec.msgpack.encode(wire.Forked(command.number, os.getpid())))
        status = process.run(command.spec, api)
    except BaseException:
        log.exception("engine_failed", model=command.spec.name)
    finally:
        sys.stderr.flush()
        os._exit(status)


def is_adopted(api: int) -> bool:
    """Wait to become the API's child, and from then on die with it. False where it was gone before."""
    between = os.getppid()
    while os.getppid() == between != api:
        time.sleep(0.001)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == api


def main() -> None:
    """Serve the socket whose number is the only argument."""
    api = os.getppid()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the API drains first, then ends the engines
    setproctitle("trefoil fork server")
    with contextlib.suppress(NativeUnavailable):  # each engine says so, and that torch serves instead
        find_or_build(choose_variant(cpu_flags()), cache_folders())  # once, instead of in each engine
    gc.freeze()  # what is here stays: a collection in an engine would only copy its pages
    with socket.socket(fileno=int(sys.argv[1])) as line:
        serve(line, api)


if __name__ == "__main__":
    main()
