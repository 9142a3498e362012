"""The trainer process: one attempt at one job, from its last checkpoint to its model.

Started by the worker as `python -m trefoil.training.trainer`, maybe before there is a job for it: the spec comes as
JSON on standard input. It dies with the worker. SIGTERM: save after this step and leave with status 75.
"""

import ctypes
import errno
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import msgspec
import structlog
import torch
from safetensors import SafetensorError
from setproctitle import setproctitle

from trefoil.errors import TrefoilError
from trefoil.logs import configure_logs
from trefoil.rows import RowError
from trefoil.store.jobs import Claim
from trefoil.store.store import Store
from trefoil.training.attempt import Attempt, LeaseLost
from trefoil.training.loop import DivergedError
from trefoil.training.saved_state import StateError
from trefoil.training.worker import EXIT_LET_GO, PR_SET_PDEATHSIG
from trefoil.wire import WorkerSpec
from trefoil_models.config_keys import CheckpointError
from trefoil_models.lora import TargetError
from trefoil_models.tokenizer import TokenizerError

log = structlog.get_logger()

BAD_INPUT = (CheckpointError, TokenizerError, TargetError, TrefoilError, RowError)
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "DefaultCPUAllocator")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Stop:
    """Set by SIGTERM, read after each step."""

    def __init__(self) -> None:
        self.is_set = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.is_set = True


def main() -> None:
    """Run one attempt; 0 where the job is over, 75 where it was let go of."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    stop = Stop()
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setproctitle("trefoil trainer, ready")
    given = sys.stdin.buffer.read()
    if not given or os.getppid() != parent:
        sys.exit(EXIT_LET_GO)  # the worker left without a job for us, or died before we asked to die with it
    spec, claim = msgspec.json.decode(given, type=tuple[WorkerSpec, Claim])
    setproctitle(f"trefoil trainer {claim.job_id}")
    configure_logs(as_json=spec.log_json)
    store = Store.open(spec.database, Path(spec.data_dir), lease_s=spec.lease_s)
    try:
        is_over = attempt(store, spec, claim, stop)
    finally:
        store.close()
    sys.exit(0 if is_over else EXIT_LET_GO)


def attempt(store: Store, spec: WorkerSpec, claim: Claim, stop: Stop) -> bool:
    """Train; False where it was stopped first. What cannot get better by another attempt fails the job."""
    try:
        return Attempt(store, spec, claim, lambda: stop.is_set).run()
    except LeaseLost:
        return False
    except DivergedError as error:
        failure = "diverged", str(error)
    except StateError as error:
        failure = "checkpoint_unusable", str(error)
    except BAD_INPUT as error:
        failure = "invalid_job", str(error)
    except (MemoryError, RuntimeError) as error:
        if not _is_memory(error):
            raise
        why = str(error).splitlines()[0] if str(error) else "no memory is left"
        failure = "out_of_memory", f"out of memory ({why}); train with smaller batches, shorter texts or LoRA"
    except (OSError, SafetensorError) as error:
        if not _is_disk(error):
            raise
        failure = "disk_full", "no space is left where jobs are kept; the last checkpoint is untouched"
    log.error("job_failed", job=claim.job_id, code=failure[0], why=failure[1])
    store.jobs.fail(claim, *failure)
    return True


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in str(error) for sign in NO_MEMORY)


def _is_disk(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in DISK_FULL
    return any(f"os error {number}" in str(error) or f"code: {number}" in str(error) for number in DISK_FULL)


if __name__ == "__main__":
    main()
