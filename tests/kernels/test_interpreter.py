"""Runs the tests of the kernels in Triton's interpreter, which must be chosen before a kernel is defined."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"


@pytest.mark.timeout(900)
def test_kernels_match_their_references_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", str(FOLDER), "-x", "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, cwd=FOLDER.parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
