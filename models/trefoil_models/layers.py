"""The parts that families are built of: norms, projections, feed-forwards.

`Linear` holds its weight as files do ([out, in]); what wraps it (adapters, quantisation) replaces the module.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trefoil_kernels import float8_linear, packed_linear
from trefoil_kernels.add import add
from trefoil_kernels.float8_linear import Float8Weight
from trefoil_kernels.gated_act import ACTIVATIONS, gated_act
from trefoil_kernels.layer_norm import add_layer_norm, layer_norm
from trefoil_kernels.linear import linear, linears
from trefoil_kernels.lookup import lookup
from trefoil_kernels.packed_linear import Weight, products
from trefoil_kernels.rms_norm import add_rms_norm, rms_norm


class Linear(nn.Linear):
    """torch's own, computed by our door."""

    def forward(self, x_TM: Tensor) -> Tensor:
        return linear(x_TM, self.weight, self.bias)


class FusedLinear(Linear):
    """Several projections of the same rows in one, their outputs one after the other: `blocks` are their widths."""

    def __init__(self, width: int, *blocks: int, bias: bool = True) -> None:
        super().__init__(width, sum(blocks), bias=bias)
        self.blocks = blocks


class WideLinear(Linear):
    """A Linear whose products overflow float16: its weight stays in float32 where the others become float16."""


class MatrixLinear(Linear):
    """A Linear whose weight is read as a matrix besides: it stays as files lay it out."""


class PackedLinear(nn.Module):
    """What stands in a linear layer's place when its weight was laid out for the CPU, or has fewer bits."""

    def __init__(self, base: nn.Linear, weight: Weight) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = weight

    def forward(self, x_TM: Tensor) -> Tensor:
        return self.weight.times(x_TM)


class Float8Linear(PackedLinear):
    """The same on a GPU: 8-bit floats in the order of files."""

    weight: Float8Weight


@dataclass(frozen=True, slots=True)
class LowRanks:
    """What is added to a weight, as matrices: up^T down for each slot S, scaled, and which slot is a row's own.

    `is_own_TS` None: the only slot is every row's.
    """

    down_SRM: Tensor
    up_SRO: Tensor
    is_own_TS: Tensor | None = None

    def own(self, low_THSR: Tensor) -> Tensor:
        """With zeros for the slots of others."""
        return low_THSR if self.is_own_TS is None else low_THSR * self.is_own_TS[:, None, :, None]


class Wrapped(nn.Module):
    """What stands in a linear layer's place, asks it first and changes its answer."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x_TM: Tensor) -> Tensor:
        return self.changed(x_TM, self.base(x_TM), None)

    def changed(self, x_TM: Tensor, y_TF: Tensor, at_T: Tensor | None) -> Tensor:
        """What becomes of the layer's answer; y itself may be changed where nobody asks for gradients.

        `at_T`: which rows of the pass these are, where they are not all of it in order.
        """
        raise NotImplementedError

    def low_ranks(self) -> LowRanks | None:
        """What `changed` adds, as matrices for the rows of this pass; None: nothing."""
        raise NotImplementedError


@torch.no_grad()
def lay_one_after_another(layers: Sequence[nn.Module], name: str) -> Tensor:
    """Give the layers' weights (or biases) one place in memory, and that, [sum of F, ...]; for inference."""
    parts = [getattr(layer, name) for layer in layers]
    whole = torch.cat(parts)
    for layer, part in zip(layers, torch.split(whole, [len(part) for part in parts]), strict=True):
        setattr(layer, name, nn.Parameter(part, requires_grad=False))
    return whole


def lay_float8_together(layers: Sequence[Float8Linear]) -> Float8Weight:
    """The same for weights of 8-bit floats, with their scales and biases."""
    whole, parts = float8_linear.together([layer.weight for layer in layers])
    for layer, part in zip(layers, parts, strict=True):
        layer.weight = part
    return whole


def weight_of(layer: nn.Module) -> Tensor:
    """The weight of a MatrixLinear, without what wraps it."""
    weight = layer.base.weight if isinstance(layer, Wrapped) else layer.weight
    assert isinstance(weight, Tensor)
    return weight


def low_ranks(layer: nn.Module) -> list[LowRanks]:
    """What wraps a MatrixLinear, as matrices for the rows of this pass."""
    own = layer.low_ranks() if isinstance(layer, Wrapped) else None
    return [] if own is None else [own]


