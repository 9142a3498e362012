"""A job is one worker's at a time, hears only its latest attempt, and ends once; on every database alike."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import msgspec
import pytest

from trefoil.errors import JobNotFound, WrongState
from trefoil.store.catalog import ADAPTER, StoredModel
from trefoil.store.database import now
from trefoil.store.files import Page
from trefoil.store.jobs import MOST_FRUITLESS, Claim, Job, Spec, State, Want
from trefoil.store.store import Store

SPEC = Spec(
    model="base",
    base="/nowhere",
    method="supervised",
    training_file="file-1",
    validation_file=None,
    hyperparameters={"n_epochs": "auto"},
    seed=1,
    metadata={"owner": "me"},
)
RESOLVED = msgspec.structs.replace(SPEC, resolved={"n_epochs": 3})


def create(store: Store) -> Job:
    return store.jobs.create(SPEC)


def claim(store: Store, state: State = State.VALIDATING, worker: str = "w") -> Claim:
    found = store.jobs.claim(worker, state)
    assert found is not None
    return found


def train(store: Store) -> tuple[Job, Claim]:
    """A job that runs."""
    job = create(store)
    assert store.jobs.resolve(claim(store), RESOLVED)
    return job, claim(store, State.QUEUED)


def states(store: Store, job: Job) -> State:
    return store.jobs.get(job.id).state


def expire(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every lease run out."""
    monkeypatch.setattr("trefoil.store.jobs.now", lambda connection: now(connection) + 1000)


def test_job_goes_its_way_to_a_published_model(store: Store) -> None:
    job, running = train(store)
    assert states(store, job) == State.RUNNING
    model = StoredModel("ft:base::1", "base", ADAPTER, "/m", job_id=job.id)
    assert store.jobs.progressed(running, "half", StoredModel("ft:half", "base", ADAPTER, "/h", job.id, 3, {"loss": 1}))
    assert store.jobs.succeed(running, {"trained_tokens": 5}, model)
    done = store.jobs.get(job.id)
    assert (done.state, done.result, done.worker) == (State.SUCCEEDED, {"trained_tokens": 5}, None)
    assert done.finished_at >= done.created_at
    assert [found.name for found in store.catalog.all()] == ["ft:half", "ft:base::1"]
    assert [found.step for found in store.catalog.checkpoints(job.id)] == [3]
    assert store.catalog.drop("ft:half").folder == "/h"
    assert store.catalog.drop("ft:half") is None


def test_no_job_is_claimed_twice(open_store: Callable[[], Store]) -> None:
    stores = [open_store() for _ in range(4)]
    jobs = [create(stores[0]) for _ in range(12)]
    with ThreadPoolExecutor(4) as threads:
        taken = list(threads.map(lambda n: stores[n % 4].jobs.claim(f"w{n}", State.VALIDATING), range(16)))
    assert sorted(c.job_id for c in taken if c) == sorted(job.id for job in jobs)


