"""x @ weight.T + bias, the weight as files hold it ([out, in]); `linear` is the door, torch's own the reference.

On a CPU few rows are bound by reading the weight, and there the native product wins. In bfloat16 it wins at any number
of rows where the processor multiplies no bfloat16 of its own; torch would then compute number by number.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil_kernels.cpu.library import native_for

FEW_ROWS = {torch.float32: 16, torch.bfloat16: 4}
"""Up to here the native product is faster than torch's on a processor that multiplies the dtype itself."""


def linear(x_TM: Tensor, weight_FM: Tensor, bias_F: Tensor | None = None) -> Tensor:
    """[T, F]; differentiable in all three."""
    if _is_native(x_TM, weight_FM, bias_F) and (native := native_for(x_TM, weight_FM)):
        return native.product(x_TM, weight_FM, bias_F)
    return F.linear(x_TM, weight_FM, bias_F)


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
