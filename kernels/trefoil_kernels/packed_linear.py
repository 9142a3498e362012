"""x @ weight.T + bias with a weight that was laid out once for the CPU's products; `pack` and its kin make one.

Several weights may meet the same rows in one call. Where the native library has no layout for a dtype, or the processor
multiplies bfloat16 in tiles of its own (AMX), oneDNN's is taken: torch's private operations, hence with a way back.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import structlog
import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil_kernels.cpu import library
from trefoil_kernels.cpu.build import cpu_flags
from trefoil_kernels.cpu.calls import KINDS
from trefoil_kernels.cpu.products import Packed
from trefoil_kernels.float8_linear import Float8Weight, joined
from trefoil_kernels.gated_act import gelu_tanh
from trefoil_kernels.launch import with_whole_rows
from trefoil_kernels.linear import has_bf16_products, linear

log = structlog.get_logger()

FLOATS = (torch.float32, torch.bfloat16)
NATIVE_ACTIVATIONS = {F.gelu: "gelu", F.relu: "relu", F.silu: "silu", gelu_tanh: "gelu_tanh"}
USUAL_ROWS = 16
"""oneDNN chooses its layout by a number of rows; that of 16 serves all others nearly as well."""


class Weight(Protocol):
    """A weight with its bias, ready to be multiplied with."""

    def times(self, x_TM: Tensor) -> Tensor:
        """[T, F] of x's dtype; inference only."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class NativeWeight:
    """As the native library lays it out."""

    packed: Packed

    def times(self, x_TM: Tensor) -> Tensor:
        return products(x_TM, [self])[0]


@dataclass(frozen=True, slots=True, eq=False)
class OneDnnWeight:
    """As oneDNN lays it out; one row alone is bound by memory and quicker with the weight as it was."""

    packed: Tensor
    plain_FM: Tensor
    bias_F: Tensor | None

    def times(self, x_TM: Tensor) -> Tensor:
        if len(x_TM) <= 1:
            return linear(x_TM, self.plain_FM, self.bias_F)
        out_TF: Tensor = torch.ops.mkldnn._linear_pointwise(x_TM, self.packed, self.bias_F, "none", [], "")
        return out_TF


def pack(weight_FM: Tensor, bias_F: Tensor | None = None) -> Weight | None:
    """The weight laid out, float32 or bfloat16; None where nothing here is quicker than `linear`."""
    if not weight_FM.is_cpu or weight_FM.dtype not in FLOATS:
        return None
    weight_FM, bias_F = weight_FM.detach(), None if bias_F is None else bias_F.detach()
    native = library.native()
    if native is None or (weight_FM.dtype == torch.bfloat16 and _has_amx()):
        return _by_onednn(weight_FM, bias_F)
    kind = KINDS[weight_FM.dtype]
    data = native.products.pack(weight_FM, kind)
    return None if data is None else NativeWeight(Packed(data, kind, len(weight_FM), bias_F))


def products(x_TM: Tensor, weights: Sequence[Weight]) -> list[Tensor]:
    """The same rows times each weight, [T, F] each: in one call where all are laid out alike."""
    narrow = [weight for weight in weights if isinstance(weight, Float8Weight)]
    if len(narrow) == len(weights) and (whole := joined(narrow)):
        return list(whole.times(x_TM).split([weight.outs for weight in narrow], -1))
    packed = [weight.packed for weight in weights if isinstance(weight, NativeWeight)]
    native = library.native()
    if native is None or len(packed) < len(weights) or len({weight.kind for weight in packed}) > 1:
        return [weight.times(x_TM) for weight in weights]
    return native.products.packed(with_whole_rows(x_TM), packed)


def activated(x_TM: Tensor, weight: Weight, activate: Callable[[Tensor], Tensor]) -> Tensor:
    """act(x @ weight.T + bias); the native products take some activations upon themselves."""
    native = library.native()
    name = NATIVE_ACTIVATIONS.get(activate)
    if name is None or not isinstance(weight, NativeWeight) or native is None:
        return activate(weight.times(x_TM))
    return native.products.packed(with_whole_rows(x_TM), [weight.packed], activation=name)[0]


def _by_onednn(weight_FM: Tensor, bias_F: Tensor | None) -> OneDnnWeight | None:
    if weight_FM.dtype == torch.bfloat16 and not has_bf16_products():
        return None
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight_FM, USUAL_ROWS)
    except (AttributeError, RuntimeError) as error:
        _say_unpacked(str(error).splitlines()[0])
        return None
    return OneDnnWeight(packed, weight_FM, bias_F)


@cache
def _has_amx() -> bool:
    return "amx_bf16" in cpu_flags()


@cache
def _say_unpacked(why: str) -> None:
    log.warning("weights_not_packed", why=why, instead="torch's own products")
