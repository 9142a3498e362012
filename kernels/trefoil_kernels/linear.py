"""x @ weight.T + bias, the weight as files hold it ([out, in]); `linear` is the door, torch's own the reference.

On a CPU few rows are bound by reading the weight, and there the native product wins. In bfloat16 it wins at any number
of rows where the processor multiplies no bfloat16 of its own; torch would then compute number by number.

On a GPU a single row's product is bound by reading the weight too. The kernel gives each program whole rows of it, and
sums number by number in float32: a matmul tile would stand idle, and cuBLAS splits such products and joins them again.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from trefoil_kernels.cpu.library import native_for
from trefoil_kernels.float8 import as_read, widened
from trefoil_kernels.launch import launch, runs_triton

FEW_ROWS = {torch.float32: 16, torch.bfloat16: 4}
"""Up to here the native product is faster than torch's on a processor that multiplies the dtype itself."""
BLOCK_F, BLOCK_M, WARPS, STAGES = 16, 512, 4, 3
"""The kernel's tile of weight, and how many are in flight: the fastest at the shapes of an 8B model on an H200."""


def linear(x_TM: Tensor, weight_FM: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """[T, F]; differentiable in all three."""
    if _is_native(x_TM, weight_FM, bias_F) and (native := native_for(x_TM, weight_FM)):
        return native.products.plain(x_TM, weight_FM, bias_F)
    if runs_triton(x_TM) and is_one_row(x_TM, weight_FM, bias_F):
        return on_triton(x_TM, weight_FM, bias_F)
    return F.linear(x_TM, weight_FM, bias_F)


def linears(x_TM: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    """The same rows times each weight, [T, F] each: in one product where they follow each other in memory."""
    whole_FM, real = following(weights), [bias for bias in biases if bias is not None]
    whole_F = following(real) if len(real) == len(biases) else None
    if whole_FM is None or (real and whole_F is None):
        return [linear(x_TM, weight_FM, bias_F) for weight_FM, bias_F in zip(weights, biases, strict=True)]
    return list(linear(x_TM, whole_FM, whole_F).split([len(weight_FM) for weight_FM in weights], -1))


def following(parts: Sequence[Tensor]) -> Tensor | None:
    """What holds all of these one after the other, as one tensor; None where they do not lie so."""
    first, end = parts[0], parts[0].data_ptr()
    for part in parts:
        if part.data_ptr() != end or not part.is_contiguous() or part.dtype != first.dtype:
            return None
        end += part.nbytes
    if any(part.untyped_storage().data_ptr() != first.untyped_storage().data_ptr() for part in parts):
        return None
    return first.detach().as_strided((sum(map(len, parts)), *first.shape[1:]), first.stride())


def is_one_row(x_TM: Tensor, weight_FM: Tensor, bias_F: Tensor | None) -> bool:
    """Is it the kernel's case: a row alone of 16-bit numbers, and nobody asks for gradients?"""
    if x_TM.dim() != 2 or len(x_TM) != 1 or x_TM.dtype.itemsize != 2 or x_TM.dtype != weight_FM.dtype:
        return False
    is_plain = weight_FM.is_contiguous() and x_TM.stride(1) == 1
    needs_gradients = x_TM.requires_grad or weight_FM.requires_grad or (bias_F is not None and bias_F.requires_grad)
    return is_plain and not (needs_gradients and torch.is_grad_enabled())


def on_triton(x_TM: Tensor, weight_FM: Tensor, bias_F: Tensor | None = None, scales_F: Tensor | None = None) -> Tensor:
    """By the kernel below; one row. The weight may be codes of `float8` with their scales."""
    num_out, width = weight_FM.shape
    read_FM = weight_FM if scales_F is None else as_read(weight_FM)
    out_TF = torch.empty(1, num_out, dtype=x_TM.dtype, device=x_TM.device)
    launch(
        _one_row,
        (triton.cdiv(num_out, BLOCK_F),),
        *(x_TM, read_FM, x_TM if bias_F is None else bias_F, x_TM if scales_F is None else scales_F, out_TF),
        *(num_out, width),
        HAS_BIAS=bias_F is not None,
        HAS_SCALES=scales_F is not None,
        IS_WHOLE=num_out % BLOCK_F == 0 and width % BLOCK_M == 0,
        BLOCK_F=BLOCK_F,
        BLOCK_M=BLOCK_M,
        STAGES=STAGES,
        num_warps=WARPS,
    )
    return out_TF


def _is_native(x_TM: Tensor, weight_FM: Tensor, bias_F: Tensor | None) -> bool:
    if x_TM.dim() != 2 or not x_TM.is_cpu or x_TM.dtype not in FEW_ROWS or x_TM.dtype != weight_FM.dtype:
        return False
    if not weight_FM.is_contiguous() or x_TM.stride(1) != 1 or not len(x_TM):
        return False
    if bias_F is not None and bias_F.requires_grad and torch.is_grad_enabled():
        return False
    return len(x_TM) <= FEW_ROWS[x_TM.dtype] or (x_TM.dtype == torch.bfloat16 and not has_bf16_products())


def has_bf16_products() -> bool:
    """Does torch multiply bfloat16 matrices by the processor's own instructions?"""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@triton.jit
def _one_row(
    x,
    weight,
    bias,
    scales,
    out,
    num_out,
    width,
    HAS_BIAS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STAGES: tl.constexpr,
):
    """BLOCK_F numbers of the result."""
    entry, column = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_M)
    rows = weight + entry.to(tl.int64)[:, None] * width
    total = tl.zeros([BLOCK_F, BLOCK_M], tl.float32)
    for start in tl.range(0, width, BLOCK_M, num_stages=STAGES):
        at = start + column
        if IS_WHOLE:
            number, tile = tl.load(x + at), tl.load(rows + at[None, :])
        else:
            number = tl.load(x + at, mask=at < width, other=0.0)
            tile = tl.load(rows + at[None, :], mask=(entry < num_out)[:, None] & (at < width)[None, :], other=0.0)
        total += widened(tile) * number.to(tl.float32)[None, :]
    value = tl.sum(total, 1)
    if HAS_SCALES:
        value *= tl.load(scales + entry, mask=entry < num_out, other=0.0)
    if HAS_BIAS:
        value += tl.load(bias + entry, mask=entry < num_out, other=0.0).to(tl.float32)
    tl.store(out + entry, value.to(out.dtype.element_ty), mask=entry < num_out)
