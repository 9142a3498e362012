"""Every kernel test runs with fresh memory full of NaN."""

import pytest


@pytest.fixture(autouse=True)
def poisoned(nan_memory: None) -> None:
    """What a kernel does not write, it must not read."""
