"""The Attend of the engine: new keys and values go to pages, answers come from pages."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trefoil_kernels.bias import Bias
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing
from trefoil_kernels.page_write import Pages, page_write, rotary_page_write
from trefoil_kernels.paged_attention import PageTable, paged_attention
from trefoil_kernels.rotary import Turn
from trefoil_models.attend import Contexts, LatentHeads


@dataclass(frozen=True, slots=True)
class Sources:
    """What an encoder-decoder recalls: where each input lies, the slots of rows encoded just now, and who asks.

    `packing` counts the rows that ask each input: all those of sequences side by side that recall the same one.
    """

    slots_K: Tensor
    table: PageTable
    packing: Packing


@dataclass(frozen=True, slots=True)
class PagedAttend:
    """One step's rows over the pages of every site; a prefill chunk and a decode differ in row counts only.

    A site's own keys and those it remembers of an encoder have one shape and lie in the same pool, on other pages.
    """

    pages: Sequence[Pages]
    slots_T: Tensor
    table: PageTable
    packing: Packing
    sources: Sources | None = None

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
        pages = self.pages[site]
        if turn is None:
            page_write(pages, k_TGD, v_TGD, self.slots_T)
        else:
            q_THD = rotary_page_write(pages, q_THD, k_TGD, v_TGD, turn, self.slots_T)
        out_THD = paged_attention(q_THD, pages, self.table, self.packing, mask=mask, scale=scale, bias=bias)
        if contexts is not None:
            assert bias is None, "a context has no bias"
            q_CHD, table = q_THD[contexts.rows_C], self._context_table(contexts)
            out_THD[contexts.rows_C] = paged_attention(
                q_CHD, pages, table, contexts.packing, mask=Mask.FULL, scale=scale
            )
        return out_THD

    def _context_table(self, contexts: Contexts) -> PageTable:
        """Where the keys of whole contexts lie, of which some rows may have been computed before."""
        starts = (self.table.lens[n] - self.packing.lens[n] for n in contexts.members)
        lens = tuple(start + rows for start, rows in zip(starts, contexts.packing.lens, strict=True))
        device = self.table.pages_NP.device
        pages_NP = self.table.pages_NP[torch.tensor(contexts.members, device=device)]
        return PageTable(pages_NP, torch.tensor(lens, device=device), lens)

    def latent(
        self, site: int, q_THD: Tensor, latent_TR: Tensor, heads: LatentHeads, *, mask: Mask, scale: float
    ) -> Tensor:
        """By the latent rows: pages hold nothing else, and to expand them would take more than to meet them."""
        latent_T1R = latent_TR[:, None]
        page_write(self.pages[site], latent_T1R, latent_T1R, self.slots_T)
        q_THR = heads.absorbed(q_THD)
        mean_THR = paged_attention(q_THR, self.pages[site], self.table, self.packing, mask=mask, scale=scale)
        return heads.values(mean_THR)

    def remember(self, site: int, k_KGD: Tensor, v_KGD: Tensor) -> None:
        assert self.sources is not None, "a decoder remembers no encoder"
        page_write(self.pages[site], k_KGD, v_KGD, self.sources.slots_K)

    def recall(self, site: int, q_THD: Tensor, *, scale: float) -> Tensor:
        assert self.sources is not None, "a decoder recalls no encoder"
        pages, sources = self.pages[site], self.sources
        return paged_attention(q_THD, pages, sources.table, sources.packing, mask=Mask.FULL, scale=scale)
