"""The server's own training worker: a child process, started again when it dies, given time to save when we leave."""

import asyncio
import contextlib
import sys
import time

import msgspec
import structlog

from trefoil.settings import Settings
from trefoil.wire import WorkerSpec

log = structlog.get_logger()

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
LEAVE_S = 20.0


async def keep_worker(settings: Settings) -> None:
    """Run a worker until cancelled; then let it save what it is doing."""
    spec = WorkerSpec(
        database=settings.database,
        data_dir=str(settings.data_dir),
        device=settings.device,
        is_embedded=True,
        log_json=settings.log_json,
    )
    backoff = FIRST_BACKOFF_S
    while True:
        started = time.monotonic()
        status = await _run(spec)
        if time.monotonic() - started > LONGEST_BACKOFF_S:
            backoff = FIRST_BACKOFF_S
        log.error("worker_lost", status=status, next_start_s=backoff)
        await asyncio.sleep(backoff)
        backoff = min(backoff * 2, LONGEST_BACKOFF_S)


async def _run(spec: WorkerSpec) -> int:
    """One life of a worker; its exit status."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "trefoil.training.worker", stdin=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(spec))
    process.stdin.close()
    try:
        return await process.wait()
    finally:
        if process.returncode is None:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), LEAVE_S)
    except TimeoutError:
        process.kill()
        await process.wait()
