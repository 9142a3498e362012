"""Kernels compiled for chips that are not there: a pytest process of its own, as the interpreter's tests are."""

import triton

collect_ignore_glob = ["test_*.py"] if triton.knobs.runtime.interpret else []
