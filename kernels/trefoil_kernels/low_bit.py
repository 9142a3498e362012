"""Products with weights of 8 and of 4 bits, symmetric, to the nearest (Jacob et al., arXiv 1712.05877).

    8 bits   weight[f, m] = scale[f] * value[f, m],          value in -127 .. 127, scale[f] = max_m |weight[f, m]| / 127
    4 bits   weight[f, m] = scale[f, m // 32] * value[f, m], value in -8 .. 7,     scale = the farthest of 32 / -8

Where the processor multiplies bytes (AVX-512 VNNI), activations are rounded to 8 bits on the way, with a scale for each
group of a row: 128 numbers with 8-bit weights, 32 with 4-bit ones. Elsewhere they keep their dtype.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil_kernels.cpu import library
from trefoil_kernels.cpu.calls import INT4, KINDS
from trefoil_kernels.cpu.library import native_for
from trefoil_kernels.cpu.products import NIBBLE_GROUP, Packed
from trefoil_kernels.float8 import Float8, to_float8
from trefoil_kernels.float8_linear import Float8Weight
from trefoil_kernels.packed_linear import NativeWeight, Weight

LARGEST = 127
ROW_GROUP = 128


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """Values int8 [F, M] and scales float32 [F]."""

    values_FM: Tensor
    scales_F: Tensor

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The weight that these stand for, [F, M]."""
        return (self.values_FM.float() * self.scales_F[:, None]).to(dtype)


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """Values int8 [F, M] within -8 .. 7 and scales float16 [F, M / 32], rounded up."""

    values_FM: Tensor
    scales_FG: Tensor

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The weight that these stand for, [F, M]."""
        scales_FM = self.scales_FG.float().repeat_interleave(NIBBLE_GROUP, 1)[:, : self.values_FM.shape[1]]
        return (self.values_FM.float() * scales_FM).to(dtype)


@dataclass(frozen=True, slots=True, eq=False)
class PlainInt8Weight:
    """8-bit values in the order of files, met by activations of their own dtype."""

    weight: Int8Weight
    bias_F: Tensor | None

    def times(self, x_TM: Tensor) -> Tensor:
        return int8_linear(x_TM, self.weight, self.bias_F)


def to_int8(weight_FM: Tensor) -> Int8Weight:
    """The nearest values; an output of zeros stays one."""
    weight_FM = weight_FM.float()
    scales_F = weight_FM.abs().amax(1) / LARGEST
    values_FM = (weight_FM / scales_F.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_()
    return Int8Weight(values_FM.to(torch.int8), scales_F)


def to_int4(weight_FM: Tensor) -> Int4Weight:
    """The nearest values; the number of a group that is farthest from zero becomes -8, so that all 16 are used."""
    outs, width = weight_FM.shape
    grouped_FGS = F.pad(weight_FM.float(), (0, -width % NIBBLE_GROUP)).view(outs, -1, NIBBLE_GROUP)
    farthest_FG1 = grouped_FGS.gather(2, grouped_FGS.abs().argmax(2, keepdim=True))
    scales_FG1 = (farthest_FG1 / -8).half()
    divisors_FG1 = torch.where(scales_FG1 == 0, 1, scales_FG1.float())
    values_FGS = (grouped_FGS / divisors_FG1).round_().clamp_(-8, 7)
    return Int4Weight(values_FGS.view(outs, -1)[:, :width].to(torch.int8), scales_FG1[..., 0])


def pack_int8(weight_FM: Tensor, bias_F: Tensor | None = None) -> Weight:
    """An 8-bit weight, laid out for products of bytes where the processor has them."""
    weight, native, kind = to_int8(weight_FM), library.native(), KINDS[torch.int8]
    data = None if native is None else native.products.pack(weight.values_FM, kind)
    if data is None:
        return PlainInt8Weight(weight, bias_F)
    return NativeWeight(Packed(data, kind, len(weight_FM), bias_F, weight.scales_F))


def pack_float8(weight_FM: Tensor, bias_F: Tensor | None = None) -> Weight:
    """A weight of 8-bit floats."""
    return laid_out(to_float8(weight_FM), bias_F)


def laid_out(weight: Float8, bias_F: Tensor | None = None) -> Weight:
    """The same weight, laid out where the processor turns codes into bfloat16 at once (AVX-512 VBMI)."""
    native, kind = library.native(), KINDS[torch.float8_e4m3fn]
    data = None if native is None else native.products.pack(weight.codes_FM, kind)
    if data is None:
        return Float8Weight(weight, bias_F)
    return NativeWeight(Packed(data, kind, len(weight.codes_FM), bias_F, weight.scales_F))


def has_int4() -> bool:
    """Does this processor multiply bytes, as products with 4-bit weights ask?"""
    native = library.native()
    return native is not None and native.products.packs(INT4)


def pack_int4(weight_FM: Tensor, bias_F: Tensor | None = None) -> Weight:
    """A 4-bit weight laid out; only where `has_int4`."""
    weight, native = to_int4(weight_FM), library.native()
    data = None if native is None else native.products.pack(weight.values_FM, INT4, weight.scales_FG)
    assert data is not None, "4-bit weights need has_int4"
    return NativeWeight(Packed(data, INT4, len(weight_FM), bias_F))


def reference(x_TM: Tensor, weight: Int8Weight | Int4Weight, bias_F: Tensor | None = None) -> Tensor:
    """With the restored weight, in torch."""
    return F.linear(x_TM, weight.restored(x_TM.dtype), bias_F)


def rounded(x_TM: Tensor, group: int) -> Tensor:
    """The activations that products of bytes see: each group of a row to 8 bits by its greatest number."""
    rows, width = x_TM.shape
    grouped_TGS = F.pad(x_TM.float(), (0, -width % group)).view(rows, -1, group)
    scales_TG1 = grouped_TGS.abs().amax(2, keepdim=True) / LARGEST
    values_TGS = (grouped_TGS / scales_TG1.clamp(min=torch.finfo(torch.float32).tiny)).round_()
    return (values_TGS * scales_TG1).view(rows, -1)[:, :width]


def int8_linear(x_TM: Tensor, weight: Int8Weight, bias_F: Tensor | None = None) -> Tensor:
    """[T, F] of x's dtype with activations as they are; inference only."""
    native = native_for(x_TM, weight.values_FM)
    if native is None or x_TM.dim() != 2 or x_TM.stride(1) != 1:
        return reference(x_TM, weight, bias_F)
    return native.products.plain(x_TM, weight.values_FM, bias_F, weight.scales_F)
