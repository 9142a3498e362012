"""Workers are killed at any step, and others go on where they were."""

import random
from pathlib import Path

import pytest

from databases import fresh_database
from training.shop import open_shop
from trefoil.store.jobs import State


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("database", "num_kills"), [pytest.param("sqlite", 10, marks=pytest.mark.slow), ("postgres", 2)]
)
def test_kills_lose_nothing_and_two_workers_run_nothing_twice(
    folder: Path, tmp_path: Path, database: str, num_kills: int, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/trefoil.db"
    if database == "postgres":
        url = fresh_database(request.getfixturevalue("postgres"), tmp_path.name)
    with open_shop(url, tmp_path / "data", folder, num_workers=2) as shop:
        whole, job = shop.submit(n_epochs=40), shop.submit(n_epochs=40)
        for step in sorted(random.Random(3).sample(range(160), num_kills)):
            shop.reach(job, step)
            shop.kill(shop.store.jobs.get(job.id).worker)
            shop.start_worker()
        for each in (job, whole):
            assert shop.wait(each, within_s=200).state == State.SUCCEEDED
        assert shop.weights(job) == shop.weights(whole)
        assert shop.steps(job) == list(range(1, 161)), "every step is told once, in order"
