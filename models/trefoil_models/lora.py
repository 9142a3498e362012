"""Low-rank adapters (Hu et al., arXiv 2106.09685): y = base(x) + (alpha / r) up(down(dropout(x))).

A wrapper takes a linear layer's place in its family, which learns nothing of it. How adapters lie in files is
`adapter_files`' business.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trefoil_models.layers import Linear, LowRanks, Wrapped

ALL_LINEAR = "all-linear"


class TargetError(ValueError):
    """A target that no linear layer of the model has for its name."""


@dataclass(frozen=True, slots=True)
class LoraShape:
    """Rank and scale, and the last part of the names of the layers to adapt; ALL_LINEAR means every one."""

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)


@dataclass(frozen=True, slots=True)
class LowRank:
    """One layer's adapter: down [r, in], up [out, r], and what their product is multiplied by."""

    down_RM: Tensor
    up_OR: Tensor
    scale: float


class LoraLinear(Wrapped):
    """A frozen linear layer and its adapter."""

    def __init__(self, base: nn.Module, low: LowRank, *, dropout: float) -> None:
        super().__init__(base)
        self.lora_down, self.lora_up = nn.Parameter(low.down_RM), nn.Parameter(low.up_OR)
        self.scale = low.scale
        self.dropout = nn.Dropout(dropout)

    def changed(self, x_TM: Tensor, y_TF: Tensor, at_T: Tensor | None) -> Tensor:
        return y_TF + self.dropout(x_TM) @ self.lora_down.T @ self.lora_up.T * self.scale

    def low_ranks(self) -> LowRanks:
        return LowRanks(self.lora_down[None], self.lora_up.T[None] * self.scale)

    @property
    def low(self) -> LowRank:
        return LowRank(self.lora_down.detach(), self.lora_up.detach(), self.scale)


def attach(model: Any, shape: LoraShape, *, seed: int) -> dict[str, LoraLinear]:
    """Wrap every targeted layer, frozen, with a fresh adapter that changes nothing yet; by module name.

    Down starts uniform in +-1/sqrt(in), up at zero, as PEFT does. Raises TargetError.
    """
    generator = torch.Generator().manual_seed(seed)
    wrapped = {}
    for name, layer in list(_targeted(model, shape.targets)):
        weight = layer.weight
        bound = 1 / math.sqrt(weight.shape[1])
        down_RM = torch.empty(shape.r, weight.shape[1]).uniform_(-bound, bound, generator=generator)
        up_OR = torch.zeros(weight.shape[0], shape.r)
        low = LowRank(
            down_RM.to(weight.device, weight.dtype), up_OR.to(weight.device, weight.dtype), shape.alpha / shape.r
        )
        wrapped[name] = _wrap(model, name, low, dropout=shape.dropout)
    return wrapped


def attach_given(model: Any, lows: dict[str, LowRank], *, dropout: float = 0.0) -> dict[str, LoraLinear]:
    """Wrap the layers of an adapter that exists already."""
    return {name: _wrap(model, name, low, dropout=dropout) for name, low in lows.items()}


def wrapped_layers(model: Any) -> dict[str, LoraLinear]:
    """The model's adapted layers by module name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


@torch.no_grad()
def merge(model: Any) -> None:
    """Add every adapter to the layer it wraps and take the wrapper away."""
    for name, layer in wrapped_layers(model).items():
        base = layer.base
        assert isinstance(base, nn.Linear)
        base.weight += (layer.lora_up.float() @ layer.lora_down.float() * layer.scale).to(base.weight.dtype)
        _replace(model, name, base)


def linear_names(model: Any) -> Collection[str]:
    """The last parts of the names of all layers that can be adapted."""
    return sorted({name.rpartition(".")[2] for name, _ in _linears(model)})


def _targeted(model: Any, targets: Collection[str]) -> Iterator[tuple[str, nn.Linear]]:
    known = linear_names(model)
    for target in targets:
        if target != ALL_LINEAR and target not in known:
            raise TargetError(f"target_modules: {target!r} is no linear layer of this model; it has {', '.join(known)}")
    for name, module in _linears(model):
        if ALL_LINEAR in targets or name.rpartition(".")[2] in targets:
            yield name, module


def _linears(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of the body; heads that stand outside it are no adapter's business."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and name.partition(".")[0] not in model.outside:
            yield name, module


def _wrap(model: Any, name: str, low: LowRank, *, dropout: float) -> LoraLinear:
    base = model.get_submodule(name)
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    layer = LoraLinear(base, low, dropout=dropout)
    _replace(model, name, layer)
    return layer


def _replace(model: Any, name: str, module: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, module)
