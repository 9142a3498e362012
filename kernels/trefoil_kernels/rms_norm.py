"""RMSNorm, alone or after a residual sum (Zhang and Sennrich, arXiv 1910.07467, eq. 4).

    y = x / sqrt(mean(x^2) + eps) * weight

The mean is taken in float32 whatever the dtype; the quotient is cast back *before* the weight, as LLaMA does. With
r = 1 / sqrt(mean(x^2) + eps) and n = x r the gradient is dx = r (dy w - n mean(dy w n)), dw = sum over rows of dy n.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from trefoil_kernels.cpu.library import native_for
from trefoil_kernels.launch import WIDEST_ROW, launch, row_tile, runs_triton, with_whole_rows

BACKWARD_PROGRAMS = 256
"""Programs that share the rows of a backward pass; each keeps its own sum of weight gradients."""


def reference(x_TM: Tensor, weight_M: Tensor, eps: float) -> Tensor:
    """The formula in torch."""
    x32_TM = x_TM.float()
    scale_T1 = torch.rsqrt(x32_TM.square().mean(-1, keepdim=True) + eps)
    return weight_M * (x32_TM * scale_T1).to(x_TM.dtype)


def rms_norm(x_TM: Tensor, weight_M: Tensor, eps: float) -> Tensor:
    """Normalise over the last axis; same shape and dtype as `x_TM`; differentiable in both."""
    if _is_covered(x_TM, weight_M):
        return on_triton(x_TM, None, weight_M, eps)[0]
    native = native_for(x_TM, weight_M)
    if native is None or x_TM.dtype != weight_M.dtype or x_TM.stride(-1) != 1:
        return reference(x_TM, weight_M, eps)
    return native.rowwise.rms_norm(x_TM.reshape(-1, x_TM.shape[-1]), weight_M, eps).view(x_TM.shape)


def add_rms_norm(x_TM: Tensor, residual_TM: Tensor, weight_M: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of both and its norm: (normed, summed)."""
    if not _is_covered(x_TM, weight_M) or x_TM.dtype != residual_TM.dtype:
        native = native_for(x_TM, residual_TM, weight_M) if _are_plain(x_TM, residual_TM, weight_M) else None
        if native is not None:
            return native.rowwise.add_rms_norm(x_TM, residual_TM, weight_M, eps)
        summed_TM = x_TM + residual_TM
        return rms_norm(summed_TM, weight_M, eps), summed_TM
    return on_triton(x_TM, residual_TM, weight_M, eps)


def _are_plain(x_TM: Tensor, residual_TM: Tensor, weight_M: Tensor) -> bool:
    is_same = x_TM.shape == residual_TM.shape and x_TM.dtype == residual_TM.dtype == weight_M.dtype
    return is_same and x_TM.dim() == 2 and x_TM.is_contiguous() and residual_TM.is_contiguous()


def _is_covered(x_TM: Tensor, weight_M: Tensor) -> bool:
    return runs_triton(x_TM) and len(weight_M) <= WIDEST_ROW and x_TM.dtype == weight_M.dtype


