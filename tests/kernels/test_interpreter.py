"""Runs the tests of the kernels in Triton's interpreter, which must be chosen before a kernel is defined."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kernels_match_their_references_in_the_interpreter() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(TESTS / "kernels" / "interpreted"),
        str(TESTS / "engine" / "interpreted"),
        "-x",
        "-p",
        "no:cacheprovider",
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
