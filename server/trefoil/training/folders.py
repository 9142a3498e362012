"""Where things lie in the data folder, and how they appear there whole or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def job_folder(data: Path, job_id: str) -> Path:
    """A job's own state, until it is over."""
    return data / "jobs" / job_id


def model_folder(data: Path, job_id: str, step: int | None = None) -> Path:
    """A job's model, or the one it was after a step."""
    return data / "models" / (job_id if step is None else f"{job_id}-step-{step}")


def write_whole(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside and rename it; one that is there already is the same and stays.

    A model that is served is a mapped file: it must never change under its reader.
    """
    if folder.exists():
        return
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        write(temporary)
        for path in temporary.iterdir():
            flush(path)
        temporary.rename(folder)
        flush(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
