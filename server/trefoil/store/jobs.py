"""Training jobs under leases: claimed by one worker at a time, taken over when it dies, ended once.

A job is free while it waits or its lease is over. Whoever claims it gets a number, its attempt; every later word
about the job carries that number and is not heard once another attempt has begun.

    validating_files -> queued -> running -> succeeded | failed | cancelled, and paused from any of the first three;
    what is paused or failed can go on
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec
import sqlalchemy as sa

from trefoil.errors import JobNotFound, WrongState
from trefoil.store.catalog import StoredModel, publish
from trefoil.store.database import event_table, job_table, now
from trefoil.store.files import Page
from trefoil.store.ids import new_id

LEASE_S = 30.0
METRICS = "metrics"
MOST_FRUITLESS = 12
"""Attempts that may die one after the other without a new checkpoint."""


class State(StrEnum):
    VALIDATING = "validating_files"
    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


class Want(StrEnum):
    """What the user wants of a job."""

    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


TOLD: Mapping[Want, str] = {Want.RUN: "resumed", Want.PAUSE: "paused", Want.CANCEL: "cancelled"}
ASKED_OF: Mapping[Want, frozenset[State]] = {
    Want.RUN: frozenset({State.PAUSED, State.FAILED}),
    Want.PAUSE: frozenset({State.VALIDATING, State.QUEUED, State.RUNNING}),
    Want.CANCEL: frozenset({State.VALIDATING, State.QUEUED, State.RUNNING, State.PAUSED}),
}


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be trained. `base`, `adapter` and `judge`, a reward model, are folders; `resolved` has a number for
    every "auto" once known.
    """

    model: str
    base: str
    method: str
    training_file: str
    validation_file: str | None
    hyperparameters: dict[str, Any]
    seed: int
    suffix: str | None = None
    metadata: dict[str, str] | None = None
    adapter: str | None = None
    judge: str | None = None
    resolved: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One job as it stands."""

    id: str
    created_at: float
    finished_at: float | None
    spec: Spec
    state: State
    want: Want
    attempt: int
    fruitless: int
    worker: str | None
    result: dict[str, Any] | None
    error: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a job; later ones have larger ids."""

    id: int
    created_at: float
    level: str
    type: str
    message: str
    data: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A job in one worker's hands."""

    job_id: str
    attempt: int