def side_by_side(x_TM: Tensor, *layers: nn.Module, at_T: Tensor | None = None) -> list[Tensor]:
    """What each linear layer makes of the same rows; in one go where all of them were laid out for it.

    `at_T`: which rows of the pass these are, where they are not all of it in order.
    """
    bases = [layer.base if isinstance(layer, Wrapped) else layer for layer in layers]
    packed = [base.weight for base in bases if isinstance(base, PackedLinear)]
    plain = [base for base in bases if isinstance(base, Linear)]
    if len(packed) == len(layers):
        results = products(x_TM, packed)
    elif len(plain) == len(layers) and not torch.is_grad_enabled():
        results = linears(x_TM, [base.weight for base in plain], [base.bias for base in plain])
    else:
        results = [base(x_TM) for base in bases]
    pairs = zip(layers, results, strict=True)
    return [layer.changed(x_TM, y_TF, at_T) if isinstance(layer, Wrapped) else y_TF for layer, y_TF in pairs]


def activated(x_TM: Tensor, layer: nn.Module, activate: Callable[[Tensor], Tensor]) -> Tensor:
    """act(layer(x)); in one go where a packed layer knows how."""
    if isinstance(layer, PackedLinear):
        return packed_linear.activated(x_TM, layer.weight, activate)
    return activate(layer(x_TM))


class Embedding(nn.Embedding):
    """torch's own, computed by our door; its weight may serve as the head's."""

    weight: nn.Parameter

    def forward(self, ids_T: Tensor) -> Tensor:
        return lookup(ids_T, self.weight)


class RMSNorm(nn.Module):
    """Scale to unit mean square, then by a weight; over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_TM: Tensor) -> Tensor:
        return rms_norm(x_TM, self.weight, self.eps)

    def after(self, x_TM: Tensor, residual_TM: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of their sum, and the sum."""
        return add_rms_norm(x_TM, residual_TM, self.weight, self.eps)


class LayerNorm(nn.Module):
    """Centre, scale to unit variance, then an affine map (Ba et al., arXiv 1607.06450)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_TM: Tensor) -> Tensor:
        return layer_norm(x_TM, self.weight, self.bias, self.eps)

    def after(self, x_TM: Tensor, residual_TM: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of their sum, and the sum."""
        sum_TM = add(x_TM, residual_TM)
        return self(sum_TM), sum_TM

    def of_sum(self, x_TM: Tensor, residual_TM: Tensor) -> Tensor:
        """The norm of their sum."""
        return add_layer_norm(x_TM, residual_TM, self.weight, self.bias, self.eps)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer, arXiv 2002.05202); `names` are what files call gate, up and down."""

    def __init__(
        self,
        width: int,
        inner: int,
        *,
        activation: str,
        bias: bool,
        names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:
        super().__init__()
        self.activation = activation
        self.reads_together = names[:2]
        self._names = names
        for name, sizes in zip(names, ((width, inner), (width, inner), (inner, width)), strict=True):
            setattr(self, name, Linear(*sizes, bias=bias))

    @property
    def parts(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """The gate, up and down projections as they are now."""
        gate, up, down = (getattr(self, name) for name in self._names)
        return gate, up, down

    def forward(self, x_TM: Tensor, at_T: Tensor | None = None) -> Tensor:
        """`at_T`: which rows of the pass these are, where they are not all of it in order."""
        gate, up, down = self.parts
        gate_TF, up_TF = side_by_side(x_TM, gate, up, at_T=at_T)
        (out_TM,) = side_by_side(gated_act(gate_TF, up_TF, self.activation), down, at_T=at_T)
        return out_TM


class FusedGatedMLP(nn.Module):
    """The same, one projection making gate and up, in that order."""

    def __init__(
        self,
        width: int,
        inner: int,
        *,
        activation: str,
        bias: bool,
        names: tuple[str, str] = ("gate_up_proj", "down_proj"),
    ) -> None:
        super().__init__()
        self.activation = activation
        self._names = gate_up, down = names
        setattr(self, gate_up, FusedLinear(width, inner, inner, bias=bias))
        setattr(self, down, Linear(inner, width, bias=bias))

    def forward(self, x_TM: Tensor) -> Tensor:
        gate_up, down = (getattr(self, name) for name in self._names)
        gate_TF, up_TF = gate_up(x_TM).chunk(2, -1)
        out_TM: Tensor = down(gated_act(gate_TF, up_TF, self.activation))
        return out_TM


class PlainMLP(nn.Module):
    """down(act(up(x))), with biases; under GPT-2's names unless told."""

    def __init__(self, width: int, inner: int, *, activation: str, names: tuple[str, str] = ("c_fc", "c_proj")) -> None:
        super().__init__()
        self.activate = ACTIVATIONS[activation]
        self._names = names
        for name, sizes in zip(names, ((width, inner), (inner, width)), strict=True):
            setattr(self, name, Linear(*sizes))

    def forward(self, x_TM: Tensor) -> Tensor:
        up, down = (getattr(self, name) for name in self._names)
        out_TM: Tensor = down(activated(x_TM, up, self.activate))
        return out_TM
