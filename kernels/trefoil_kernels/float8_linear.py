"""x @ weight.T + bias with a weight of 8-bit floats: `Float8Weight` is one, wherever it lies.

On a GPU that has such numbers many rows are rounded to them as well, a scale each, and meet the weight in torch's
scaled product; one row alone is bound by reading the weight and keeps its dtype. A CPU and older GPUs always keep it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil_kernels import linear
from trefoil_kernels.cpu.library import native_for
from trefoil_kernels.float8 import Float8, has_float8, rounded_rows, to_float8
from trefoil_kernels.launch import runs_triton, with_whole_rows

MULTIPLE = 16
"""Both sides of a weight that the scaled product takes."""


@dataclass(frozen=True, slots=True, eq=False)
class Float8Weight:
    """Values with their scales, in the order of files."""

    values: Float8
    bias_F: Tensor | None

    @property
    def outs(self) -> int:
        return len(self.values.codes_FM)

    def times(self, x_TM: Tensor) -> Tensor:
        return float8_linear(with_whole_rows(x_TM), self.values, self.bias_F)


def pack(weight_FM: Tensor, bias_F: Tensor | None = None) -> Float8Weight:
    """The weight rounded, where it lies."""
    return Float8Weight(to_float8(weight_FM), bias_F)


def together(weights: Sequence[Float8Weight]) -> tuple[Float8Weight, list[Float8Weight]]:
    """One weight that holds these one after the other, and each as a part of it; all have a bias, or none has."""
    sizes = [weight.outs for weight in weights]
    codes_FM = torch.cat([weight.values.codes_FM.view(torch.uint8) for weight in weights]).view(torch.float8_e4m3fn)
    scales_F = torch.cat([weight.values.scales_F for weight in weights])
    biases = [weight.bias_F for weight in weights if weight.bias_F is not None]
    whole_F = torch.cat(biases) if biases else None
    parts = [Float8(*pair) for pair in zip(codes_FM.split(sizes), scales_F.split(sizes), strict=True)]
    parts_F = whole_F.split(sizes) if whole_F is not None else [None] * len(sizes)
    own = [Float8Weight(part, bias_F) for part, bias_F in zip(parts, parts_F, strict=True)]
    return Float8Weight(Float8(codes_FM, scales_F), whole_F), own


def joined(weights: Sequence[Float8Weight]) -> Float8Weight | None:
    """The weight that holds all of these, where `together` made them."""
    codes_FM = linear.following([weight.values.codes_FM for weight in weights])
    scales_F = linear.following([weight.values.scales_F for weight in weights])
    biases = [weight.bias_F for weight in weights if weight.bias_F is not None]
    bias_F = linear.following(biases) if len(biases) == len(weights) else None
    if codes_FM is None or scales_F is None or (biases and bias_F is None):
        return None
    return Float8Weight(Float8(codes_FM, scales_F), bias_F)


def reference(x_TM: Tensor, weight: Float8, bias_F: Tensor | None = None) -> Tensor:
    """With the restored weight, in torch."""
    return F.linear(x_TM, weight.restored(x_TM.dtype), bias_F)


def float8_linear(x_TM: Tensor, weight: Float8, bias_F: Tensor | None = None) -> Tensor:
    """[T, F] of x's dtype; inference only."""
    if runs_triton(x_TM) and x_TM.dtype.itemsize == 2:
        if len(x_TM) == 1:
            return linear.on_triton(x_TM, weight.codes_FM, bias_F, weight.scales_F)
        if len(x_TM) and x_TM.is_cuda and has_float8() and not any(size % MULTIPLE for size in weight.codes_FM.shape):
            return _scaled_product(x_TM, weight, bias_F)
    if native := native_for(x_TM, weight.codes_FM):
        return native.products.plain(x_TM, weight.codes_FM, bias_F, weight.scales_F)
    return reference(x_TM, weight, bias_F)


def _scaled_product(x_TM: Tensor, weight: Float8, bias_F: Tensor | None) -> Tensor:
    rows = rounded_rows(x_TM)
    out_TF = torch._scaled_mm(
        rows.codes_FM,
        weight.codes_FM.t(),
        scale_a=rows.scales_F[:, None],
        scale_b=weight.scales_F[None],
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    ).to(x_TM.dtype)
    return out_TF if bias_F is None else out_TF + bias_F
