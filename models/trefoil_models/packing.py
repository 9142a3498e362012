"""Weights as the CPU's products like them: every linear layer of a loaded model and the matrix of its next-token head,
replaced in place; whole, or in 8 or 4 bits.

What was laid out is the only copy of a layer's weight. The input embedding keeps its dtype and its place in the file,
also where the head is tied to it; a family learns nothing of it. In fewer bits `WideLinear`, which needs range, is left
whole, and `MatrixLinear` is not touched.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from trefoil_kernels import low_bit, packed_linear
from trefoil_kernels.linear import following
from trefoil_kernels.packed_linear import Weight
from trefoil_models.heads import NextToken
from trefoil_models.layers import Linear, MatrixLinear, PackedLinear, WideLinear, lay_one_after_another
from trefoil_models.mixture import Mixture


@runtime_checkable
class Settling(Protocol):
    """A module that keeps something made of its weights, once they will not change any more."""

    def settle(self) -> None: ...


PACKERS: dict[str | None, Callable[[Tensor, Tensor | None], Weight | None]] = {
    None: packed_linear.pack,
    "int8": low_bit.pack_int8,
    "int4": low_bit.pack_int4,
}
"""By the name of the quantisation."""


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
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear) and not isinstance(module, MatrixLinear):
            own = packed_linear.pack if isinstance(module, WideLinear) else packer
            _replace(model, name, module, own(module.weight, module.bias))
    settle(model)
    head = getattr(model, "lm_head", None)
    if isinstance(head, NextToken) and (packed := packer(head.weight, None if head.bias is None else head.bias[0])):
        model.lm_head = PackedNextToken(head, packed)


@torch.no_grad()
def lay_together(model: Any) -> None:
    """On a GPU: let weights that meet the same rows follow each other in memory, so that one product does for all."""
    settle(model)
    for module in model.modules():
        if isinstance(module, Mixture):
            module.lay_in_stacks()
        layers = [getattr(module, name) for name in getattr(module, "reads_together", ())]
        for name in ("weight", "bias") if layers and all(type(layer) is Linear for layer in layers) else ():
            parts = [part for layer in layers if (part := getattr(layer, name)) is not None]
            if len(parts) == len(layers) and following(parts) is None:
                lay_one_after_another(layers, name)


def settle(model: Any) -> None:
    """Compute once and for all what is made of weights: a head's matrix, a bias by distance."""
    for module in model.modules():
        if isinstance(module, Settling):
            module.settle()
    head = getattr(model, "lm_head", None)
    if isinstance(head, NextToken) and head.matrix is not head.weight:
        model.lm_head = NextToken(nn.Parameter(head.matrix, requires_grad=False), head.bias)


def _replace(model: Any, name: str, layer: nn.Linear, packed: Weight | None) -> None:
    if packed is not None:
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, PackedLinear(layer, packed))
