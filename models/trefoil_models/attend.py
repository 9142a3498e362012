"""What a model sees of the world: packed rows, and an object to attend with.

A model cannot know whether it is training, prefilling or decoding: it asks `attend.own(...)` and gets an answer.
`PackedAttend` answers from the pass itself (training, encoders); the engine's PagedAttend from its pages. An
encoder-decoder lets its decoder's sites `remember` the encoder's keys and values once and only `recall` them later.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil_kernels.bias import Bias
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing, packed_attention
from trefoil_kernels.rotary import Turn, rotary


@dataclass(frozen=True, slots=True)
class Rows:
    """One pass's tokens: id, position within its sequence, and how long the sequence's prompt is (all int64 [T]).

    A training example is all prompt. Only rotary scalings that depend on length read `prompt_lens_T`. `types_T` tells
    the two texts of a pair apart (0 and 1) for models that were made with such types; None: one text each.
    """

    ids_T: Tensor
    positions_T: Tensor
    prompt_lens_T: Tensor
    types_T: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Site:
    """One attention of a model, as the engine must size pages for it.

    `is_latent`: a key's row is its value's too, so pages hold it once.
    """

    kv_heads: int
    head_dim: int
    is_latent: bool = False


class LatentHeads(Protocol):
    """What heads make of the latent rows that stand for all their keys and values (MLA)."""

    def expanded(self, latent_TR: Tensor) -> tuple[Tensor, Tensor]:
        """Every head's keys [T, H, D] and values [T, H, V]."""
        ...

    def absorbed(self, q_THD: Tensor) -> Tensor:
        """Queries that score latent rows, [T, H, R], as the given ones score keys."""
        ...

    def values(self, mean_THR: Tensor) -> Tensor:
        """Means of values, [T, H, V], from means of latent rows by the same weights."""
        ...


class Attend(Protocol):
    """Answers the attention of one pass."""

    def own(
        self,
        site: int,
        q_THD: Tensor,
        k_TGD: Tensor,
        v_TGD: Tensor,
        *,
        mask: Mask,
        scale: float,
        bias: Bias | None = None,
        turn: Turn | None = None,
    ) -> Tensor:
        """Each row's attention over its own sequence up to what the mask lets it see, [T, H, D].

        With `turn`, queries and keys are turned by these rotary angles first.
        """
        ...

    def latent(
        self, site: int, q_THD: Tensor, latent_TR: Tensor, heads: LatentHeads, *, mask: Mask, scale: float
    ) -> Tensor:
        """As `own`, of keys and values that `heads` make of one latent row for all of them, [T, H, V].

        What of it turns was turned before.
        """
        ...

    def remember(self, site: int, k_KGD: Tensor, v_KGD: Tensor) -> None:
        """Keep an encoder's keys and values for a decoder's site, once for each sequence."""
        ...

    def recall(self, site: int, q_THD: Tensor, *, scale: float) -> Tensor:
        """Each row's attention over all that its sequence remembers, [T, H, D]."""
        ...


@dataclass(frozen=True, slots=True)
class PackedAttend:
    """Whole sequences in one pass: keys and values come from the pass itself and carry gradients.

    `remembered_packing`: how the encoder's rows are packed, where there is one.
    """

    packing: Packing
    remembered_packing: Packing | None = None
    _remembered: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def own(
        self,
        site: int,
        q_THD: Tensor,
        k_TGD: Tensor,
        v_TGD: Tensor,
        *,
        mask: Mask,
        scale: float,
        bias: Bias | None = None,
        turn: Turn | None = None,
    ) -> Tensor:
        if turn is not None:
            q_THD, k_TGD = rotary(q_THD, turn), rotary(k_TGD, turn)
        return packed_attention(q_THD, k_TGD, v_TGD, self.packing, mask=mask, scale=scale, bias=bias)

    def latent(
        self, site: int, q_THD: Tensor, latent_TR: Tensor, heads: LatentHeads, *, mask: Mask, scale: float
    ) -> Tensor:
        """By the keys and values themselves: fewer numbers meet than where latent rows do."""
        k_THD, v_THV = heads.expanded(latent_TR)
        width = max(k_THD.shape[2], v_THV.shape[2])
        q_THD, k_THD, v_THD = (F.pad(x, (0, width - x.shape[2])) for x in (q_THD, k_THD, v_THV))
        return packed_attention(q_THD, k_THD, v_THD, self.packing, mask=mask, scale=scale)[..., : v_THV.shape[2]]

    def remember(self, site: int, k_KGD: Tensor, v_KGD: Tensor) -> None:
        self._remembered[site] = k_KGD, v_KGD

    def recall(self, site: int, q_THD: Tensor, *, scale: float) -> Tensor:
        k_KGD, v_KGD = self._remembered[site]
        return packed_attention(
            q_THD, k_KGD, v_KGD, self.packing, mask=Mask.FULL, scale=scale, keys=self.remembered_packing
        )


def packed_pairs(
    sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> "Pairs":
    """Whole inputs and the sequences that a decoder makes of them, as one pass of each side."""
    encoder_rows, here = packed_rows(sources, device)
    rows, own = packed_rows(targets, device)
    return Pairs(encoder_rows, here, rows, PackedAttend(own.packing, remembered_packing=here.packing))


@dataclass(frozen=True, slots=True)
class Pairs:
    """What an encoder-decoder takes: `encode(encoder_rows, here, there)`, then `(rows, there)`."""

    encoder_rows: Rows
    here: PackedAttend
    rows: Rows
    there: PackedAttend


def packed_rows(
    sequences: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
    *,
    types: Sequence[Sequence[int]] | None = None,
) -> tuple[Rows, PackedAttend]:
    """Whole sequences as one pass, each with its type ids where there are any."""
    lens = tuple(len(ids) for ids in sequences)
    rows = Rows(
        ids_T=torch.tensor([i for ids in sequences for i in ids], device=device),
        positions_T=torch.cat([torch.arange(n) for n in lens]).to(device),
        prompt_lens_T=torch.tensor([n for n in lens for _ in range(n)], device=device),
        types_T=None if types is None else torch.tensor([i for ids in types for i in ids], device=device),
    )
    return rows, PackedAttend(Packing(lens))
