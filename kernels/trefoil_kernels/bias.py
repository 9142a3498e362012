"""What is added to attention scores by distance alone, as a value handed to the attention kernels.

T5's buckets (Raffel et al., arXiv 1910.10683, section 2.1): with d = key - query, half of the buckets stand for one
distance each, the other half for ranges that grow with the logarithm up to `max_distance`; all beyond share the last.
A bidirectional table has one half of its buckets for keys ahead; a causal one treats keys ahead as distance 0.

ALiBi (Press et al., arXiv 2108.12409, section 3): slope_h * (key - query), never above zero under a causal mask.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RelativeBias:
    """A learned number per head and bucket of distance; `table_BH` is [buckets, H], and stays as it is meanwhile.

    What is laid out for kernels is made once for all layers of a pass.
    """

    table_BH: Tensor
    max_distance: int
    is_bidirectional: bool
    _laid_out: dict[object, Tensor] = field(default_factory=dict, compare=False, repr=False)

    def values(self, queries_Q: Tensor, keys_K: Tensor) -> Tensor:
        """Float32 [H, Q, K] for these positions; differentiable in the table."""
        ahead_QK = keys_K[None, :] - queries_Q[:, None]
        return self.table_BH.float()[self.buckets(ahead_QK)].permute(2, 0, 1)

    def by_distance(self) -> Tensor:
        """Float32 [H, 2 * max_distance + 1] for key - query from -max_distance on: farther keys share the ends."""
        if torch.is_grad_enabled() and self.table_BH.requires_grad:
            return self._numbers()
        return self._once("by distance", self._numbers)

    def within(self, longest: int) -> Tensor:
        """Float32 [H, 2 * longest - 1] for key - query in sequences up to this length, from 1 - longest on."""
        if torch.is_grad_enabled() and self.table_BH.requires_grad:
            return _within(self, longest)
        return self._once(("within", longest), lambda: _within(self, longest))

    def band(self, rows: int, keys: int, scale: float, dtype: torch.dtype) -> "Band":
        """The same numbers as whole tiles, to be cut out by distance and added to scores before `scale`.

        Not differentiable.
        """
        step, reach = min(rows, keys), self.max_distance
        low, high = -(reach + keys) // step * step, -(-(reach + rows) // step) * step

        def make() -> Tensor:
            return (self._band(rows, low, high - low + keys) / scale).to(dtype)

        return Band(self._once((rows, keys, scale, dtype), make), low, high)

    def _numbers(self) -> Tensor:
        reach = self.max_distance
        ahead_E = torch.arange(-reach, reach + 1, device=self.table_BH.device)
        return self.table_BH.float()[self.buckets(ahead_E)].T.contiguous()

    @torch.no_grad()
    def _band(self, rows: int, low: int, width: int) -> Tensor:
        reach, device = self.max_distance, self.table_BH.device
        ahead = low + torch.arange(width, device=device)[None, :] - torch.arange(rows, device=device)[:, None]
        return self.by_distance()[:, ahead.clamp(-reach, reach) + reach].flatten(0, 1)

    def _once(self, key: object, make: Callable[[], Tensor]) -> Tensor:
        if key not in self._laid_out:
            self._laid_out[key] = make()
        return self._laid_out[key]

    def buckets(self, ahead_QK: Tensor) -> Tensor:
        """The bucket of each key - query, int64 of the same shape."""
        count = len(self.table_BH)
        if self.is_bidirectional:
            count //= 2
            side_QK, far_QK = (ahead_QK > 0).long() * count, ahead_QK.abs()
        else:
            side_QK, far_QK = torch.zeros_like(ahead_QK), (-ahead_QK).clamp(min=0)
        exact = count // 2
        growth = torch.log(far_QK.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        wide_QK = (exact + (growth * (count - exact)).long()).clamp(max=count - 1)
        return side_QK + torch.where(far_QK < exact, far_QK, wide_QK)


@dataclass(frozen=True, slots=True)
class Band:
    """Scores' biases by distance, row under row: number c of a head's row i is that of the distance low + c - i.

    So the tile of rows from r and keys from c lies at column c - r - low, with c - r held between `low` and `high`:
    beyond these all distances of a tile share one number. `values_RW` is [H * rows, width].
    """

    values_RW: Tensor
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Alibi:
    """A slope per head; farther keys count for less."""

    slopes_H: Tensor

    def values(self, queries_Q: Tensor, keys_K: Tensor) -> Tensor:
        """Float32 [H, Q, K] for these positions."""
        return self.slopes_H.float()[:, None, None] * (keys_K[None, :] - queries_Q[:, None]).float()

    def within(self, longest: int) -> Tensor:
        """Float32 [H, 2 * longest - 1] for key - query in sequences up to this length, from 1 - longest on."""
        return _within(self, longest)


Bias = RelativeBias | Alibi


def _within(bias: Bias, longest: int) -> Tensor:
    ahead_E = torch.arange(1 - longest, longest)
    return bias.values(torch.zeros(1, dtype=torch.int64), ahead_E)[:, 0].contiguous()
