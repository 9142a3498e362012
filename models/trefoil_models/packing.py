"""Weights as products like them: every linear layer of a loaded model and the matrix of its next-token head, replaced
in place, one by one; whole, or in 8 or 4 bits.

What was laid out is the only copy of a layer's weight. The input embedding keeps its dtype and its place in the file,
also where the head is tied to it; a family learns nothing of it. In fewer bits `WideLinear`, which needs range, is left
whole, and `MatrixLinear` is not touched.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trefoil_kernels import float8_linear, low_bit, packed_linear
from trefoil_kernels.float8_linear import Float8Weight
from trefoil_kernels.linear import following
from trefoil_kernels.packed_linear import Weight
from trefoil_models.heads import NextToken
from trefoil_models.layers import (
    Float8Linear,
    Linear,
    MatrixLinear,
    PackedLinear,
    WideLinear,
    lay_float8_together,
    lay_one_after_another,
)
from trefoil_models.mixture import Mixture


@runtime_checkable
class Settling(Protocol):
    """A module that keeps something made of its weights, once they will not change any more."""

    def settle(self) -> None: ...


PACKERS: dict[str | None, Callable[[Tensor, Tensor | None], Weight | None]] = {
    None: packed_linear.pack,
    "int8": low_bit.pack_int8,
    "int4": low_bit.pack_int4,
    "fp8": low_bit.pack_float8,
}
"""By the name of the quantisation, on the CPU."""


class PackedNextToken(NextToken):
    """Logits by a packed copy of the matrix, which the embedding may still need as it was."""

    def __init__(self, base: NextToken, packed: Weight) -> None:
        super().__init__(base.weight, base.bias)
        self._packed = packed

    def logits(self, hidden_RM: Tensor) -> Tensor:
        return self._packed.times(hidden_RM)


@torch.no_grad()
def pack(model: Any, quantization: str | None = None) -> None:
    """Replace the layers of a model on the CPU, once it is loaded; those that gain nothing stay."""
    packer = PACKERS[quantization]
    for name in _linear_layers(model):
        layer = model.get_submodule(name)
        own = packed_linear.pack if isinstance(layer, WideLinear) else packer
        if packed := own(layer.weight, layer.bias):
            _replace(model, name, PackedLinear(layer, packed))
    _pack_head(model, packer)


@torch.no_grad()
def pack_float8_on(model: Any, device: torch.device) -> None:
    """Bring a model from the CPU to a GPU, its layers as 8-bit floats; the device holds one of them whole at a time."""

    def packer(weight_FM: Tensor, bias_F: Tensor | None) -> Float8Weight:
        return float8_linear.pack(weight_FM.to(device), None if bias_F is None else bias_F.to(device))

    for name in _linear_layers(model):
        layer = model.get_submodule(name)
        if not isinstance(layer, WideLinear):
            _replace(model, name, Float8Linear(layer, packer(layer.weight, layer.bias)))
    _pack_head(model, packer)
    model.to(device)
    lay_together(model)


@torch.no_grad()
def lay_together(model: Any) -> None:
    """On a GPU: let weights that meet the same rows follow each other in memory, so that one product does for all."""
    settle(model)
    for module in model.modules():
        if isinstance(module, Mixture):
            module.lay_in_stacks()
        layers = [getattr(module, name) for name in getattr(module, "reads_together", ())]
        if layers and all(type(layer) is Linear for layer in layers):
            for name in ("weight", "bias"):
                parts = [part for layer in layers if (part := getattr(layer, name)) is not None]
                if len(parts) == len(layers) and following(parts) is None:
                    lay_one_after_another(layers, name)
        elif layers and all(isinstance(layer, Float8Linear) for layer in layers):
            _lay_float8(layers)


def _lay_float8(layers: list[Float8Linear]) -> None:
    weights = [layer.weight for layer in layers]
    if len({weight.bias_F is None for weight in weights}) == 1 and float8_linear.joined(weights) is None:
        lay_float8_together(layers)


def settle(model: Any) -> None:
    """Compute once and for all what is made of weights: a head's matrix, a bias by distance."""
    for module in model.modules():
        if isinstance(module, Settling):
            module.settle()
    head = getattr(model, "lm_head", None)
    if isinstance(head, NextToken) and head.matrix is not head.weight:
        model.lm_head = NextToken(nn.Parameter(head.matrix, requires_grad=False), head.bias)


def _linear_layers(model: Any) -> list[str]:
    """Their names, not themselves: each one's memory must go when it is replaced."""
    modules = model.named_modules()
    return [name for name, own in modules if isinstance(own, Linear) and not isinstance(own, MatrixLinear)]


def _replace(model: Any, name: str, layer: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, layer)


def _pack_head(model: Any, packer: Callable[[Tensor, Tensor | None], Weight | None]) -> None:
    settle(model)
    head = getattr(model, "lm_head", None)
    if isinstance(head, NextToken) and (packed := packer(head.weight, None if head.bias is None else head.bias[0])):
        model.lm_head = PackedNextToken(head, packed)
