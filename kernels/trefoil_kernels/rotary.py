"""Rotary positions (Su et al., arXiv 2104.09864, eq. 34): pairs of a head's numbers turn by the row's angles.

    (a, b) -> (a cos - b sin, b cos + a sin)

Pair i is the numbers f and f + run, where f = 2 run (i // run) + i % run. One run for all pairs is the half layout (i
with i + R/2), runs of 1 are the interleaved one (2i with 2i + 1), and several runs are as many half layouts side by
side, whose angles may come of different positions (ChatGLM).

Only the first R of the D numbers of a head turn; the rest pass through. Computed in float32, cast back at the end.
The gradient turns back: by the angles with the sign of their sines changed.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trefoil_kernels.cpu.attention import has_side_by_side_heads
from trefoil_kernels.cpu.library import native_for
from trefoil_kernels.launch import launch, runs_triton, with_whole_rows


@dataclass(frozen=True, slots=True)
class Turn:
    """Cosines and sines of each row's angles, float32 [T, R/2] each, and the run of the pairs they turn."""

    cos_TR: Tensor
    sin_TR: Tensor
    run: int

    @property
    def back(self) -> "Turn":
        """By the same angles the other way."""
        return Turn(self.cos_TR, -self.sin_TR, self.run)


def angles(positions_T: Tensor, frequencies_R: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Of each position (int64) and frequency (float32), cosines and sines times a factor."""
    are_plain = positions_T.is_contiguous() and frequencies_R.is_contiguous()
    if are_plain and not runs_triton(positions_T) and (native := native_for(frequencies_R)):
        return native.rowwise.angles(positions_T, frequencies_R, factor)
    return reference_angles(positions_T, frequencies_R, factor)


def reference_angles(positions_T: Tensor, frequencies_R: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """In torch; frequencies may differ from row to row, [T, R/2]."""
    angles_TR = positions_T[:, None].float() * frequencies_R
    return angles_TR.cos() * factor, angles_TR.sin() * factor


def rotary(x_THD: Tensor, turn: Turn) -> Tensor:
    """Turn each head's first R numbers by the row's angles."""
    if runs_triton(x_THD):
        turned_THD: Tensor = _Rotary.apply(x_THD, turn.cos_TR, turn.sin_TR, turn.run)
        return turned_THD
    native = native_for(x_THD, turn.cos_TR)
    if native is None or not has_side_by_side_heads(x_THD) or not is_contiguous(turn):
        return reference(x_THD, turn)
    return native.rowwise.rotary(x_THD, turn.cos_TR, turn.sin_TR, turn.run)


def is_contiguous(turn: Turn) -> bool:
    return turn.cos_TR.is_contiguous() and turn.sin_TR.is_contiguous()


def reference(x_THD: Tensor, turn: Turn) -> Tensor:
    """The formula in torch."""
    width = 2 * turn.cos_TR.shape[1]
    cos, sin = (x[:, None].unflatten(-1, (-1, turn.run)) for x in (turn.cos_TR, turn.sin_TR))  # [T, 1, runs, run]
    first, second = x_THD[..., :width].float().unflatten(-1, (-1, 2, turn.run)).unbind(-2)  # [T, H, runs, run]
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], -2)
    turned_THR = turned.flatten(-3).to(x_THD.dtype)
    return turned_THR if width == x_THD.shape[-1] else torch.cat([turned_THR, x_THD[..., width:]], -1)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor, run: int) -> Tensor:
        ctx.save_for_backward(cos_TR, sin_TR)
        ctx.run = run
        return on_triton(x_THD, Turn(cos_TR, sin_TR, run))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos_TR, sin_TR = ctx.saved_tensors
        return on_triton(grads[0], Turn(cos_TR, sin_TR, ctx.run).back), None, None, None


def on_triton(x_THD: Tensor, turn: Turn) -> Tensor:
    """By the kernel below."""
    x_THD = with_whole_rows(x_THD)
    turned_THD = torch.empty(x_THD.shape, dtype=x_THD.dtype, device=x_THD.device)
    num_rows, heads, width = x_THD.shape
    launch(
        _rotate,
        (num_rows,),
        *(x_THD, turned_THD, turn.cos_TR.contiguous(), turn.sin_TR.contiguous(), heads, *x_THD.stride()[:2]),
        **turn_constants(heads, width, turn),
        num_warps=4,
    )
    return turned_THD


def turn_constants(heads: int, width: int, turn: Turn) -> dict[str, int]:
    """What `turn_row` is compiled for; `heads` is the largest number of them."""
    half = turn.cos_TR.shape[1]
    return {
        "D": width,
        "HALF": half,
        "RUN": turn.run,
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
    RUN: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    source, target = x + row * stride, turned + row * heads * D
    turn_row(source, target, cos, sin, row, heads, head_stride, D, HALF, RUN, BLOCK_H, BLOCK_HALF, BLOCK_REST)


@triton.jit
def turn_row(
    source,
    target,
    cos,
    sin,
    row,
    heads,
    head_stride,
    D: tl.constexpr,
    HALF: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    MOST: tl.constexpr = 0.0,
):
    """All heads of one row, from where they are to where they lie side by side; in another dtype as `rounded` says."""
    head, lane = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_HALF)
    real = (head < heads) & (lane < HALF)[None, :]  # [heads, half]
    c = tl.load(cos + row * HALF + lane, mask=lane < HALF, other=0.0)[None, :]
    s = tl.load(sin + row * HALF + lane, mask=lane < HALF, other=0.0)[None, :]
    first = (lane if RUN == HALF else lane // RUN * (2 * RUN) + lane % RUN)[None, :]
    a = tl.load(source + head * head_stride + first, mask=real, other=0.0).to(tl.float32)
    b = tl.load(source + head * head_stride + RUN + first, mask=real, other=0.0).to(tl.float32)
    own: tl.constexpr = source.dtype.element_ty
    kept: tl.constexpr = target.dtype.element_ty
    tl.store(target + head * D + first, rounded((a * c - b * s).to(own), kept, MOST), mask=real)
    tl.store(target + head * D + RUN + first, rounded((b * c + a * s).to(own), kept, MOST), mask=real)
    if 2 * HALF < D:
        rest = 2 * HALF + tl.arange(0, BLOCK_REST)[None, :]
        is_rest = (head < heads) & (rest < D)
        value = tl.load(source + head * head_stride + rest, mask=is_rest)
        tl.store(target + head * D + rest, rounded(value, kept, MOST), mask=is_rest)


@triton.jit
def rounded(x, dtype: tl.constexpr, MOST: tl.constexpr):
    """In another dtype; where that has a greatest number MOST (not 0), what is larger becomes it."""
    if MOST > 0:
        x = tl.clamp(x.to(tl.float32), -MOST, MOST, propagate_nan=tl.PropagateNan.ALL)
    return x.to(dtype)
