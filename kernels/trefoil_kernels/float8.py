"""Numbers of 8 bits: a sign, 4 of exponent, 3 of fraction (e4m3, Micikevicius et al., arXiv 2209.05433), and a float32
scale for each row of a matrix.

    matrix[f, m] = scale[f] * code[f, m],     scale[f] = max_m |matrix[f, m]| / 448

Every code is a number of float16 and of bfloat16 too, so that no product loses more than this rounding did.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from trefoil_kernels.launch import chip, launch

GREATEST = 448
SMALLEST_SCALE = 2.0**-126
"""What divides a row of zeros: float32's least normal number."""
FIRST_CHIP = 89
"""From compute capability 8.9 on these are numbers of the chip's own."""
BLOCK, WARPS = 1024, 4
AT_ONCE = 1 << 20
"""Numbers of a matrix that are float32 at the same time while it is rounded."""


@dataclass(frozen=True, slots=True, eq=False)
class Float8:
    """Codes float8_e4m3fn [F, M] and scales float32 [F]."""

    codes_FM: Tensor
    scales_F: Tensor

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The matrix that these stand for, [F, M]."""
        return (self.codes_FM.float() * self.scales_F[:, None]).to(dtype)


def to_float8(matrix_FM: Tensor) -> Float8:
    """The nearest codes, ties to even; a row of zeros stays one. Takes a few rows at a time, so needs little memory."""
    codes_FM = torch.empty(matrix_FM.shape, dtype=torch.float8_e4m3fn, device=matrix_FM.device)
    scales_F = torch.empty(len(matrix_FM), dtype=torch.float32, device=matrix_FM.device)
    rows = max(1, AT_ONCE // matrix_FM.shape[1])
    for part_RM, codes_RM, scales_R in zip(*(x.split(rows) for x in (matrix_FM, codes_FM, scales_F)), strict=True):
        torch.div(part_RM.abs().amax(1).float(), GREATEST, out=scales_R)
        codes_RM.copy_(part_RM.float() / scales_R.clamp(min=SMALLEST_SCALE)[:, None])
    return Float8(codes_FM, scales_F)


def rounded_rows(x_TM: Tensor) -> Float8:
    """`to_float8` in one kernel, for activations; rows may lie apart. Needs `has_float8`."""
    rows, width = x_TM.shape
    codes_TM = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device=x_TM.device)
    scales_T = torch.empty(rows, dtype=torch.float32, device=x_TM.device)
    launch(
        _round_row,
        (rows,),
        x_TM,
        codes_TM,
        scales_T,
        width,
        x_TM.stride(0),
        SMALLEST_SCALE,
        GREATEST=GREATEST,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
    return Float8(codes_TM, scales_T)


def has_float8() -> bool:
    """Does the current device convert and multiply such numbers itself?"""
    name = chip()
    return name == "interpreter" or (name.startswith("sm_") and int(name.removeprefix("sm_")) >= FIRST_CHIP)


def as_read(codes: Tensor) -> Tensor:
    """Codes as a kernel on the current device reads them: bytes that it decodes, where the chip does not."""
    return codes if has_float8() else codes.view(torch.uint8)


@triton.jit
def widened(x):
    """float32 of any float, or of codes that were read as bytes."""
    if x.dtype == tl.uint8:
        bits = x.to(tl.int32)
        # exponent and fraction where float32 has them, 120 too low; the product is exact below the normal numbers too
        size = ((bits & 127) << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36
        return tl.where(bits >= 128, -size, size)
    return x.to(tl.float32)


@triton.jit
def _round_row(x, codes, scales, width, x_stride, smallest, GREATEST: tl.constexpr, BLOCK: tl.constexpr):
    """One row's codes and its scale."""
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    line, target = x + row * x_stride, codes + row * width
    most = tl.zeros([BLOCK], tl.float32)
    for start in tl.range(0, width, BLOCK):
        at = start + column
        most = tl.maximum(most, tl.abs(tl.load(line + at, mask=at < width, other=0.0).to(tl.float32)))
    scale = tl.max(most, 0) / GREATEST
    tl.store(scales + row, scale)
    for start in tl.range(0, width, BLOCK):
        at = start + column
        number = tl.load(line + at, mask=at < width, other=0.0).to(tl.float32) / tl.maximum(scale, smallest)
        tl.store(target + at, number.to(codes.dtype.element_ty), mask=at < width)
