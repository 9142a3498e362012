"""Stores to test: SQLite always, PostgreSQL where its binaries are installed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from databases import fresh_database
from trefoil.store.store import Store


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'trefoil.db'}"
    return fresh_database(request.getfixturevalue("postgres"), tmp_path.name)


@pytest.fixture
def open_store(url: str, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Open the test's store, as another process would."""
    with ExitStack() as opened:

        def another() -> Store:
            return opened.enter_context(closing(Store.open(url, tmp_path / "data")))

        yield another


@pytest.fixture
def store(open_store: Callable[[], Store]) -> Store:
    return open_store()
