"""Checkpoints whose answers run for as long as a test needs, and servers of the tests' own."""

from pathlib import Path

import pytest

import tiny

LONG = 16_384
"""A context that no test waits the end of."""


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models with a long context, by name."""
    root = tmp_path_factory.mktemp("long")
    return {
        "a": tiny.checkpoint(root / "a", "llama", max_position_embeddings=LONG),
        "b": tiny.checkpoint(root / "b", "gpt2", n_positions=LONG),
    }


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where a server of the test's own writes its standard error."""
    return tmp_path / "stderr"
