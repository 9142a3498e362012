"""The engine on Triton's kernels in the interpreter: see tests/kernels/interpreted/conftest.py."""

import triton

collect_ignore_glob = [] if triton.knobs.runtime.interpret else ["test_*.py"]
