"""Kernels in Triton's interpreter: a pytest process of its own, started by test_interpreter.py beside this folder.

Triton reads TRITON_INTERPRET when a kernel is defined, so the two ways of running them cannot share a process.
"""

from collections.abc import Iterator

import pytest
import triton

from bf16_interpreter import repair

collect_ignore_glob = [] if triton.knobs.runtime.interpret else ["test_*.py"]


@pytest.fixture(autouse=True, scope="session")
def right_bf16() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        repair(patch)
        yield