def test_lost_job_is_taken_over_and_the_lost_worker_is_not_heard(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job, old = train(store)
    assert store.jobs.claim("w2", State.QUEUED) is None
    expire(store, monkeypatch)
    new = claim(store, State.QUEUED, "w2")
    assert new == Claim(job.id, old.attempt + 1)
    model = StoredModel("x", "base", ADAPTER, "/m")
    assert store.jobs.beat(old) is None
    heard = [
        store.jobs.log(old, "late"),
        store.jobs.progressed(old, "late"),
        store.jobs.succeed(old, {}, model),
        store.jobs.fail(old, "late", "late"),
        store.jobs.release(old),
        store.jobs.resolve(old, RESOLVED),
    ]
    assert not any(heard)
    assert store.jobs.beat(new) == Want.RUN
    assert "late" not in [event.message for event in store.jobs.events(job.id)]


@pytest.mark.parametrize("want", [Want.CANCEL, Want.PAUSE])
def test_what_is_asked_of_a_running_job_comes_with_the_beat(store: Store, want: Want) -> None:
    job, running = train(store)
    assert store.jobs.ask(job.id, want).state == State.RUNNING
    assert store.jobs.beat(running) == want
    assert store.jobs.release(running)
    assert states(store, job) == {Want.CANCEL: State.CANCELLED, Want.PAUSE: State.PAUSED}[want]


def test_what_waits_is_paused_resumed_and_cancelled_at_once(store: Store) -> None:
    job = create(store)
    assert store.jobs.ask(job.id, Want.PAUSE).state == State.PAUSED
    assert store.jobs.claim("w", State.VALIDATING) is None
    assert store.jobs.ask(job.id, Want.RUN).state == State.VALIDATING
    store.jobs.resolve(claim(store), RESOLVED)
    assert store.jobs.ask(job.id, Want.PAUSE).state == State.PAUSED
    assert store.jobs.ask(job.id, Want.RUN).state == State.QUEUED
    assert store.jobs.ask(job.id, Want.CANCEL).state == State.CANCELLED


def test_asking_at_the_wrong_time_is_refused(store: Store) -> None:
    job = create(store)
    with pytest.raises(WrongState):
        store.jobs.ask(job.id, Want.RUN)
    store.jobs.ask(job.id, Want.PAUSE)
    with pytest.raises(WrongState):
        store.jobs.ask(job.id, Want.PAUSE)
    store.jobs.ask(job.id, Want.CANCEL)
    for want in Want:
        with pytest.raises(WrongState):
            store.jobs.ask(job.id, want)
    with pytest.raises(JobNotFound):
        store.jobs.ask("ftjob-none", Want.RUN)


def test_job_that_only_dies_fails_in_the_end(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job, running = train(store)
    for _ in range(MOST_FRUITLESS - 1):
        store.jobs.release(running, "crashed")
        running = claim(store, State.QUEUED)
    store.jobs.progressed(running, "a checkpoint")
    for _ in range(MOST_FRUITLESS):
        store.jobs.release(running, "crashed")
        running = claim(store, State.QUEUED)
    store.jobs.release(running, "crashed")
    assert store.jobs.claim("w", State.QUEUED) is None
    assert states(store, job) == State.FAILED
    assert store.jobs.get(job.id).error["code"] == "worker_lost"


def test_events_come_in_order_page_by_page(store: Store) -> None:
    job, running = train(store)
    for step in range(5):
        store.jobs.log_metrics(running, [(f"step {step}", {"step": step})])
    assert store.jobs.last_step(job.id) == 4
    events = store.jobs.events(job.id)
    assert all(one.id < two.id for one, two in pairwise(events))
    assert store.jobs.events(job.id, after=events[-3].id) == events[-2:]
    latest, has_more = store.jobs.latest_events(job.id, before=None, limit=2)
    assert (list(latest), has_more) == (list(events[:-3:-1]), True)
    older, has_more = store.jobs.latest_events(job.id, before=latest[-1].id, limit=100)
    assert (list(older), has_more) == (list(events[-3::-1]), False)
    with pytest.raises(JobNotFound):
        store.jobs.events("ftjob-none")


def test_jobs_are_listed_newest_first_and_by_metadata(store: Store) -> None:
    jobs = [create(store) for _ in range(4)]
    found, has_more = store.jobs.list(Page(3))
    assert ([job.id for job in found], has_more) == ([job.id for job in jobs[:0:-1]], True)
    found, has_more = store.jobs.list(Page(3, after=found[-1].id), metadata={"owner": "me"})
    assert ([job.id for job in found], has_more) == ([jobs[0].id], False)
    assert store.jobs.list(Page(3), metadata={"owner": "you"}) == ([], False)


def test_file_is_in_use_until_its_jobs_are_over(store: Store) -> None:
    job = create(store)
    assert store.jobs.uses_file("file-1")
    assert not store.jobs.uses_file("file-2")
    store.jobs.ask(job.id, Want.CANCEL)
    assert not store.jobs.uses_file("file-1")
