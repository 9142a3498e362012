"""What a model sees of the world: packed rows, and an object to attend with.

A model cannot know whether it is training, prefilling or decoding: it asks `attend.own(...)` and gets an answer.
`PackedAttend` answers from the pass itself (training); the engine's PagedAttend from its pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing, packed_attention


@dataclass(frozen=True, slots=True)
class Rows:
    """One pass's tokens: id, position within its sequence, and how long the sequence's prompt is (all int64 [T]).

    A training example is all prompt. Only rotary scalings that depend on length read `prompt_lens_T`.
    """

    ids_T: Tensor
    positions_T: Tensor
    prompt_lens_T: Tensor


@dataclass(frozen=True, slots=True)
class Site:
    """One attention of a model, as the engine must size pages for it."""

    kv_heads: int
    head_dim: int


class Attend(Protocol):
    """Answers the attention of one pass."""

    def own(self, site: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, *, mask: Mask, scale: float) -> Tensor:
        """Each row's attention over its own sequence up to what the mask lets it see, [T, H, D]."""
        ...


@dataclass(frozen=True, slots=True)
class PackedAttend:
    """Whole sequences in one pass: keys and values come from the pass itself and carry gradients."""

    packing: Packing

    def own(self, site: int, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, *, mask: Mask, scale: float) -> Tensor:
        return packed_attention(q_THD, k_TGD, v_TGD, self.packing, mask=mask, scale=scale)


def packed_rows(sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu") -> tuple[Rows, PackedAttend]:
    """Whole sequences as one pass."""
    lens = tuple(len(ids) for ids in sequences)
    rows = Rows(
        ids_T=torch.tensor([i for ids in sequences for i in ids], device=device),
        positions_T=torch.cat([torch.arange(n) for n in lens]).to(device),
        prompt_lens_T=torch.tensor([n for n in lens for _ in range(n)], device=device),
    )
    return rows, PackedAttend(Packing(lens))
