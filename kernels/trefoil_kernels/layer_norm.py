"""LayerNorm (Ba et al., arXiv 1607.06450): y = (x - mean) / sqrt(variance + eps) * weight + bias, in float32.

With r = 1 / sqrt(variance + eps) and n = (x - mean) r: dx = r (dy w - mean(dy w) - n mean(dy w n)), dw = sum over rows
of dy n, db = sum over rows of dy.
"""

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from trefoil_kernels.cpu.library import Native, native_for
from trefoil_kernels.launch import WIDEST_ROW, launch, row_tile, runs_triton, with_whole_rows

BACKWARD_PROGRAMS = 256
"""Programs that share the rows of a backward pass; each keeps its own sums of weight and bias gradients."""


def reference(x_TM: Tensor, weight_M: Tensor, bias_M: Tensor, eps: float) -> Tensor:
    """torch's own."""
    return F.layer_norm(x_TM, weight_M.shape, weight_M, bias_M, eps)


def layer_norm(x_TM: Tensor, weight_M: Tensor, bias_M: Tensor, eps: float) -> Tensor:
    """Normalise over the last axis; same shape and dtype as `x_TM`; differentiable in all three."""
    is_covered = len(weight_M) <= WIDEST_ROW and x_TM.dtype == weight_M.dtype == bias_M.dtype
    if runs_triton(x_TM) and is_covered:
        return on_triton(x_TM, weight_M, bias_M, eps)
    if native := _native_for(x_TM, weight_M, bias_M):
        return native.rowwise.layer_norm(x_TM, weight_M, bias_M, eps)
    return reference(x_TM, weight_M, bias_M, eps)


def add_layer_norm(x_TM: Tensor, y_TM: Tensor, weight_M: Tensor, bias_M: Tensor, eps: float) -> Tensor:
    """The norm of x + y, as post-norm layers take it of a residual; y may be a row that was expanded."""
    is_plain = x_TM.shape == y_TM.shape and _has_whole_rows(y_TM)
    if is_plain and (native := _native_for(x_TM, y_TM, weight_M, bias_M)):
        return native.rowwise.layer_norm(x_TM, weight_M, bias_M, eps, y_TM)
    return layer_norm(x_TM + y_TM, weight_M, bias_M, eps)


def _native_for(x_TM: Tensor, *others: Tensor) -> Native | None:
    """The library, where it serves rows like these."""
    is_alike = x_TM.dtype in (torch.float32, torch.bfloat16) and all(other.dtype == x_TM.dtype for other in others)
    return native_for(x_TM, *others) if is_alike and x_TM.dim() == 2 and x_TM.is_contiguous() else None


def _has_whole_rows(y_TM: Tensor) -> bool:
    return y_TM.is_contiguous() or y_TM.stride() == (0, 1)


def on_triton(x_TM: Tensor, weight_M: Tensor, bias_M: Tensor, eps: float) -> Tensor:
    """By the kernels below; all of one dtype."""
    normed_TM: Tensor = _LayerNorm.apply(x_TM, weight_M, bias_M, eps)
    return normed_TM


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TM: Tensor, weight_M: Tensor, bias_M: Tensor, eps: float) -> Tensor:
        rows_TM = with_whole_rows(x_TM.reshape(-1, x_TM.shape[-1]))
        normed_TM = torch.empty(x_TM.shape, dtype=x_TM.dtype, device=x_TM.device)
        means_T, scales_T = torch.empty(2, len(rows_TM), dtype=torch.float32, device=x_TM.device)
        tile = row_tile(rows_TM.shape[1])
        launch(
            _forward,
            (triton.cdiv(len(rows_TM), tile.rows),),
            *(rows_TM, weight_M, bias_M, normed_TM, means_T, scales_T, rows_TM.stride(0), *rows_TM.shape, eps),
            ROWS=tile.rows,
            BLOCK=tile.block,
            num_warps=tile.warps,
        )
        ctx.save_for_backward(rows_TM, weight_M, means_T, scales_T)
        return normed_TM

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        grad_TM = grads[0].contiguous()
        x_TM, weight_M, means_T, scales_T = ctx.saved_tensors
        grad_x_TM = torch.empty_like(grad_TM)
        tile = row_tile(x_TM.shape[1])
        programs = min(BACKWARD_PROGRAMS, triton.cdiv(len(x_TM), tile.rows))
        weight_sums_PM, bias_sums_PM = torch.empty(2, programs, x_TM.shape[1], dtype=torch.float32, device=x_TM.device)
        launch(
            _backward,
            (programs,),
            *(grad_TM, x_TM, weight_M, means_T, scales_T, grad_x_TM, weight_sums_PM, bias_sums_PM),
            *(x_TM.stride(0), *x_TM.shape),
            ROWS=tile.rows,
            BLOCK=tile.block,
            num_warps=tile.warps,
        )
        sums = (x_PM.sum(0).to(weight_M.dtype) for x_PM in (weight_sums_PM, bias_sums_PM))
        return grad_x_TM, *sums, None


@triton.jit(do_not_specialize=["num_rows"])
def _forward(
    x, weight, bias, normed, means, scales, x_stride, num_rows, width, eps, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    at = row.to(tl.int64)[:, None]
    real = (row < num_rows)[:, None] & (column < width)[None, :]  # [ROWS, BLOCK], as all tiles below
    value = tl.load(x + at * x_stride + column[None, :], mask=real, other=0.0).to(tl.float32)
    mean = tl.sum(value, 1) / width
    centred = tl.where(real, value - mean[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / width + eps)
    tl.store(means + row, mean, mask=row < num_rows)
    tl.store(scales + row, scale, mask=row < num_rows)
    factor = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    shift = tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)
    out = centred * scale[:, None] * factor[None, :] + shift[None, :]
    tl.store(normed + at * width + column[None, :], out.to(normed.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["num_rows"])
def _backward(
    grad,
    x,
    weight,
    means,
    scales,
    grad_x,
    weight_sums,
    bias_sums,
    x_stride,
    num_rows,
    width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    factor = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    weight_total = tl.zeros([BLOCK], tl.float32)
    bias_total = tl.zeros([BLOCK], tl.float32)
    for start in range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None]
        real = (row < num_rows)[:, None] & (column < width)[None, :]  # [ROWS, BLOCK], as all tiles below
        mean = tl.load(means + row, mask=row < num_rows, other=0.0)[:, None]
        scale = tl.load(scales + row, mask=row < num_rows, other=0.0)[:, None]
        value = tl.load(x + at * x_stride + column[None, :], mask=real, other=0.0).to(tl.float32)
        centred = tl.where(real, (value - mean) * scale, 0.0)
        out = tl.load(grad + at * width + column[None, :], mask=real, other=0.0).to(tl.float32)
        weight_total += tl.sum(out * centred, 0)
        bias_total += tl.sum(out, 0)
        out *= factor[None, :]
        level, slope = tl.sum(out, 1) / width, tl.sum(out * centred, 1) / width
        value = scale * (out - level[:, None] - centred * slope[:, None])
        tl.store(grad_x + at * width + column[None, :], value.to(grad_x.dtype.element_ty), mask=real)
    tl.store(weight_sums + tl.program_id(0) * width + column, weight_total, mask=column < width)
    tl.store(bias_sums + tl.program_id(0) * width + column, bias_total, mask=column < width)