class Jobs:
    """All jobs of one database."""

    def __init__(self, engine: sa.Engine, *, lease_s: float = LEASE_S) -> None:
        self._engine, self.lease_s = engine, lease_s

    def create(self, spec: Spec) -> Job:
        """A new job, its files still to be looked through."""
        job_id = new_id("ftjob")
        with self._engine.begin() as connection:
            values = {"spec": msgspec.to_builtins(spec), "state": State.VALIDATING, "want": Want.RUN}
            connection.execute(
                job_table.insert().values(id=job_id, created_at=now(connection), attempt=0, fruitless=0, **values)
            )
            _log(connection, job_id, f"Created fine-tuning job: {job_id}")
            _log(connection, job_id, f"Validating training file: {spec.training_file}")
            return _get(connection, job_id)

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        with self._reading() as connection:
            return _get(connection, job_id)

    def list(self, page: Page, *, metadata: Mapping[str, str] | None = None) -> tuple[Sequence[Job], bool]:
        """Some jobs, newest first, and whether there are more. Raises JobNotFound for an unknown `page.after`."""
        with self._reading() as connection:
            query = sa.select(*COLUMNS).order_by(job_table.c.number.desc())
            if page.after is not None:
                query = query.where(job_table.c.number < _number(connection, page.after))
            for key, value in (metadata or {}).items():
                query = query.where(job_table.c.spec["metadata"][key].as_string() == value)
            found = [_job(row) for row in connection.execute(query.limit(page.limit + 1))]
        return found[: page.limit], len(found) > page.limit

    def counts(self) -> dict[State, int]:
        """How many jobs there are in each state."""
        with self._reading() as connection:
            rows = connection.execute(sa.select(job_table.c.state, sa.func.count()).group_by(job_table.c.state))
            found = {State(state): number for state, number in rows}
        return {state: found.get(state, 0) for state in State}

    def uses_file(self, file_id: str) -> bool:
        """Does a job that is not over need this file?"""
        spec = job_table.c.spec
        named = sa.or_(*(spec[key].as_string() == file_id for key in ("training_file", "validation_file")))
        with self._reading() as connection:
            return connection.execute(sa.select(job_table.c.id).where(named, _is_open()).limit(1)).first() is not None

    def ask(self, job_id: str, want: Want) -> Job:
        """Cancel, pause, or go on, from the last saved state also where the job had failed. What waits changes at once,
        what runs at its next step. Raises WrongState.
        """
        with self._engine.begin() as connection:
            job = _get(connection, job_id, for_update=True)
            if job.state not in ASKED_OF[want]:
                raise WrongState(f"the job is {job.state} and cannot be {TOLD[want]} now")
            _set(connection, job_id, want=want)
            if job.state == State.FAILED:
                _set(connection, job_id, finished_at=None, error=sa.null(), fruitless=0)
            if job.worker is None:
                _settle(connection, job, want)
            elif job.want != want:
                _log(connection, job_id, f"The job will {want} after its current step")
            return _get(connection, job_id)

    def claim(self, worker: str, state: State) -> Claim | None:
        """Take the oldest free job that waits to be looked through (VALIDATING) or trained (QUEUED)."""
        with self._reading() as connection:
            if connection.execute(_free(connection, state).limit(1)).first() is None:
                return None  # most of the time: nobody needs the write lock for that
        with self._engine.begin() as connection:
            query = _free(connection, state).order_by(job_table.c.number).limit(1).with_for_update(skip_locked=True)
            job_id: str | None = connection.scalar(query)
            if job_id is None:
                return None
            job = _get(connection, job_id)
            if job.fruitless >= MOST_FRUITLESS:
                error = {"code": "worker_lost", "message": f"{job.fruitless} attempts died without a new checkpoint"}
                _end(connection, job_id, State.FAILED, error=error)
                return None
            running = State.RUNNING if state == State.QUEUED else state
            lease_until = now(connection) + self.lease_s
            _set(
                connection,
                job_id,
                state=running,
                worker=worker,
                attempt=job.attempt + 1,
                fruitless=job.fruitless + 1,
                lease_until=lease_until,
            )
            if job.worker is not None:
                _log(
                    connection, job_id, f"The worker {job.worker} was lost; another one takes the job up", level="warn"
                )
            return Claim(job_id, job.attempt + 1)

    def beat(self, claim: Claim) -> Want | None:
        """Keep the lease; what the user wants, or None where the job is another's now."""
        with self._engine.begin() as connection:
            if not self._holds(connection, claim):
                return None
            _set(connection, claim.job_id, lease_until=now(connection) + self.lease_s)
            return _get(connection, claim.job_id).want

    def wanted(self, claim: Claim) -> Want | None:
        """What the user wants, or None where the job is another's now; only reads."""
        query = sa.select(job_table.c.want).where(_is_held(claim))
        with self._reading() as connection:
            want = connection.scalar(query)
        return None if want is None else Want(want)

    def log(self, claim: Claim, message: str) -> bool:
        """Write a message down; False where the job is another's now."""
        with self._engine.begin() as connection:
            is_heard = self._holds(connection, claim)
            if is_heard:
                _log(connection, claim.job_id, message)
            return is_heard

    def log_metrics(self, claim: Claim, metrics: Iterable[tuple[str, Mapping[str, Any]]]) -> bool:
        """Write messages and their numbers down, all at once; False where the job is another's now."""
        with self._engine.begin() as connection:
            is_heard = self._holds(connection, claim)
            for message, data in metrics if is_heard else ():
                _log(connection, claim.job_id, message, kind=METRICS, data=data)
            return is_heard

    def last_step(self, job_id: str) -> int:
        """The latest step whose metrics are written down; 0 before the first."""
        query = _events(job_id).where(event_table.c.type == METRICS).order_by(event_table.c.id.desc()).limit(1)
        found = self._read_events(job_id, query)
        return int((found[0].data or {}).get("step", 0)) if found else 0

    def resolve(self, claim: Claim, spec: Spec) -> bool:
        """The files are good and every number is known: the job may be trained."""
        with self._engine.begin() as connection:
            if not self._holds(connection, claim):
                return False
            _set(connection, claim.job_id, spec=msgspec.to_builtins(spec), fruitless=0)
            _release(connection, _get(connection, claim.job_id), State.QUEUED)
            return True

    def progressed(self, claim: Claim, message: str, model: StoredModel | None = None) -> bool:
        """A new checkpoint is on disk, and perhaps a model of it; False where the job is another's now."""
        with self._engine.begin() as connection:
            if not self._holds(connection, claim):
                return False
            _set(connection, claim.job_id, fruitless=0)
            if model is not None:
                publish(connection, model)
                _log(connection, claim.job_id, message)
            return True

    def succeed(self, claim: Claim, result: Mapping[str, Any], model: StoredModel) -> bool:
        """Publish the model and end the job in one transaction; False where the job is another's now."""
        with self._engine.begin() as connection:
            if not self._holds(connection, claim):
                return False
            publish(connection, model)
            _log(connection, claim.job_id, f"New fine-tuned model created: {model.name}")
            _end(connection, claim.job_id, State.SUCCEEDED, result=dict(result))
            return True

    def fail(self, claim: Claim, code: str, message: str, *, param: str | None = None) -> bool:
        """End the job with an error; False where the job is another's now."""
        with self._engine.begin() as connection:
            if not self._holds(connection, claim):
                return False
            _end(connection, claim.job_id, State.FAILED, error={"code": code, "message": message, "param": param})
            return True

    def release(self, claim: Claim, message: str | None = None) -> bool:
        """Let go of a job that is not done: it becomes what the user wants, else it waits again."""
        with self._engine.begin() as connection:
            if not self._holds(connection, claim):
                return False
            job = _get(connection, claim.job_id)
            if message is not None:
                _log(connection, claim.job_id, message, level="warn")
            _release(connection, job, State.QUEUED if job.state == State.RUNNING else job.state)
            return True

    def events(self, job_id: str, *, after: int = 0) -> Sequence[Event]:
        """What happened after the event `after`, oldest first. Raises JobNotFound."""
        return self._read_events(job_id, _events(job_id).where(event_table.c.id > after).order_by(event_table.c.id))

    def latest_events(self, job_id: str, *, before: int | None, limit: int) -> tuple[Sequence[Event], bool]:
        """What happened last, newest first, before the event `before`; and whether there is more."""
        query = _events(job_id).order_by(event_table.c.id.desc()).limit(limit + 1)
        found = self._read_events(job_id, query.where(event_table.c.id < before) if before is not None else query)
        return found[:limit], len(found) > limit

    def _read_events(self, job_id: str, query: sa.Select[Any]) -> Sequence[Event]:
        with self._reading() as connection:
            _number(connection, job_id)
            return [Event(**row._mapping) for row in connection.execute(query)]

    def _holds(self, connection: sa.Connection, claim: Claim) -> bool:
        """Is the claim still good? Locks the job's row, so that it stays so and events come in order."""
        query = sa.select(job_table.c.id).where(_is_held(claim))
        return connection.execute(query.with_for_update()).first() is not None

    def _reading(self) -> sa.Connection:
        return self._engine.connect().execution_options(reads_only=True)


