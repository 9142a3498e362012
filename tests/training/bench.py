"""Jobs run in the test's own process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trefoil.store.jobs import Job, Spec, State
from trefoil.store.store import Store
from trefoil.training.attempt import Attempt
from trefoil.training.worker import Worker
from trefoil.wire import WorkerSpec

QUICK = {"n_epochs": 30, "batch_size": 4, "learning_rate": 1e-2}


class Bench:
    """A store, and jobs run in this very process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store.open(f"sqlite:///{folder}/trefoil.db", folder)
        self.spec = WorkerSpec(database=f"sqlite:///{folder}/trefoil.db", data_dir=str(folder))

    def run(self, base: Path, method: str, rows: list[dict[str, Any]], **given: Any) -> Job:
        """Look through, train, and the job as it stands then."""
        job = self.submit(base, method, rows, **given)
        self.train(lambda: False)
        return self.store.jobs.get(job.id)

    def submit(
        self, base: Path, method: str, rows: list[dict[str, Any]], *, judge: Path | None = None, **given: Any
    ) -> Job:
        """A job whose files were looked through."""
        path = self.folder / "rows"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        with path.open("rb") as source:
            file_id = self.store.files.add(source, filename="train.jsonl", purpose="fine-tune").id
        spec = Spec(
            model="tiny",
            base=str(base),
            judge=None if judge is None else str(judge),
            method=method,
            training_file=file_id,
            validation_file=file_id,
            hyperparameters={**QUICK, **given},
            seed=3,
        )
        job = self.store.jobs.create(spec)
        looking = self.store.jobs.claim("looking", State.VALIDATING)
        assert looking is not None
        Worker(self.store, self.spec, None).look_through(looking)  # type: ignore[arg-type]
        return job

    def train(self, is_stopping: Callable[[], bool]) -> None:
        """Run the job that waits, if one does, and let go of it."""
        claim = self.store.jobs.claim("training", State.QUEUED)
        if claim is not None:
            Attempt(self.store, self.spec, claim, is_stopping).run()
            self.store.jobs.release(claim)

    def folder_of(self, job: Job) -> Path:
        """What the job made."""
        assert job.state == State.SUCCEEDED, job.error
        (model,) = [one for one in self.store.catalog.all() if one.job_id == job.id and one.step is None]
        return Path(model.folder)

    def losses(self, job: Job) -> list[float]:
        events = [event.data for event in self.store.jobs.events(job.id) if event.type == "metrics"]
        return [data["train_loss"] for data in events if data and "train_loss" in data]
