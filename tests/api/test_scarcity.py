"""What is told to clients when nothing can be kept, in process over a store of the test's own."""

import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from trefoil.api.app import create_app
from trefoil.api.fine_tuned import FineTuned
from trefoil.api.fleet import Fleet
from trefoil.metrics import Metrics
from trefoil.settings import Settings
from trefoil.store.store import Store

ROW = b'{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application without models, and of its store."""
    settings = Settings(models=(), data_dir=tmp_path)
    fleet, store = Fleet(settings, [], Metrics()), Store.open(settings.database, tmp_path)
    app = create_app(fleet, store, FineTuned(fleet, store))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        yield client
    await fleet.stop()
    store.close()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process may grow beyond a size, as if its disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def upload(http: httpx.AsyncClient, content: bytes) -> httpx.Response:
    return await http.post("/v1/files", files={"file": ("a.jsonl", content)}, data={"purpose": "fine-tune"})


async def test_a_disk_that_takes_no_more_is_507_and_keeps_no_half(http: httpx.AsyncClient, tmp_path: Path) -> None:
    with files_of_at_most(100_000):
        refused = await upload(http, ROW * 5000)
    assert (refused.status_code, refused.json()["error"]["code"]) == (507, "not_stored")
    assert refused.headers["x-request-id"]
    assert str(tmp_path) not in refused.text
    assert not list((tmp_path / "files").iterdir())
    assert (await upload(http, ROW * 5000)).is_success


FULL = ("PRAGMA max_page_count = 1", "CREATE TABLE more (than, fits)")


@pytest.mark.parametrize(("trouble", "status"), [(("SELECT 1 FROM nowhere",), 503), (FULL, 507)], ids=["lost", "full"])
async def test_a_database_in_trouble_is_told(http: httpx.AsyncClient, trouble: tuple[str, ...], status: int) -> None:
    def spoil(connection: sa.Connection) -> None:
        for statement in trouble:
            connection.exec_driver_sql(statement)

    sa.event.listen(sa.Engine, "begin", spoil)
    try:
        refused = await upload(http, ROW)
    finally:
        sa.event.remove(sa.Engine, "begin", spoil)
    assert refused.status_code == status
    assert ("retry-after" in refused.headers) == (status == 503)
    assert (await upload(http, ROW)).is_success