COLUMNS = tuple(job_table.c[name] for name in Job.__slots__)


def _is_open() -> sa.ColumnElement[bool]:
    return job_table.c.state.not_in([state for state in State if state.is_over])


def _is_held(claim: Claim) -> sa.ColumnElement[bool]:
    return sa.and_(
        job_table.c.id == claim.job_id,
        job_table.c.attempt == claim.attempt,
        job_table.c.worker.is_not(None),
        _is_open(),
    )


def _free(connection: sa.Connection, state: State) -> sa.Select[Any]:
    lost = State.RUNNING if state == State.QUEUED else state
    waits = sa.and_(job_table.c.state == state, job_table.c.worker.is_(None))
    is_lost = sa.and_(job_table.c.state == lost, job_table.c.lease_until < now(connection))
    return sa.select(job_table.c.id).where(sa.or_(waits, is_lost))


def _events(job_id: str) -> sa.Select[Any]:
    return sa.select(*(event_table.c[name] for name in Event.__slots__)).where(event_table.c.job_id == job_id)


def _get(connection: sa.Connection, job_id: str, *, for_update: bool = False) -> Job:
    query = sa.select(*COLUMNS).where(job_table.c.id == job_id)
    row = connection.execute(query.with_for_update() if for_update else query).one_or_none()
    if row is None:
        raise JobNotFound(job_id)
    return _job(row)


def _job(row: sa.Row[Any]) -> Job:
    values = dict(row._mapping)
    spec = msgspec.convert(values.pop("spec"), Spec)
    return Job(spec=spec, state=State(values.pop("state")), want=Want(values.pop("want")), **values)


def _number(connection: sa.Connection, job_id: str) -> int:
    number = connection.scalar(sa.select(job_table.c.number).where(job_table.c.id == job_id))
    if number is None:
        raise JobNotFound(job_id)
    return number


def _set(connection: sa.Connection, job_id: str, **values: Any) -> None:
    connection.execute(job_table.update().where(job_table.c.id == job_id).values(**values))


def _settle(connection: sa.Connection, job: Job, want: Want) -> None:
    """What nobody works on becomes what is wanted. A job whose files are not known good has them looked through."""
    match want:
        case Want.CANCEL:
            _end(connection, job.id, State.CANCELLED)
        case Want.PAUSE:
            _set(connection, job.id, state=State.PAUSED)
            _log(connection, job.id, "The job is paused")
        case Want.RUN:
            _set(connection, job.id, state=State.VALIDATING if job.spec.resolved is None else State.QUEUED)
            _log(connection, job.id, "The job goes on")


def _release(connection: sa.Connection, job: Job, state: State) -> None:
    _set(connection, job.id, state=state, worker=None, lease_until=None)
    if job.want != Want.RUN:
        _settle(connection, job, job.want)


def _end(connection: sa.Connection, job_id: str, state: State, **values: Any) -> None:
    _set(connection, job_id, state=state, worker=None, lease_until=None, finished_at=now(connection), **values)
    error = values.get("error")
    told = {State.SUCCEEDED: "The job has successfully completed", State.CANCELLED: "The job is cancelled"}
    _log(
        connection,
        job_id,
        f"The job failed: {error['message']}" if error else told[state],
        level="error" if error else "info",
    )


def _log(
    connection: sa.Connection,
    job_id: str,
    message: str,
    *,
    level: str = "info",
    kind: str = "message",
    data: Mapping[str, Any] | None = None,
) -> None:
    connection.execute(
        event_table.insert().values(
            job_id=job_id,
            created_at=now(connection),
            level=level,
            type=kind,
            message=message,
            data=None if data is None else dict(data),
        )
    )
