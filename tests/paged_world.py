"""Sequences whose keys lie in shuffled pages, for every test of paged attention."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing
from trefoil_kernels.page_write import Pages, new_pages, reference
from trefoil_kernels.paged_attention import PageTable

S = 4
MASKS = {"causal": Mask.CAUSAL, "window 3": Mask(window=3), "window 1": Mask(window=1), "wide": Mask(window=500)}
BATCHES = {
    "one each": [(1, 1), (1, S - 1), (1, S), (1, S + 1), (1, 111)],
    "one alone": [(1, 1)],
    "whole prompts": [(1, 1), (S, S), (63, 63), (S + 1, S + 1)],
    "chunks": [(5, 17), (S, 2 * S), (2, 111), (3, S)],
    "mixed": [(1, 9), (7, 7), (1, 111), (3, 30), (1, 1), (2, 2)],
}


@dataclass(frozen=True, slots=True)
class World:
    """Queries, and keys and values lying in shuffled pages; every slot that nobody wrote is NaN."""

    q_THD: Tensor
    pages: Pages
    table: PageTable
    packing: Packing
    keys: list[Tensor]
    values: list[Tensor]


def draw(
    batch: list[tuple[int, int]],
    H: int,
    G: int,
    D: int,
    dtype: torch.dtype,
    device: str = "cpu",
    *,
    page_size: int = S,
    page_dtype: torch.dtype | None = None,
) -> World:
    """`batch` has the query rows and the keys of each sequence; pages are of `dtype` unless told."""
    generator = torch.Generator().manual_seed(len(batch) + H * G)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    needs = [-(-length // page_size) for _, length in batch]
    order = torch.randperm(sum(needs) + 3, generator=generator).to(device)
    pages = new_pages(len(order), page_size, G, D, dtype=page_dtype or dtype, device=torch.device(device))
    pages_NP = order[-1:].repeat(len(batch), max(needs))  # the padding is a page that holds NaN only
    keys, values = [normal(n, G, D) for _, n in batch], [normal(n, G, D) for _, n in batch]
    for n, (_, length) in enumerate(batch):
        own = order[sum(needs[:n]) : sum(needs[: n + 1])]
        pages_NP[n, : needs[n]] = own
        at = torch.arange(length, device=device)
        reference(pages, keys[n], values[n], own[at // page_size] * page_size + at % page_size)
    lens = tuple(length for _, length in batch)
    table = PageTable(pages_NP, torch.tensor(lens, device=device), lens)
    packing = Packing(tuple(rows for rows, _ in batch))
    return World(normal(sum(packing.lens), H, D), pages, table, packing, keys, values)
