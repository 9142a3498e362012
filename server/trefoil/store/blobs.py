"""Where uploaded bytes lie: three methods, so that another shelf than a local folder can stand in."""

import os
import shutil
from pathlib import Path
from typing import BinaryIO, Protocol


class Blobs(Protocol):
    """A shelf of immutable files by name."""

    def put(self, name: str, source: BinaryIO) -> int:
        """Keep all that `source` gives under a name; how many bytes. Whole and on disk, or not there at all."""
        ...

    def path(self, name: str) -> Path:
        """A local file with the content. Raises FileNotFoundError."""
        ...

    def drop(self, name: str) -> None:
        """Forget a name; one that is not there is no error."""
        ...


class LocalBlobs:
    """A shelf that is a folder of this machine, or of a disk that all machines share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, name: str, source: BinaryIO) -> int:
        temporary = self._folder / f".{name}.part"
        try:
            with temporary.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
                target.flush()
                os.fsync(target.fileno())
                size = target.tell()
            temporary.replace(self._folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        return size

    def path(self, name: str) -> Path:
        path = self._folder / name
        if not path.is_file():
            raise FileNotFoundError(name)
        return path

    def drop(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)
