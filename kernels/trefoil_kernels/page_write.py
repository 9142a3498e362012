"""Pages of keys and values: making them, writing rows into their slots, copying one to another.

`rotary_page_write` turns queries and keys on the way, in one launch for all three projections of a layer.

A slot is page * S + offset. How a page is laid out is known in this folder only; the engine moves page numbers.

Pages may be kept in another dtype than rows are computed in, float8 too, without a scale. What is written is rounded to
it after it was rounded to the rows' own, and what is too large becomes its greatest number; what is read is computed
with in the queries' dtype.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from trefoil_kernels.cpu.attention import has_side_by_side_heads
from trefoil_kernels.cpu.calls import PAGE_KINDS
from trefoil_kernels.cpu.library import native_for
from trefoil_kernels.launch import launch, row_tile, runs_triton, with_whole_rows
from trefoil_kernels.rotary import Turn, is_contiguous, rotary, rounded, turn_constants, turn_row


@dataclass(frozen=True, slots=True)
class Pages:
    """One attention site's keys and values, each [P, S, G, D]; one tensor is both where a key is its value too."""

    k_PSGD: Tensor
    v_PSGD: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What pages lie in."""
        return (self.k_PSGD,) if self.k_PSGD is self.v_PSGD else (self.k_PSGD, self.v_PSGD)

    @property
    def page_size(self) -> int:
        return self.k_PSGD.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.k_PSGD.dtype


def new_pages(
    num_pages: int,
    page_size: int,
    kv_heads: int,
    head_dim: int,
    *,
    is_latent: bool = False,
    dtype: torch.dtype,
    device: torch.device,
) -> Pages:
    """Fresh pages; what they hold is not defined. `is_latent`: a key is its value too."""
    shape = (num_pages, page_size, kv_heads, head_dim)
    k_PSGD = torch.empty(shape, dtype=dtype, device=device)
    return Pages(k_PSGD, k_PSGD if is_latent else torch.empty(shape, dtype=dtype, device=device))


def reference(pages: Pages, k_TGD: Tensor, v_TGD: Tensor, slots_T: Tensor) -> None:
    """The same in torch."""
    for x_PSGD, x_TGD in zip(pages.tensors, (k_TGD, v_TGD), strict=False):
        as_bytes(x_PSGD).flatten(0, 1).index_copy_(0, slots_T, as_bytes(kept(x_TGD, x_PSGD.dtype)))


def kept(x: Tensor, dtype: torch.dtype) -> Tensor:
    """As pages of this dtype hold it: NaN stays, what is too large becomes the greatest number there is."""
    if dtype == x.dtype:
        return x
    most = _most(x.dtype, dtype)
    return (x.float().clamp(-most, most) if most else x).to(dtype)


def as_bytes(x: Tensor) -> Tensor:
    """For what only moves numbers: torch moves no float8 by index."""
    return x.view(torch.int8) if x.dtype.itemsize == 1 else x


def page_write(pages: Pages, k_TGD: Tensor, v_TGD: Tensor, slots_T: Tensor) -> None:
    """Put each row's key and value into its slot (int64 [T], all different)."""
    if runs_triton(k_TGD):
        on_triton(pages, k_TGD, v_TGD, slots_T)
    elif has_side_by_side_heads(k_TGD) and has_side_by_side_heads(v_TGD) and (native := native_for(k_TGD, v_TGD)):
        assert pages.dtype in PAGE_KINDS
        for x_PSGD, x_TGD in zip(pages.tensors, (k_TGD, v_TGD), strict=False):
            native.attention.page_write(x_TGD, x_PSGD, slots_T)
    else:
        reference(pages, k_TGD, v_TGD, slots_T)


def on_triton(pages: Pages, k_TGD: Tensor, v_TGD: Tensor, slots_T: Tensor) -> None:
    """By the kernel below."""
    k_TGD, v_TGD = with_whole_rows(k_TGD), with_whole_rows(v_TGD)
    num_rows, kv_heads, width = k_TGD.shape
    tile = row_tile(kv_heads * width)
    launch(
        _write,
        (triton.cdiv(num_rows, tile.rows), len(pages.tensors)),
        *(k_TGD, v_TGD, pages.k_PSGD, pages.v_PSGD, slots_T, num_rows, kv_heads * width),
        *(*k_TGD.stride()[:2], *v_TGD.stride()[:2]),
        D=width,
        ROWS=tile.rows,
        BLOCK=tile.block,
        MOST=_most(k_TGD.dtype, pages.dtype),
        num_warps=tile.warps,
    )


def _most(rows: torch.dtype, pages: torch.dtype) -> float:
    """The greatest number that pages can hold, where rows can hold greater ones; else 0."""
    most = torch.finfo(pages).max
    return most if most < torch.finfo(rows).max else 0.0


