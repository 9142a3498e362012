"""Which models were made or loaded here and can be served: adapters of a served model, and whole models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from trefoil.store.database import model_table, now

ADAPTER, WHOLE = "adapter", "whole"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One model: the name it is asked by, the name of what it was made from, its kind and its folder.

    A job's checkpoint on the way knows its `step` and its metrics.
    """

    name: str
    parent: str
    kind: str
    folder: str
    job_id: str | None = None
    step: int | None = None
    metrics: dict[str, Any] | None = None
    created_at: float = 0.0


COLUMNS = tuple(model_table.c[name] for name in StoredModel.__slots__)


class Catalog:
    """All models of one database."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def all(self) -> Sequence[StoredModel]:
        """Every model, oldest first."""
        return self._read(sa.select(*COLUMNS).order_by(model_table.c.number))

    def checkpoints(self, job_id: str) -> Sequence[StoredModel]:
        """A job's models of its way, latest first."""
        is_checkpoint = sa.and_(model_table.c.job_id == job_id, model_table.c.step.is_not(None))
        return self._read(sa.select(*COLUMNS).where(is_checkpoint).order_by(model_table.c.step.desc()))

    def add(self, model: StoredModel) -> None:
        """Publish a model that no job made."""
        with self._engine.begin() as connection:
            publish(connection, model)

    def drop(self, name: str) -> StoredModel | None:
        """Forget a model; what it was, or None where there was none of that name."""
        with self._engine.begin() as connection:
            row = connection.execute(sa.select(*COLUMNS).where(model_table.c.name == name)).one_or_none()
            connection.execute(model_table.delete().where(model_table.c.name == name))
        return None if row is None else StoredModel(**row._mapping)

    def _read(self, query: sa.Select[Any]) -> Sequence[StoredModel]:
        with self._engine.connect().execution_options(reads_only=True) as connection:
            return [StoredModel(**row._mapping) for row in connection.execute(query)]


def publish(connection: sa.Connection, model: StoredModel) -> None:
    """Write a model down within a transaction; one of the same name, from an attempt that died, gives way."""
    connection.execute(model_table.delete().where(model_table.c.name == model.name))
    values = {name: getattr(model, name) for name in StoredModel.__slots__}
    connection.execute(model_table.insert().values(**{**values, "created_at": now(connection)}))
