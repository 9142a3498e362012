"""Stores to test: SQLite always, PostgreSQL where its binaries are installed."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from trefoil.store.store import Store

BACKENDS = ["sqlite", "postgres"]


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, without a database's name; Debian's package has the binaries."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed")
    binaries = found[-1].parent
    with tempfile.TemporaryDirectory(prefix="trefoil-pg-") as name:  # another user must be able to reach it
        folder = Path(name)
        become = _as_postgres(folder)
        control = [binaries / "pg_ctl", "--wait", f"--pgdata={folder}/data"]
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        _run([binaries / "initdb", "--auth=trust", "--username=trefoil", "--encoding=UTF8", f"{folder}/data"], **become)
        _run([*control, f"--options={options}", f"--log={folder}/log", "start"], **become)
        try:
            yield f"postgresql://trefoil@/{{}}?host={folder}"
        finally:
            _run([*control, "--mode=immediate", "stop"], **become)


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'trefoil.db'}"
    return fresh_database(request.getfixturevalue("postgres"), tmp_path)


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


def fresh_database(server: str, tmp_path: Path) -> str:
    """A new database on the server, named for the test."""
    import psycopg  # here: only where a server runs

    name = "t" + "".join(letter if letter.isalnum() else "_" for letter in tmp_path.name.lower())
    with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return server.format(name)


def _as_postgres(folder: Path) -> dict[str, object]:
    """PostgreSQL refuses to run as root: it then runs as the user that Debian's package made."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    shutil.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _run(command: list[object], **become: object) -> None:
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **become
    )
    assert done.returncode == 0, done.stderr
