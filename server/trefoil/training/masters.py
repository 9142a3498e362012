"""Weights in float32 for the optimizer, whatever dtype the model computes in.

A step of training is often smaller than bfloat16 can add to a weight, so the sum is kept here and the model gets it
rounded. Where the model computes in float32 already, its own parameters are the masters.
"""

from collections.abc import Mapping

import torch
from torch import nn


class Masters:
    """The float32 side of some parameters, by their names."""

    def __init__(self, named: Mapping[str, nn.Parameter]) -> None:
        self.named = {
            name: parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())
            for name, parameter in named.items()
        }
        self._rounded = [(named[name], master) for name, master in self.named.items() if named[name] is not master]

    def gather(self) -> None:
        """Add the gradients of one pass to the masters', in float32."""
        for parameter, master in self._rounded:
            if parameter.grad is not None:
                grad = parameter.grad.float()
                master.grad = grad if master.grad is None else master.grad.add_(grad)
                parameter.grad = None

    @torch.no_grad()
    def spread(self) -> None:
        """Give the model the masters' values."""
        for parameter, master in self._rounded:
            parameter.copy_(master)
