"""What a model sees of the world: packed rows, and an object to attend with.

A model cannot know whether it is training, prefilling or decoding: it asks `attend.own(...)` and gets an answer.
`PackedAttend` answers from the pass itself (training, encoders); the engine's PagedAttend from its pages. An
encoder-decoder lets its decoder's sites `remember` the encoder's keys and values once and only `recall` them later.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
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
    `places_T2` and `contexts` are for models that read prompts both ways; in a pass of whole sequences they are None,
    and such a model finds them itself.
    """

    ids_T: Tensor
    positions_T: Tensor
    prompt_lens_T: Tensor
    types_T: Tensor | None = None
    places_T2: Tensor | None = None
    contexts: "Contexts | None" = None


@dataclass(frozen=True, slots=True)
class Span:
    """Of a sequence whose beginning is read both ways: the length of that context, and where its answer stands."""

    context: int
    answer: int


@dataclass(frozen=True, slots=True)
class Contexts:
    """The rows of a pass that see each other both ways: their numbers [C], whose they are, how many of each."""

    rows_C: Tensor
    members: tuple[int, ...]
    packing: Packing

    @classmethod
    def of(cls, lens: Sequence[int], packing: Packing, device: torch.device) -> "Contexts | None":
        """The first `lens` rows of each sequence of the pass; None where there are none."""
        members = tuple(n for n, length in enumerate(lens) if length)
        starts = packing.starts
        rows = [row for n in members for row in range(starts[n], starts[n] + lens[n])]
        own = Packing(tuple(lens[n] for n in members))
        return cls(torch.tensor(rows, device=device), members, own) if rows else None


@runtime_checkable
class ReadsBothWays(Protocol):
    """A model that reads the beginning of a sequence both ways, so that its rows depend on later ones.

    Its prompts are read in one pass and share no pages. Each row has two places, [T, 2], from `places`.
    """

    @property
    def shortest_prompt(self) -> list[int]: ...
    def span_of(self, ids: Sequence[int]) -> Span | None:
        """None where the ids lack what parts a context from an answer."""
        ...


def places(span: Span, start: int, end: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The two places of rows `start` to `end`: within the context and 0, then the answer's and one within it."""
    at = np.arange(start, end)
    return np.stack([np.where(at < span.context, at, span.answer), np.maximum(at - span.context + 1, 0)], 1)


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
        contexts: Contexts | None = None,
    ) -> Tensor:
        """Each row's attention over its own sequence up to what the mask lets it see, [T, H, D].

        With `turn`, queries and keys are turned by these rotary angles first. Rows of `contexts` see all of theirs.
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
        contexts: Contexts | None = None,
    ) -> Tensor:
        if turn is not None:
            q_THD, k_TGD = rotary(q_THD, turn), rotary(k_TGD, turn)
        out_THD = packed_attention(q_THD, k_TGD, v_TGD, self.packing, mask=mask, scale=scale, bias=bias)
        if contexts is None:
            return out_THD
        assert bias is None, "a context has no bias"
        q_CHD, k_CGD, v_CGD = (x[contexts.rows_C] for x in (q_THD, k_TGD, v_TGD))
        own_CHD = packed_attention(q_CHD, k_CGD, v_CGD, contexts.packing, mask=Mask.FULL, scale=scale)
        return out_THD.index_copy(0, contexts.rows_C, own_CHD)

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
