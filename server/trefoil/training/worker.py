"""The training worker: claims jobs under leases, looks through their files, and runs one trainer process at a time.

A job outlives any worker: what is claimed and not ended returns to the queue when its lease is over.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import sqlalchemy as sa
import structlog

from trefoil.errors import FileNotFound, InvalidRequest, InvalidSetting
from trefoil.logs import configure_logs
from trefoil.rows import RowError
from trefoil.store.jobs import Claim, State, Want
from trefoil.store.store import Store
from trefoil.training.autos import resolve, width_of
from trefoil.training.folders import job_folder
from trefoil.training.sources import Sources
from trefoil.wire import WorkerSpec
from trefoil_models.config_keys import CheckpointError
from trefoil_models.tokenizer import TokenizerError

log = structlog.get_logger()

POLL_S = 0.3
PR_SET_PDEATHSIG = 1
EXIT_USAGE = 2
EXIT_LET_GO = 75
"""EX_TEMPFAIL: the trainer was told to stop and has saved its state."""
GRACE_S = 120.0
"""For a step and a checkpoint, between being told to stop and being killed."""
DATABASE_AWAY_S = 3.0


class TrainerGone(Exception):
    """The lease is another's now."""


class Worker:
    """One worker of one database. `stopping` is set from outside to let go of everything."""

    def __init__(self, store: Store, spec: WorkerSpec, stopping: threading.Event) -> None:
        self.store, self.spec, self.stopping = store, spec, stopping
        self.name = f"{socket.gethostname()}-{os.getpid()}"
        self._expects_jobs = not spec.is_embedded
        self._ready: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Work until told to stop. Trainers are children of this thread and die with it."""
        looking = threading.Thread(target=self._each, args=(State.VALIDATING, self.look_through), name="looking")
        looking.start()
        try:
            self._each(State.QUEUED, self.train)
        finally:
            looking.join()
            if self._ready is not None:
                self._ready.kill()
                self._ready.wait()

    def look_through(self, claim: Claim) -> None:
        """Read a job's files as the trainer will and settle its numbers; a bad line fails it."""
        self._expects_jobs = True
        try:
            spec = self.store.jobs.get(claim.job_id).spec
            sources = Sources.open(self.store, spec)
            with self._beating(claim):
                num_examples, num_rows = sources.count()
        except (RowError, FileNotFound) as error:
            self.store.jobs.fail(claim, "invalid_training_file", str(error), param="training_file")
            return
        except (CheckpointError, TokenizerError, InvalidRequest) as error:
            self.store.jobs.fail(claim, "invalid_model", str(error), param="model")
            return
        known = resolve(sources.given, num_examples=num_examples, width=width_of(sources.folder))
        self.store.jobs.log(
            claim, f"Files validated, {num_examples} examples of {num_rows} tokens; moving job to queued state"
        )
        self.store.jobs.resolve(claim, msgspec.structs.replace(spec, resolved=msgspec.to_builtins(known)))

    def train(self, claim: Claim) -> None:
        """Run a trainer to its end, whatever that is."""
        num_killed = oom_kills()
        trainer = self._start(claim)
        log.info("training", job=claim.job_id, attempt=claim.attempt, pid=trainer.pid)
        try:
            self._watch(trainer, claim)
        except TrainerGone:
            log.warning("lease_lost", job=claim.job_id, attempt=claim.attempt)
            return
        finally:
            if trainer.poll() is None:
                trainer.kill()
                trainer.wait()
        log.info("trainer_ended", job=claim.job_id, status=trainer.returncode)
        self._conclude(claim, trainer.returncode, was_out_of_memory=oom_kills() > num_killed)

    def _conclude(self, claim: Claim, status: int, *, was_out_of_memory: bool) -> None:
        if status == 0 or status == EXIT_LET_GO:  # after 0 the job is over already and nothing is let go of
            self.store.jobs.release(claim)
        elif was_out_of_memory:
            message = "the machine ran out of memory; train with smaller batches, shorter texts or LoRA"
            self.store.jobs.fail(claim, "out_of_memory", message)
        else:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
            self.store.jobs.release(claim, f"The trainer {how}; the job goes on from its last checkpoint")
        if self.store.jobs.get(claim.job_id).state in (State.SUCCEEDED, State.CANCELLED):
            shutil.rmtree(job_folder(self.store.folder, claim.job_id), ignore_errors=True)

    def _start(self, claim: Claim) -> "subprocess.Popen[bytes]":
        """Hand the job to the trainer that is ready, or to a new one."""
        trainer = self._ready or _new_trainer()
        self._ready = None
        assert trainer.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            trainer.stdin.write(msgspec.json.encode((self.spec, claim)))
            trainer.stdin.close()
        return trainer

    def _get_ready(self) -> None:
        """Have a trainer that has loaded what it needs and waits for its job: loading takes seconds.

        A worker inside a server waits for its first job with that, to keep out of the engines' way.
        """
        if self._expects_jobs and (self._ready is None or self._ready.poll() is not None):
            self._ready = _new_trainer()

    def _watch(self, trainer: "subprocess.Popen[bytes]", claim: Claim) -> None:
        """Keep the lease while the trainer runs, and tell it once when to stop. Raises TrainerGone."""
        told_at, beat_at = 0.0, 0.0
        while trainer.poll() is None:
            moment = time.monotonic()
            if moment - beat_at > self.store.jobs.lease_s / 4:
                beat_at = moment
                want = self.store.jobs.beat(claim)
            else:
                want = self.store.jobs.wanted(claim)
            if want is None:
                self._leave(trainer, claim)
                return
            if not told_at and (want != Want.RUN or self.stopping.is_set()):
                trainer.send_signal(signal.SIGTERM)
                told_at = moment
            if told_at and moment - told_at > GRACE_S:
                trainer.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                trainer.wait(POLL_S)

    def _leave(self, trainer: "subprocess.Popen[bytes]", claim: Claim) -> None:
        """The job is not ours any more: ended by its trainer, which may leave in peace, or another worker's.

        Raises TrainerGone.
        """
        if not self.store.jobs.get(claim.job_id).state.is_over:
            raise TrainerGone
        trainer.wait(GRACE_S)

    def _each(self, state: State, work: Callable[[Claim], None]) -> None:
        """Claim and work, one after the other; a database that is away is asked again."""
        while not self.stopping.is_set():
            try:
                claim = self.store.jobs.claim(self.name, state)
                if claim is not None:
                    work(claim)
                    continue
                if state == State.QUEUED:
                    self._get_ready()
                self.stopping.wait(POLL_S)
            except sa.exc.OperationalError as error:
                log.warning("database_away", why=str(error.orig), retry_s=DATABASE_AWAY_S)
                self.stopping.wait(DATABASE_AWAY_S)

    @contextlib.contextmanager
    def _beating(self, claim: Claim) -> Iterator[None]:
        """Keep the lease from a thread of its own."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self.store.jobs.lease_s / 4):
                self.store.jobs.beat(claim)

        thread = threading.Thread(target=beat, name="beating")
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _new_trainer() -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-m", "trefoil.training.trainer"], stdin=subprocess.PIPE)


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory: in this container where it counts, else in all."""
    for path, key in ((Path("/sys/fs/cgroup/memory.events"), "oom_kill"), (Path("/proc/vmstat"), "oom_kill")):
        if path.is_file():
            counts = dict(line.split()[:2] for line in path.read_text().splitlines())
            if key in counts:
                return int(counts[key])
    return 0


def run(spec: WorkerSpec) -> int:
    """Work until SIGTERM or SIGINT; the exit status, 2 where there is nowhere to find work."""
    configure_logs(as_json=spec.log_json)
    stopping = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    try:
        store = Store.open(spec.database, Path(spec.data_dir), lease_s=spec.lease_s)
    except InvalidSetting as error:
        print(f"trefoil: {error}", file=sys.stderr)
        return EXIT_USAGE
    try:
        log.info("worker_ready", data=spec.data_dir)
        Worker(store, spec, stopping).run()
    finally:
        store.close()
    return 0


def main() -> None:
    """A worker whose spec comes by standard input; a server's own ends with it and lets its engines go first."""
    spec = msgspec.json.decode(sys.stdin.buffer.read(), type=WorkerSpec)
    if spec.is_embedded:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.nice(5)
    sys.exit(run(spec))


if __name__ == "__main__":
    main()
