"""Weights of fewer bits: every linear layer of a loaded model and the matrix of its next-token head, replaced in place.

The input embedding keeps its dtype; a family learns nothing of it. `WideLinear`, which needs range, is left alone.
"""

from typing import Any

import torch
from torch import Tensor, nn

from trefoil_kernels.low_bit import Int8Weight, int8_linear, to_int8
from trefoil_models.heads import NextToken
from trefoil_models.layers import Linear, WideLinear


class Int8Linear(nn.Module):
    """What stands in a linear layer's place, with its weight in 8 bits."""

    def __init__(self, base: Linear) -> None:
        super().__init__()
        self.weight = to_int8(base.weight)
        self.bias = base.bias

    def forward(self, x_TM: Tensor) -> Tensor:
        return int8_linear(x_TM, self.weight, self.bias)


class Int8NextToken(NextToken):
    """Logits by an 8-bit copy of the matrix, which the embedding may still need whole."""

    def __init__(self, base: NextToken) -> None:
        super().__init__(base.weight, base.bias)
        self._low: Int8Weight = to_int8(base.weight)

    def logits(self, hidden_RM: Tensor) -> Tensor:
        return int8_linear(hidden_RM, self._low, None if self.bias is None else self.bias[0])


@torch.no_grad()
def quantise(model: Any) -> None:
    """Replace the layers of a model on the CPU, once it is loaded."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Linear) and not isinstance(module, WideLinear):
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, Int8Linear(module))
    head = getattr(model, "lm_head", None)
    if isinstance(head, NextToken):
        model.lm_head = Int8NextToken(head)
