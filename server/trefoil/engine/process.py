"""An engine process: commands in, one step, one batch of events out, until its parent is gone or ends it."""

import ctypes
import os
import signal
from pathlib import Path

import structlog

from trefoil import wire
from trefoil.engine.engine import Engine
from trefoil.engine.lines import ApiLine, Following, Leading, Line
from trefoil.engine.ranks import ALONE, Ranks, Together, muster
from trefoil.engine.startup import start
from trefoil.logs import configure_logs
from trefoil_models.config_keys import CheckpointError
from trefoil_models.tokenizer import TokenizerError

log = structlog.get_logger()

IDLE_POLL_MS = 500
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
EXIT_REFUSED = 3
EXIT_FAILED = 4


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
    if spec.num_ranks == 1:
        return answer(spec, ALONE, parent)
    ranks = muster(spec.name, spec.num_ranks, meeting=Path(spec.inbox.removeprefix("ipc://")).with_name("ranks"))
    return follow(spec, ranks) if ranks.share.rank else answer(spec, ranks, parent)


def answer(spec: wire.EngineSpec, ranks: Ranks, parent: int) -> int:
    """Be the engine that the API speaks to."""
    line = ApiLine(spec.inbox, spec.outbox)
    try:
        engine = start(spec, line.say, ranks)
    except (CheckpointError, TokenizerError) as error:
        line.say(wire.Refused(str(error)))
        line.close(linger_ms=2000)
        return EXIT_REFUSED
    return live(spec, Leading(line, ranks.pipes) if isinstance(ranks, Together) else line, engine, parent)


def follow(spec: wire.EngineSpec, ranks: Together) -> int:
    """Be another rank of one."""
    leader = os.getppid()
    line = Following(ranks.pipes[0])
    try:
        engine = start(spec, line.say, ranks)
    except (CheckpointError, TokenizerError) as error:
        ranks.refuse(str(error))
        signal.pause()  # the first rank tells the API and ends, and this one with it
    return live(spec, line, engine, leader)


def live(spec: wire.EngineSpec, line: Line, engine: Engine, parent: int) -> int:
    """Serve to the end; the exit status."""
    try:
        serve(line, engine, parent)
    except Exception:
        log.exception("engine_failed", model=spec.name)  # the fleet fails our requests and starts us again
        return EXIT_FAILED
    return 0
