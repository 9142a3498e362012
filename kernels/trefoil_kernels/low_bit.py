"""Products with weights of 8 bits: a scale for each output, symmetric, to the nearest (Jacob et al., arXiv 1712.05877).

    weight[f, m] = scale[f] * value[f, m],   value in -127 .. 127,   scale[f] = max_m |weight[f, m]| / 127

Activations keep their dtype, so nothing saturates on processors whose byte products do.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil_kernels.cpu.library import native_for

LARGEST = 127


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """Values int8 [F, M] and scales float32 [F]."""

    values_FM: Tensor
    scales_F: Tensor

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The weight that these stand for, [F, M]."""
        return (self.values_FM.float() * self.scales_F[:, None]).to(dtype)


def to_int8(weight_FM: Tensor) -> Int8Weight:
    """The nearest values; an output of zeros stays one."""
    weight_FM = weight_FM.float()
    scales_F = weight_FM.abs().amax(1) / LARGEST
    values_FM = (weight_FM / scales_F.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_()
    return Int8Weight(values_FM.to(torch.int8), scales_F)


def reference(x_TM: Tensor, weight: Int8Weight, bias_F: Tensor | None = None) -> Tensor:
    """With the restored weight, in torch."""
    return F.linear(x_TM, weight.restored(x_TM.dtype), bias_F)


def int8_linear(x_TM: Tensor, weight: Int8Weight, bias_F: Tensor | None = None) -> Tensor:
    """[T, F] of x's dtype; inference only."""
    native = native_for(x_TM, weight.values_FM)
    if native is None or x_TM.dim() != 2 or x_TM.stride(1) != 1:
        return reference(x_TM, weight, bias_F)
    return native.product(x_TM, weight.values_FM, bias_F, weight.scales_F)
