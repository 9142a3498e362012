"""Every kernel test runs with fresh memory full of NaN."""

import pytest


@pytest.fixture(autouse=True)
def poisoned(nan_memory: None) -> None:
    """What a kernel does not write, it must not read."""


@pytest.fixture
def gpu() -> str:
    """The CUDA device's name; the test skips itself where there is none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return "cuda"
