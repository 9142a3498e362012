"""Pages of keys and values: making them, writing rows into their slots, copying one to another.

A slot is page * S + offset. How a page is laid out is known in this folder only; the engine moves page numbers.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from trefoil_kernels.cpu.library import has_side_by_side_heads, native_for
from trefoil_kernels.launch import launch, row_tile, runs_triton


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


def reference(pages: Pages, k_TGD: Tensor, v_TGD: Tensor, slots_T: Tensor) -> None:
    """The same in torch."""
    pages.k_PSGD.flatten(0, 1).index_copy_(0, slots_T, k_TGD)
    pages.v_PSGD.flatten(0, 1).index_copy_(0, slots_T, v_TGD)


def page_write(pages: Pages, k_TGD: Tensor, v_TGD: Tensor, slots_T: Tensor) -> None:
    """Put each row's key and value into its slot (int64 [T], all different)."""
    if runs_triton(k_TGD):
        on_triton(pages, k_TGD, v_TGD, slots_T)
    elif has_side_by_side_heads(k_TGD) and has_side_by_side_heads(v_TGD) and (native := native_for(k_TGD, v_TGD)):
        native.page_write(k_TGD, pages.k_PSGD, slots_T)
        native.page_write(v_TGD, pages.v_PSGD, slots_T)
    else:
        reference(pages, k_TGD, v_TGD, slots_T)


def on_triton(pages: Pages, k_TGD: Tensor, v_TGD: Tensor, slots_T: Tensor) -> None:
    """By the kernel below."""
    k_TGD, v_TGD = (x if x.stride(2) == 1 else x.contiguous() for x in (k_TGD, v_TGD))
    num_rows, kv_heads, width = k_TGD.shape
    tile = row_tile(kv_heads * width)
    launch(
        _write,
        (triton.cdiv(num_rows, tile.rows), 2),
        *(k_TGD, v_TGD, pages.k_PSGD, pages.v_PSGD, slots_T, num_rows, kv_heads * width),
        *(*k_TGD.stride()[:2], *v_TGD.stride()[:2]),
        D=width,
        ROWS=tile.rows,
        BLOCK=tile.block,
        num_warps=tile.warps,
    )


def copy_pages(pages: Pages, sources_C: Tensor, targets_C: Tensor) -> None:
    """Copy whole pages (int64 [C] page numbers); no target may be a source."""
    for x_PSGD in (pages.k_PSGD, pages.v_PSGD):
        x_PSGD.index_copy_(0, targets_C, x_PSGD[sources_C])


@triton.jit
def _write(
    k,
    v,
    k_pages,
    v_pages,
    slots,
    num_rows,
    slot_width,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Keys where the second program number is 0, values where it is 1."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    real = (row < num_rows)[:, None] & (column < slot_width)[None, :]  # [ROWS, BLOCK]
    slot = tl.load(slots + row, mask=row < num_rows, other=0)
    target = slot[:, None] * slot_width + column[None, :]
    at, head, lane = row.to(tl.int64)[:, None], (column // D)[None, :], (column % D)[None, :]
    if tl.program_id(1) == 0:
        tl.store(k_pages + target, tl.load(k + at * k_stride + head * k_head_stride + lane, mask=real), mask=real)
    else:
        tl.store(v_pages + target, tl.load(v + at * v_stride + head * v_head_stride + lane, mask=real), mask=real)
