"""Makes bfloat16 and float8 right in Triton's interpreter, which keeps them as raw integers. For tests only.

Kernels load bfloat16 as a matmul operand, convert it, or store it, and never compute on it; so the matmul and the two
conversions are all that needs repair. Anything else on bfloat16 raises here instead of computing on bit patterns. Of
float8 the conversions are repaired: the interpreter's own do not round to the nearest.
"""

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

FLOAT8 = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}
RAW = {tl.bfloat16, *FLOAT8}


def repair(patch: pytest.MonkeyPatch) -> None:
    """Put the repaired operations in place for as long as `patch` lasts."""
    dot, cast, convert = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl, InterpreterBuilder.create_fp_to_fp
    binary, unary = InterpreterBuilder.binary_op, InterpreterBuilder.unary_op

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, _widened(a), _widened(b), *rest)

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == target.scalar:
            return source
        if target.scalar in RAW:
            return TensorHandle(_rounded(cast(self, _widened(source), tl.float32).data, target.scalar), target.scalar)
        return cast(self, _widened(source), target)

    def create_fp_to_fp(self: Any, source: Any, target: Any, rounding: Any) -> Any:
        if RAW & {source.dtype.scalar, target.scalar}:
            return cast_impl(self, source, target)
        return convert(self, source, target, rounding)

    def binary_op(self: Any, left: Any, right: Any, op: Any) -> Any:
        assert left.dtype.scalar != tl.bfloat16, f"{op.__name__} on bfloat16"
        return binary(self, left, right, op)

    def unary_op(self: Any, value: Any, op: Any) -> Any:
        assert value.dtype.scalar != tl.bfloat16, f"{op.__name__} on bfloat16"
        return unary(self, value, op)

    for method in (create_dot, cast_impl, create_fp_to_fp, binary_op, unary_op):
        patch.setattr(InterpreterBuilder, method.__name__, method)
    for name in ("create_si_to_fp", "create_ui_to_fp", "create_fp_to_si", "create_fp_ext", "create_fp_trunc"):
        patch.setattr(InterpreterBuilder, name, cast_impl)


def _widened(handle: Any) -> Any:
    if handle.dtype.scalar in FLOAT8:
        codes = torch.from_numpy(np.ascontiguousarray(handle.data)).view(FLOAT8[handle.dtype.scalar])
        return TensorHandle(codes.float().numpy(), tl.float32)
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _rounded(values: Any, target: Any) -> Any:
    """To nearest even, of bfloat16 the upper halves of float32; NaN stays NaN."""
    if target in FLOAT8:
        return torch.tensor(values, dtype=torch.float32).to(FLOAT8[target]).view(torch.uint8).numpy()
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
