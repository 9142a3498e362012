"""A model in slices, one a process (a rank), as Megatron cuts them (Shoeybi et al., arXiv 1909.08053).

A rank's model is its family's own, of a config with fewer heads and narrower feed-forwards (`Divisible`). What a rank
reads of a tensor is told by the difference of two shapes, whole and own. A layer that reads fewer columns makes a part
of a sum: `join` wraps it. The head has a rank's rows of the vocabulary, where they divide. The input embedding is whole
on every rank: its rows are read, not multiplied, and to slice it would cost one more sum a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from trefoil_models.config_keys import CheckpointError, Indivisible
from trefoil_models.heads import NextToken
from trefoil_models.layers import FusedLinear, Linear, LowRanks, Wrapped
from trefoil_models.lora import LowRank
from trefoil_models.mixture import Mixture

FLAG = "--tensor-parallel-size"
MOST_RANKS = 64


@dataclass(frozen=True, slots=True)
class Share:
    """One of the ranks that hold a model together."""

    rank: int = 0
    count: int = 1


WHOLE = Share()


class Ranks(Protocol):
    """The ranks as one of them sees them. All of them ask the same, in the same order."""

    @property
    def share(self) -> Share: ...
    def sum(self, part_TM: Tensor) -> Tensor:
        """The sum of every rank's part, the same on each; the part itself may be changed."""
        ...

    def beside(self, part_NV: Tensor) -> Tensor:
        """Every rank's columns, one after the other."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """A family's Config of which ranks can have a part each."""

    def divided(self, ranks: int) -> Self:
        """One rank's. Raises Indivisible."""
        ...


class Summed(Wrapped):
    """What stands in place of a layer that makes a part of a sum."""

    def __init__(self, base: nn.Module, ranks: Ranks) -> None:
        super().__init__(base)
        self._ranks = ranks

    def changed(self, x_TM: Tensor, y_TF: Tensor, at_T: Tensor | None) -> Tensor:
        return self._ranks.sum(y_TF)

    def low_ranks(self) -> LowRanks | None:
        return None


class GatheredNextToken(NextToken):
    """Logits of the whole vocabulary, of which each rank's matrix has its rows."""

    def __init__(self, base: NextToken, ranks: Ranks) -> None:
        super().__init__(base.weight, base.bias)
        self._base, self._ranks = base, ranks

    def logits(self, hidden_RM: Tensor) -> Tensor:
        return self._ranks.beside(self._base.logits(hidden_RM))


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A rank's of a linear layer: the columns it reads, and the outputs it makes, in blocks."""

    columns: int
    blocks: tuple[int, ...]

    @classmethod
    def of(cls, layer: Linear) -> "LinearShape":
        return cls(layer.in_features, layer.blocks if isinstance(layer, FusedLinear) else (layer.out_features,))


@dataclass(frozen=True, slots=True)
class Slices:
    """What a rank has of a whole model, of which only the shapes are read; `layers` are the rank's, by name."""

    whole: Any
    share: Share
    layers: dict[str, LinearShape]

    @classmethod
    def between(cls, whole: Any, own: Any, share: Share) -> "Slices":
        """Of a hollow model and a rank's."""
        return cls(whole, share, {name: LinearShape.of(layer) for name, layer in _linears(own)})

    def of(self, name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
        """The rank's part, of this shape, of a parameter of the whole model; what is added once the first rank adds."""
        path, _, leaf = name.rpartition(".")
        if leaf == "bias" and self.share.rank and self._makes_part(path):
            return torch.zeros_like(tensor)
        axis = next((n for n, size in enumerate(tensor.shape) if size != shape[n]), None)
        if axis is None:
            return tensor
        return (
            self._outputs(path, tensor) if axis == 0 and path in self.layers else self._part(tensor, axis, shape[axis])
        )

    def low(self, path: str, low: LowRank) -> LowRank:
        """The rank's part of a layer's adapter."""
        down_RM = self._part(low.down_RM, 1, self.layers[path].columns)
        return LowRank(down_RM, self._outputs(path, low.up_OR), low.scale)

    def join(self, model: Any, ranks: Ranks) -> None:
        """Let a rank's loaded model, whose layers were laid out, answer together with the others'."""
        for name in list(self._parts()):
            path, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(path), leaf, Summed(model.get_submodule(name), ranks))
        head = getattr(self.whole, "lm_head", None)
        if isinstance(head, NextToken) and len(model.lm_head.weight) < len(head.weight):
            model.lm_head = GatheredNextToken(model.lm_head, ranks)

    def _parts(self) -> Iterator[str]:
        """The names of what makes parts of sums: a mixture is one, its experts are not summed one by one."""
        mixture = "-"
        for name, module in self.whole.named_modules():
            if name.startswith(mixture):
                continue
            if isinstance(module, Mixture):
                mixture = f"{name}."
                yield name
            elif self._makes_part(name):
                yield name

    def _makes_part(self, path: str) -> bool:
        """Does the layer read fewer columns than the whole model's?"""
        return path in self.layers and self.layers[path].columns < self.whole.get_submodule(path).in_features

    def _outputs(self, path: str, tensor: Tensor) -> Tensor:
        """The rank's outputs of a layer, block by block."""
        blocks = torch.split(tensor, list(LinearShape.of(self.whole.get_submodule(path)).blocks))
        parts = [self._part(block, 0, size) for block, size in zip(blocks, self.layers[path].blocks, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _part(self, block: Tensor, axis: int, size: int) -> Tensor:
        """So much of it; where there are fewer parts than ranks, neighbours have the same."""
        number = block.shape[axis] // size
        return block.narrow(axis, self.share.rank * number // self.share.count * size, size)


def rank_config(family: str, config: Any, ranks: int) -> Any:
    """The config of one rank's model. Raises CheckpointError naming the flag and what is allowed."""
    if not isinstance(config, Divisible):
        raise CheckpointError(f"{FLAG} {ranks}: the family {family} is not sliced; allowed here: 1")
    try:
        return config.divided(ranks)
    except Indivisible as error:
        allowed = ", ".join(str(count) for count in range(1, MOST_RANKS + 1) if _divides(config, count))
        raise CheckpointError(f"{FLAG} {ranks}: {error}; allowed here: {allowed}") from error


def narrow_head(model: Any, ranks: int) -> None:
    """Give a hollow model's head a rank's rows of the vocabulary, where they divide; else every rank has all."""
    head = getattr(model, "lm_head", None)
    if isinstance(head, NextToken) and head.bias is None and len(head.weight) % ranks == 0:
        head.weight = nn.Parameter(head.weight.new_empty(len(head.weight) // ranks, head.weight.shape[1]))


def placed(model: Any, path: str) -> str:
    """The name that a layer has in a joined model: inside of what sums its parts."""
    at, parts = model, []
    for part in path.split("."):
        at = at.get_submodule(part)
        parts.append(part)
        if isinstance(at, Summed):
            at = at.base
            parts.append("base")
    return ".".join(parts)


def _linears(model: Any) -> Iterator[tuple[str, Linear]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Linear))


def _divides(config: Divisible, ranks: int) -> bool:
    try:
        config.divided(ranks)
    except Indivisible:
        return False
    return True
