"""A store and real workers on it, for tests of what becomes of jobs."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from e2e.serving import eventually
from trefoil.store.jobs import Job, Spec, State
from trefoil.store.store import Store

CHATS = [
    {"messages": [{"role": "user", "content": f"what is {n}?"}, {"role": "assistant", "content": f"{n} is {n * n}"}]}
    for n in range(8)
]
QUICK = {"n_epochs": 2, "batch_size": 2, "learning_rate": 1e-2}
LEASE_S = 2.0


class Shop:
    """A store and the workers on it."""

    def __init__(self, url: str, data: Path, base: Path) -> None:
        self.url, self.data, self.base = url, data, base
        self.store = Store.open(url, data, lease_s=LEASE_S)
        self.workers: list[subprocess.Popen[bytes]] = []

    def start_worker(self, *before: str) -> "subprocess.Popen[bytes]":
        """One more worker; `before` is a command that ends by becoming what follows it."""
        flags = ["--lease-seconds", str(LEASE_S), "--checkpoint-seconds", "0.2"]
        where = ["--data-dir", str(self.data), "--database-url", self.url]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}  # two threads on so small a model only wait for each other
        worker = subprocess.Popen([*before, sys.executable, "-m", "trefoil", "worker", *where, *flags], env=env)
        self.workers.append(worker)
        return worker

    def kill(self, name: str | None) -> None:
        """Kill the worker of this name, if there is one."""
        for worker in list(self.workers):
            if name is not None and name.endswith(f"-{worker.pid}"):
                worker.kill()
                worker.wait()
                self.workers.remove(worker)

    def upload(self, rows: list[dict[str, Any]]) -> str:
        path = self.data / "upload"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        with path.open("rb") as source:
            return self.store.files.add(source, filename="train.jsonl", purpose="fine-tune").id

    def submit(self, rows: list[dict[str, Any]] | None = None, method: str = "supervised", **given: Any) -> Job:
        validation, judge = given.pop("validation", None), given.pop("judge", None)
        spec = Spec(
            judge=None if judge is None else str(judge),
            model="tiny",
            base=str(self.base),
            method=method,
            training_file=self.upload(CHATS if rows is None else rows),
            validation_file=None if validation is None else self.upload(validation),
            hyperparameters={**QUICK, **given},
            seed=7,
            suffix="mine",
        )
        return self.store.jobs.create(spec)

    def state(self, job: Job) -> State:
        return self.store.jobs.get(job.id).state

    def wait(self, job: Job, *states: State, within_s: float = 90) -> Job:
        eventually(
            lambda: self.state(job) in (states or [state for state in State if state.is_over]), within_s=within_s
        )
        return self.store.jobs.get(job.id)

    def reach(self, job: Job, step: int) -> None:
        """Wait until a step is told, or the job over."""
        jobs = self.store.jobs
        eventually(lambda: jobs.last_step(job.id) >= step or self.state(job).is_over, within_s=90)

    def weights(self, job: Job) -> str:
        """A hash of what the job made."""
        (model,) = [model for model in self.store.catalog.all() if model.job_id == job.id and model.step is None]
        return sha256(next(Path(model.folder).glob("*.safetensors")).read_bytes()).hexdigest()

    def steps(self, job: Job) -> list[int]:
        return [event.data["step"] for event in self.store.jobs.events(job.id) if event.type == "metrics"]


@contextmanager
def open_shop(url: str, data: Path, base: Path, *, num_workers: int = 1) -> Iterator[Shop]:
    data.mkdir(exist_ok=True)
    shop = Shop(url, data, base)
    with closing(shop.store):
        for _ in range(num_workers):
            shop.start_worker()
        try:
            yield shop
        finally:
            for worker in shop.workers:
                worker.kill()
                worker.wait()