def rotary_page_write(pages: Pages, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, turn: Turn, slots_T: Tensor) -> Tensor:
    """The queries turned; keys, turned too, and values to their slots."""
    if runs_triton(q_THD):
        return rotary_on_triton(pages, q_THD, k_TGD, v_TGD, turn, slots_T)
    rows, native = (q_THD, k_TGD, v_TGD), native_for(q_THD, k_TGD, v_TGD, turn.cos_TR)
    if native and all(map(has_side_by_side_heads, rows)) and is_contiguous(turn) and slots_T.is_contiguous():
        return native.attention.rotary_page_write(
            rows, (pages.k_PSGD, pages.v_PSGD), (turn.cos_TR, turn.sin_TR), turn.run, slots_T
        )
    page_write(pages, rotary(k_TGD, turn), v_TGD, slots_T)
    return rotary(q_THD, turn)


def rotary_on_triton(pages: Pages, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, turn: Turn, slots_T: Tensor) -> Tensor:
    """By the kernel below."""
    q_THD, k_TGD, v_TGD = map(with_whole_rows, (q_THD, k_TGD, v_TGD))
    cos_TR, sin_TR = turn.cos_TR.contiguous(), turn.sin_TR.contiguous()
    turned_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
    num_rows, heads, width = q_THD.shape
    kv_heads = k_TGD.shape[1]
    launch(
        _rotate_and_write,
        (num_rows, 3),
        *(q_THD, k_TGD, v_TGD, turned_THD, pages.k_PSGD, pages.v_PSGD, cos_TR, sin_TR, slots_T, heads, kv_heads),
        *(stride for x in (q_THD, k_TGD, v_TGD) for stride in x.stride()[:2]),
        **turn_constants(max(heads, kv_heads), width, turn),
        BLOCK_V=triton.next_power_of_2(kv_heads * width),
        MOST=_most(k_TGD.dtype, pages.dtype),
        num_warps=4,
    )
    return turned_THD


def copy_pages(pages: Pages, sources_C: Tensor, targets_C: Tensor) -> None:
    """Copy whole pages (int64 [C] page numbers, contiguous); no target may be a source."""
    for x_PSGD in map(as_bytes, pages.tensors):
        if (native := native_for(x_PSGD)) is None:
            x_PSGD.index_copy_(0, targets_C, x_PSGD[sources_C])
        else:
            native.attention.page_copy(x_PSGD, sources_C, targets_C)


@triton.jit(do_not_specialize=["num_rows"])
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
    MOST: tl.constexpr,
):
    """Keys where the second program number is 0, values where it is 1."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    real = (row < num_rows)[:, None] & (column < slot_width)[None, :]  # [ROWS, BLOCK]
    slot = tl.load(slots + row, mask=row < num_rows, other=0)
    target = slot[:, None] * slot_width + column[None, :]
    at, head, lane = row.to(tl.int64)[:, None], (column // D)[None, :], (column % D)[None, :]
    if tl.program_id(1) == 0:
        key = tl.load(k + at * k_stride + head * k_head_stride + lane, mask=real)
        tl.store(k_pages + target, rounded(key, k_pages.dtype.element_ty, MOST), mask=real)
    else:
        value = tl.load(v + at * v_stride + head * v_head_stride + lane, mask=real)
        tl.store(v_pages + target, rounded(value, v_pages.dtype.element_ty, MOST), mask=real)


@triton.jit
def _rotate_and_write(
    q,
    k,
    v,
    turned,
    k_pages,
    v_pages,
    cos,
    sin,
    slots,
    heads,
    kv_heads,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    D: tl.constexpr,
    HALF: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    MOST: tl.constexpr,
):
    """One row's queries where the second program number is 0, its keys where it is 1, its values where it is 2."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row) * kv_heads * D
    if tl.program_id(1) == 0:
        source, target = q + row * q_stride, turned + row * heads * D
        turn_row(source, target, cos, sin, row, heads, q_head_stride, D, HALF, RUN, BLOCK_H, BLOCK_HALF, BLOCK_REST)
    elif tl.program_id(1) == 1:
        source, target = k + row * k_stride, k_pages + slot
        turn_row(
            source, target, cos, sin, row, kv_heads, k_head_stride, D, HALF, RUN, BLOCK_H, BLOCK_HALF, BLOCK_REST, MOST
        )
    else:
        at = tl.arange(0, BLOCK_V)
        value = tl.load(v + row * v_stride + at // D * v_head_stride + at % D, mask=at < kv_heads * D)
        tl.store(v_pages + slot + at, rounded(value, v_pages.dtype.element_ty, MOST), mask=at < kv_heads * D)
