"""Uploaded files: a row for each, its bytes on the shelf."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import sqlalchemy as sa

from trefoil.errors import FileNotFound
from trefoil.store.blobs import Blobs
from trefoil.store.database import file_table, now
from trefoil.store.ids import new_id


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One upload; `problem` is what is wrong with its content, where something is."""

    id: str
    filename: str
    purpose: str
    bytes: int
    created_at: float
    expires_at: float | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for: at most `limit` entries behind the entry `after`, newest first or last."""

    limit: int
    after: str | None = None
    is_newest_first: bool = True


class Files:
    """All uploads of one data folder."""

    def __init__(self, engine: sa.Engine, blobs: Blobs) -> None:
        self._engine, self._blobs = engine, blobs

    def add(
        self,
        source: BinaryIO,
        *,
        filename: str,
        purpose: str,
        problem: str | None = None,
        lifetime_s: int | None = None,
    ) -> StoredFile:
        """Keep an upload: first its bytes, then its row, so that a row's bytes are always there."""
        file_id = new_id("file")
        size = self._blobs.put(file_id, source)
        with self._engine.begin() as connection:
            created_at = now(connection)
            file = StoredFile(
                id=file_id,
                filename=filename,
                purpose=purpose,
                bytes=size,
                created_at=created_at,
                expires_at=None if lifetime_s is None else created_at + lifetime_s,
                problem=problem,
            )
            connection.execute(file_table.insert().values(**_values(file)))
        return file

    def get(self, file_id: str) -> StoredFile:
        """Raises FileNotFound, also where its time is over."""
        with self._reading() as connection:
            row = connection.execute(_alive(connection).where(file_table.c.id == file_id)).one_or_none()
        if row is None:
            raise FileNotFound(file_id)
        return _file(row)

    def path(self, file_id: str) -> Path:
        """A local file with the content. Raises FileNotFound."""
        self.get(file_id)
        try:
            return self._blobs.path(file_id)
        except FileNotFoundError:
            raise FileNotFound(file_id) from None

    def list(self, page: Page, *, purpose: str | None = None) -> tuple[Sequence[StoredFile], bool]:
        """Some files, and whether there are more. Raises FileNotFound for an unknown `page.after`."""
        order = file_table.c.number.desc() if page.is_newest_first else file_table.c.number
        with self._reading() as connection:
            query = _alive(connection).order_by(order).limit(page.limit + 1)
            if purpose is not None:
                query = query.where(file_table.c.purpose == purpose)
            if page.after is not None:
                query = query.where(self._behind(connection, page))
            found = [_file(row) for row in connection.execute(query)]
        return found[: page.limit], len(found) > page.limit

    def drop(self, file_id: str) -> None:
        """Forget a file: first its row, then its bytes. Raises FileNotFound."""
        with self._engine.begin() as connection:
            if not connection.execute(file_table.delete().where(file_table.c.id == file_id)).rowcount:
                raise FileNotFound(file_id)
        self._blobs.drop(file_id)

    def sweep(self) -> None:
        """Drop what has expired."""
        with self._reading() as connection:
            over = sa.select(file_table.c.id).where(file_table.c.expires_at <= now(connection))
            expired = connection.execute(over).scalars().all()
        for file_id in expired:
            self.drop(file_id)

    def _behind(self, connection: sa.Connection, page: Page) -> sa.ColumnElement[bool]:
        number = connection.scalar(sa.select(file_table.c.number).where(file_table.c.id == page.after))
        if number is None:
            raise FileNotFound(page.after or "", param="after")
        return file_table.c.number < number if page.is_newest_first else file_table.c.number > number

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._engine.connect().execution_options(reads_only=True) as connection:
            yield connection


COLUMNS = tuple(file_table.c[name] for name in StoredFile.__slots__)


def _alive(connection: sa.Connection) -> sa.Select[tuple[object, ...]]:
    expires_at = file_table.c.expires_at
    return sa.select(*COLUMNS).where(sa.or_(expires_at.is_(None), expires_at > now(connection)))


def _file(row: sa.Row[tuple[object, ...]]) -> StoredFile:
    return StoredFile(**row._mapping)


def _values(file: StoredFile) -> dict[str, object]:
    return {name: getattr(file, name) for name in StoredFile.__slots__}
