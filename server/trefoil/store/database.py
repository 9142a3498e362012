"""The tables, and a connection to them: SQLite by default, PostgreSQL by URL, brought up to date when opened.

Whoever writes a time into a row takes the database's clock, never its own: workers on several machines agree on it.
"""

import sqlite3
import time
from importlib.resources import files

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from trefoil.errors import InvalidSetting

BUSY_TIMEOUT_MS = 15_000
MIGRATION_LOCK = 7_365_736
"""The advisory lock under which one process at a time changes the tables of a PostgreSQL database."""

metadata = sa.MetaData()

file_table = sa.Table(
    "file",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("filename", sa.String, nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float),
    sa.Column("problem", sa.String),
)

job_table = sa.Table(
    "job",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("id", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("finished_at", sa.Float),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("state", sa.String(32), nullable=False, index=True),
    sa.Column("want", sa.String(16), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("fruitless", sa.Integer, nullable=False),
    sa.Column("worker", sa.String),
    sa.Column("lease_until", sa.Float),
    sa.Column("result", sa.JSON),
    sa.Column("error", sa.JSON),
)

event_table = sa.Table(
    "job_event",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.String(64), sa.ForeignKey("job.id", ondelete="CASCADE"), nullable=False, index=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("level", sa.String(8), nullable=False),
    sa.Column("type", sa.String(16), nullable=False),
    sa.Column("message", sa.String, nullable=False),
    sa.Column("data", sa.JSON),
    sqlite_autoincrement=True,
)

model_table = sa.Table(
    "model",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("parent", sa.String, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("folder", sa.String, nullable=False),
    sa.Column("job_id", sa.String(64), index=True),
    sa.Column("step", sa.Integer),
    sa.Column("metrics", sa.JSON),
    sa.Column("created_at", sa.Float, nullable=False),
    sqlite_autoincrement=True,
)


def connect(url: str) -> sa.Engine:
    """An engine whose tables are up to date. Raises InvalidSetting where the database cannot be had."""
    try:
        return _ready(_engine(url))
    except CommandError as error:
        raise InvalidSetting("--database-url", _shown(url), "a database that no newer trefoil has changed") from error
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as error:
        raise InvalidSetting(
            "--database-url", _shown(url), "sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME (extra `postgres`)"
        ) from error
    except sa.exc.OperationalError as error:
        raise InvalidSetting("--database-url", _shown(url), f"a database that answers: {error.orig}") from error


def _ready(engine: sa.Engine) -> sa.Engine:
    try:
        with engine.begin() as connection:
            _migrate(connection)
    except BaseException:
        engine.dispose()
        raise
    return engine


def is_full(error: sa.exc.OperationalError) -> bool:
    """Did SQLite find no room on its disk?"""
    return getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def now(connection: sa.Connection) -> float:
    """The database's time in seconds; SQLite's is its machine's."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")) or 0.0)


def _engine(url: str) -> sa.Engine:
    parsed = sa.make_url(url)
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = sa.create_engine(parsed, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves
    for pragma in ("journal_mode=WAL", f"busy_timeout={BUSY_TIMEOUT_MS}", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    """A reader sees one moment; whoever will write says so at once, as a lock cannot be raised later without a race."""
    is_reading = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")


def _migrate(connection: sa.Connection) -> None:
    """Bring the tables to the newest revision; processes that start together do it one after the other."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
    config = Config()
    config.set_main_option("script_location", str(files("trefoil.store") / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _shown(url: str) -> str:
    """The URL without its password."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return url