def on_triton(x_TM: Tensor, residual_TM: Tensor | None, weight_M: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm and what was normed, by the kernels below; all of one dtype."""
    normed_TM, summed_TM = _RmsNorm.apply(x_TM, residual_TM, weight_M, eps)
    return normed_TM, x_TM if residual_TM is None else summed_TM


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TM: Tensor, residual_TM: Tensor | None, weight_M: Tensor, eps: float
    ) -> tuple[Tensor, Tensor | None]:
        width = x_TM.shape[-1]
        rows_TM = with_whole_rows(x_TM.reshape(-1, width))
        added_TM = rows_TM if residual_TM is None else with_whole_rows(residual_TM.reshape(-1, width))
        normed_TM = torch.empty(x_TM.shape, dtype=x_TM.dtype, device=x_TM.device)
        summed_TM = rows_TM if residual_TM is None else torch.empty_like(normed_TM)
        scale_T = torch.empty(len(rows_TM), dtype=torch.float32, device=x_TM.device)
        tile = row_tile(width)
        launch(
            _forward,
            (triton.cdiv(len(rows_TM), tile.rows),),
            *(rows_TM, added_TM, weight_M, normed_TM, summed_TM, scale_T),
            *(rows_TM.stride(0), added_TM.stride(0), len(rows_TM), width, eps),
            HAS_RESIDUAL=residual_TM is not None,
            ROWS=tile.rows,
            BLOCK=tile.block,
            num_warps=tile.warps,
        )
        ctx.save_for_backward(summed_TM.view(-1, width), weight_M, scale_T)
        ctx.has_residual = residual_TM is not None
        return normed_TM, summed_TM if residual_TM is not None else None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor, None]:
        grad_TM, grad_summed_TM = (None if grad is None else grad.contiguous() for grad in grads)
        assert grad_TM is not None
        x_TM, weight_M, scale_T = ctx.saved_tensors
        grad_x_TM = torch.empty_like(grad_TM)
        tile = row_tile(x_TM.shape[1])
        programs = min(BACKWARD_PROGRAMS, triton.cdiv(len(x_TM), tile.rows))
        sums_PM = torch.empty(programs, x_TM.shape[1], dtype=torch.float32, device=x_TM.device)
        launch(
            _backward,
            (programs,),
            *(grad_TM, grad_TM if grad_summed_TM is None else grad_summed_TM, x_TM, weight_M, scale_T),
            *(grad_x_TM, sums_PM, x_TM.stride(0), *x_TM.shape),
            HAS_RESIDUAL=grad_summed_TM is not None,
            ROWS=tile.rows,
            BLOCK=tile.block,
            num_warps=tile.warps,
        )
        return grad_x_TM, grad_x_TM if ctx.has_residual else None, sums_PM.sum(0).to(weight_M.dtype), None


@triton.jit(do_not_specialize=["num_rows"])
def _forward(
    x,
    residual,
    weight,
    normed,
    summed,
    scales,
    x_stride,
    residual_stride,
    num_rows,
    width,
    eps,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    at = row.to(tl.int64)[:, None]
    real = (row < num_rows)[:, None] & (column < width)[None, :]  # [ROWS, BLOCK], as all tiles below
    value = tl.load(x + at * x_stride + column[None, :], mask=real, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        value += tl.load(residual + at * residual_stride + column[None, :], mask=real, other=0.0).to(tl.float32)
        rounded = value.to(summed.dtype.element_ty)
        tl.store(summed + at * width + column[None, :], rounded, mask=real)
        value = rounded.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 1) / width + eps)
    tl.store(scales + row, scale, mask=row < num_rows)
    quotient = (value * scale[:, None]).to(normed.dtype.element_ty).to(tl.float32)
    factor = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(normed + at * width + column[None, :], (quotient * factor[None, :]).to(normed.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["num_rows"])
def _backward(
    grad,
    grad_summed,
    x,
    weight,
    scales,
    grad_x,
    sums,
    x_stride,
    num_rows,
    width,
    HAS_RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    factor = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(tl.program_id(0) * ROWS, num_rows, tl.num_programs(0) * ROWS):
        row = start + tl.arange(0, ROWS)
        at = row.to(tl.int64)[:, None]
        real = (row < num_rows)[:, None] & (column < width)[None, :]  # [ROWS, BLOCK], as all tiles below
        scale = tl.load(scales + row, mask=row < num_rows, other=0.0)[:, None]
        quotient = tl.load(x + at * x_stride + column[None, :], mask=real, other=0.0).to(tl.float32) * scale
        out = tl.load(grad + at * width + column[None, :], mask=real, other=0.0).to(tl.float32)
        total += tl.sum(out * quotient, 0)
        out *= factor[None, :]
        value = scale * (out - quotient * (tl.sum(out * quotient, 1) / width)[:, None])
        if HAS_RESIDUAL:
            value += tl.load(grad_summed + at * width + column[None, :], mask=real, other=0.0).to(tl.float32)
        tl.store(grad_x + at * width + column[None, :], value.to(grad_x.dtype.element_ty), mask=real)
    tl.store(sums + tl.program_id(0) * width + column, total, mask=column < width)
