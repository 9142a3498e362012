"""Gated activation of a feed-forward: act(gate) * up (Shazeer, arXiv 2002.05202, eq. 6)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_fast": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
}
"""The names that config.json uses."""


def gated_act(gate_TF: Tensor, up_TF: Tensor, activation: str) -> Tensor:
    """act(gate) * up, elementwise; `activation` is a key of ACTIVATIONS."""
    return ACTIVATIONS[activation](gate_TF) * up_TF
