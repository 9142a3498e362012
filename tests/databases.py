"""Databases to test with: a file, or a PostgreSQL server of our own from the binaries of Debian's package."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def postgres_server() -> Iterator[str]:
    """The URL of a running server, `{}` standing for the database's name; skips the test where there is none."""
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


def fresh_database(server: str, name: str) -> str:
    """A new database on the server."""
    import psycopg  # here: only where a server runs

    known = "t" + "".join(letter if letter.isalnum() else "_" for letter in name.lower())
    with psycopg.connect(server.format("postgres"), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{known}"')
    return server.format(known)


def _as_postgres(folder: Path) -> dict[str, Any]:
    """PostgreSQL refuses to run as root: it then runs as the user that Debian's package made."""
    if os.geteuid() != 0:
        return {}
    user = pwd.getpwnam("postgres")
    shutil.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _run(command: list[object], **become: Any) -> None:
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **become
    )
    assert done.returncode == 0, done.stderr
