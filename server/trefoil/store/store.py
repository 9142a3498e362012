"""Everything that outlives a process: files, jobs, the catalog of models, over one database and one data folder."""

from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from trefoil.errors import InvalidSetting
from trefoil.store.blobs import LocalBlobs
from trefoil.store.catalog import Catalog
from trefoil.store.database import connect
from trefoil.store.files import Files
from trefoil.store.jobs import LEASE_S, Jobs


@dataclass(frozen=True, slots=True)
class Store:
    """What the API and the workers share."""

    engine: sa.Engine
    folder: Path
    files: Files
    jobs: Jobs
    catalog: Catalog

    @classmethod
    def open(cls, url: str, folder: Path, *, lease_s: float = LEASE_S) -> "Store":
        """Make the folder and bring the database up to date. Raises InvalidSetting."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            blobs = LocalBlobs(folder / "files")
        except OSError as error:
            raise InvalidSetting(
                "--data-dir", str(folder), f"a folder that can be written ({error.strerror})"
            ) from error
        engine = connect(url)
        return cls(engine, folder, Files(engine, blobs), Jobs(engine, lease_s=lease_s), Catalog(engine))

    def close(self) -> None:
        """Give the database's connections back."""
        self.engine.dispose()
