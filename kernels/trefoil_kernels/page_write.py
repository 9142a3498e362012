"""Pages of keys and values: making them, writing rows into their slots, copying one to another.

A slot is page * S + offset. How a page is laid out is known in this folder only; the engine moves page numbers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pages:
    """One attention site's keys and values, each [P, S, G, D]."""

    k_PSGD: Tensor
    v_PSGD: Tensor

    @property
    def page_size(self) -> int:
        return self.k_PSGD.shape[1]


def new_pages(
    num_pages: int, page_size: int, kv_heads: int, head_dim: int, *, dtype: torch.dtype, device: torch.device
) -> Pages:
    """Fresh pages; what they hold is not defined."""
    shape = (num_pages, page_size, kv_heads, head_dim)
    return Pages(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))


def page_write(pages: Pages, k_TGD: Tensor, v_TGD: Tensor, slots_T: Tensor) -> None:
    """Put each row's key and value into its slot (int64 [T], all different)."""
    pages.k_PSGD.flatten(0, 1).index_copy_(0, slots_T, k_TGD)
    pages.v_PSGD.flatten(0, 1).index_copy_(0, slots_T, v_TGD)


def copy_pages(pages: Pages, sources_C: Tensor, targets_C: Tensor) -> None:
    """Copy whole pages (int64 [C] page numbers); no target may be a source."""
    for x_PSGD in (pages.k_PSGD, pages.v_PSGD):
        x_PSGD.index_copy_(0, targets_C, x_PSGD[sources_C])
