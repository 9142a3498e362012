"""Rotary positions in the half layout (Su et al., arXiv 2104.09864, eq. 34; pairs are i and i + R/2).

    (a, b) -> (a cos - b sin, b cos + a sin)

Only the first R of the D numbers of a head turn; the rest pass through. Computed in float32, cast back at the end.
The gradient turns back: by the angles with the sign of their sines changed.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trefoil_kernels.cpu.library import has_side_by_side_heads, native_for
from trefoil_kernels.launch import launch, runs_triton

Turn = tuple[Tensor, Tensor]
"""Cosines and sines of each row's angles, float32 [T, R/2] each."""


def angles(positions_T: Tensor, frequencies_R: Tensor, factor: float = 1.0) -> Turn:
    """Of each position (int64) and frequency (float32), cosines and sines times a factor."""
    are_plain = positions_T.is_contiguous() and frequencies_R.is_contiguous()
    if are_plain and not runs_triton(positions_T) and (native := native_for(frequencies_R)):
        return native.angles(positions_T, frequencies_R, factor)
    return reference_angles(positions_T, frequencies_R, factor)


def reference_angles(positions_T: Tensor, frequencies_R: Tensor, factor: float) -> Turn:
    """In torch; frequencies may differ from row to row, [T, R/2]."""
    angles_TR = positions_T[:, None].float() * frequencies_R
    return angles_TR.cos() * factor, angles_TR.sin() * factor


def rotary(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Turn each head's first R = 2 * `cos_TR`.shape[1] numbers by the row's angles (both tables float32 [T, R/2])."""
    if runs_triton(x_THD):
        turned_THD: Tensor = _Rotary.apply(x_THD, cos_TR, sin_TR)
        return turned_THD
    native = native_for(x_THD, cos_TR)
    if native is None or not has_side_by_side_heads(x_THD) or not cos_TR.is_contiguous() or not sin_TR.is_contiguous():
        return reference(x_THD, cos_TR, sin_TR)
    return native.rotary(x_THD, cos_TR, sin_TR)


def reference(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """The formula in torch."""
    half = cos_TR.shape[1]
    cos_T1R, sin_T1R = cos_TR[:, None], sin_TR[:, None]
    first_THR, second_THR = x_THD[..., :half].float(), x_THD[..., half : 2 * half].float()
    turned = [first_THR * cos_T1R - second_THR * sin_T1R, second_THR * cos_T1R + first_THR * sin_T1R]
    turned_THR = torch.cat(turned, -1).to(x_THD.dtype)
    return turned_THR if 2 * half == x_THD.shape[-1] else torch.cat([turned_THR, x_THD[..., 2 * half :]], -1)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TR, sin_TR)
        return on_triton(x_THD, cos_TR, sin_TR)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cos_TR, sin_TR = ctx.saved_tensors
        return on_triton(grads[0], cos_TR, -sin_TR), None, None


def on_triton(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """By the kernel below."""
    x_THD = x_THD if x_THD.stride(2) == 1 else x_THD.contiguous()
    turned_THD = torch.empty(x_THD.shape, dtype=x_THD.dtype, device=x_THD.device)
    num_rows, heads, width = x_THD.shape
    launch(
        _rotate,
        (num_rows,),
        *(x_THD, turned_THD, cos_TR.contiguous(), sin_TR.contiguous(), heads, *x_THD.stride()[:2]),
        **turn_constants(heads, width, cos_TR.shape[1]),
        num_warps=4,
    )
    return turned_THD


def turn_constants(heads: int, width: int, half: int) -> dict[str, int]:
    """What `turn` is compiled for; `heads` is the largest number of them."""
    return {
        "D": width,
        "HALF": half,
        "BLOCK_H": triton.next_power_of_2(heads),
        "BLOCK_HALF": triton.next_power_of_2(half),
        "BLOCK_REST": triton.next_power_of_2(max(width - 2 * half, 1)),
    }


@triton.jit
def _rotate(
    x,
    turned,
    cos,
    sin,
    heads,
    stride,
    head_stride,
    D: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    source, target = x + row * stride, turned + row * heads * D
    turn(source, target, cos, sin, row, heads, head_stride, D, HALF, BLOCK_H, BLOCK_HALF, BLOCK_REST)


@triton.jit
def turn(
    source,
    target,
    cos,
    sin,
    row,
    heads,
    head_stride,
    D: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    """All heads of one row, from where they are to where they lie side by side."""
    head, lane = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_HALF)
    real = (head < heads) & (lane < HALF)[None, :]  # [heads, half]
    c = tl.load(cos + row * HALF + lane, mask=lane < HALF, other=0.0)[None, :]
    s = tl.load(sin + row * HALF + lane, mask=lane < HALF, other=0.0)[None, :]
    a = tl.load(source + head * head_stride + lane[None, :], mask=real, other=0.0).to(tl.float32)
    b = tl.load(source + head * head_stride + HALF + lane[None, :], mask=real, other=0.0).to(tl.float32)
    tl.store(target + head * D + lane[None, :], (a * c - b * s).to(target.dtype.element_ty), mask=real)
    tl.store(target + head * D + HALF + lane[None, :], (b * c + a * s).to(target.dtype.element_ty), mask=real)
    if 2 * HALF < D:
        rest = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
        is_rest = (head < heads) & (rest < D)
        tl.store(target + head * D + rest, tl.load(source + head * head_stride + rest, mask=is_rest), mask=is_rest)
