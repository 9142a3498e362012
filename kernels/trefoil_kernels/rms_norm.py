"""RMSNorm, alone or after a residual sum (Zhang and Sennrich, arXiv 1910.07467, eq. 4).

    y = x / sqrt(mean(x^2) + eps) * weight

The mean is taken in float32 whatever the dtype; the quotient is cast back *before* the weight, as LLaMA does.
"""

import torch
from torch import Tensor


def rms_norm(x_TM: Tensor, weight_M: Tensor, eps: float) -> Tensor:
    """Normalise over the last axis; same shape and dtype as `x_TM`."""
    x32_TM = x_TM.float()
    scale_T1 = torch.rsqrt(x32_TM.square().mean(-1, keepdim=True) + eps)
    return weight_M * (x32_TM * scale_T1).to(x_TM.dtype)


def add_rms_norm(x_TM: Tensor, residual_TM: Tensor, weight_M: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of both and its norm: (normed, summed)."""
    summed_TM = x_TM + residual_TM
    return rms_norm(summed_TM, weight_M, eps), summed_TM
