"""An engine process: commands in, one step, one batch of events out, until its parent is gone or ends it."""

import ctypes
import os
from dataclasses import dataclass, field

import msgspec
import structlog
import zmq

from trefoil import wire
from trefoil.engine.engine import Engine
from trefoil.engine.startup import start
from trefoil.logs import configure_logs
from trefoil_models.config_keys import CheckpointError
from trefoil_models.tokenizer import TokenizerError

log = structlog.get_logger()

IDLE_POLL_MS = 500
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
EXIT_REFUSED = 3
EXIT_FAILED = 4


@dataclass(slots=True)
class Line:
    """The engine's end of the wire."""

    inbox: "zmq.Socket[bytes]"
    outbox: "zmq.Socket[bytes]"
    _encoder: msgspec.msgpack.Encoder = field(default_factory=msgspec.msgpack.Encoder)
    _decoder: msgspec.msgpack.Decoder[wire.Command] = field(
        default_factory=lambda: msgspec.msgpack.Decoder(wire.Command)
    )

    def say(self, message: wire.Message) -> None:
        self.outbox.send(self._encoder.encode(message))

    def commands(self, wait_ms: int) -> list[wire.Command]:
        """All that has arrived; waits for the first one."""
        commands: list[wire.Command] = []
        while self.inbox.poll(wait_ms if not commands else 0):
            commands.append(self._decoder.decode(self.inbox.recv()))
        return commands


def serve(line: Line, engine: Engine, parent: int) -> None:
    """Turn after turn while the parent lives."""
    while os.getppid() == parent:
        commands = line.commands(0 if engine.has_work else IDLE_POLL_MS)
        events = obey(engine, commands)
        if engine.has_work:
            events += engine.step()
        if commands or events:
            line.say(wire.Batch(events, engine.stats()))
            if not engine.has_work:
                engine.check_books()


def obey(engine: Engine, commands: list[wire.Command]) -> list[wire.Event]:
    """Hand commands over; what they bring at once."""
    events: list[wire.Event] = []
    for command in commands:
        match command:
            case wire.Abort():
                engine.abort(command)
            case wire.LoadAdapter():
                engine.load_adapter(command)
            case wire.UnloadAdapter():
                engine.unload_adapter(command)
            case _:
                events += engine.submit(command)
    return events


def keep_memory() -> None:
    """What a step frees the next one needs: the kernel would take it and clear it anew each time (5 % of a pass)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's, not musl's
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def run(spec: wire.EngineSpec, parent: int) -> int:
    """Run one engine until its parent is gone; the exit status, 3 where the model was refused."""
    configure_logs(as_json=spec.log_json)
    keep_memory()
    context = zmq.Context()
    inbox, outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    for socket, address in ((inbox, spec.inbox), (outbox, spec.outbox)):
        socket.set_hwm(0)
        socket.connect(address)
    line = Line(inbox, outbox)
    try:
        engine = start(spec, line.say)
    except (CheckpointError, TokenizerError) as error:
        line.say(wire.Refused(str(error)))
        context.destroy(linger=2000)
        return EXIT_REFUSED
    try:
        serve(line, engine, parent)
    except Exception:
        log.exception("engine_failed", model=spec.name)  # the fleet fails our requests and starts us again
        return EXIT_FAILED
    return 0
