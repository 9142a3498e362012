"""Attention whose keys and values lie in pages (Kwon et al., arXiv 2309.06180), any number of query rows per sequence.

The last query row of a sequence sits at its last key; a row at position i sees the keys that the mask lets it see.
In torch one-row sequences (decode) go through one batched product and longer ones (prefill chunks) one by one. Grouped
query heads are folded into rows of their KV head, so keys are never repeated.

The kernel's tile is `rows` query rows times the heads of a group, against tiles of keys fetched through the page table.
Its grid depends on numbers of rows and sequences only, never on lengths, so a decode step can be captured in a graph.
One-row sequences are split along their keys among programs, whose partial softmaxes a second kernel joins
(Flash-Decoding): out = sum_i 2^(lse_i - max) out_i / sum_i 2^(lse_i - max).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from trefoil_kernels.attention_tile import (
    HIDDEN,
    LARGEST_GROUP,
    LOG2E,
    WIDEST_HEAD,
    KernelBias,
    Tile,
    biased,
    fold,
    kernel_bias,
    padded_width,
    seen,
)
from trefoil_kernels.bias import Bias
from trefoil_kernels.cpu.attention import Keys, biases
from trefoil_kernels.cpu.library import attention_for
from trefoil_kernels.launch import chip, launch, num_processors, runs_triton, with_whole_rows
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing
from trefoil_kernels.page_write import Pages

LEAST_SPLIT = 256
"""Fewer keys than this are not worth a program of their own."""
MOST_SPLITS = 64

DECODE_TILES = {"interpreter": Tile(16, 32, 4, 1), "sm_80": Tile(16, 64, 4, 3), "sm_90": Tile(16, 64, 4, 4)}
PREFILL_TILES = {"interpreter": Tile(32, 32, 4, 1), "sm_80": Tile(64, 64, 8, 5), "sm_90": Tile(128, 64, 8, 5)}
SMALL_TILE = Tile(16, 16, 8, 1)
"""For float32 and for chips of no table."""


@dataclass(frozen=True, slots=True)
class PageTable:
    """Where each sequence's keys lie: page numbers int64 [N, P], padded with any valid page, and key counts."""

    pages_NP: Tensor
    lens_N: Tensor
    lens: tuple[int, ...]


def reference(
    q_THD: Tensor,
    pages: Pages,
    table: PageTable,
    packing: Packing,
    *,
    mask: Mask,
    scale: float,
    bias: Bias | None = None,
) -> Tensor:
    """One sequence at a time over its gathered keys, softmax in float32."""
    group = q_THD.shape[1] // pages.k_PSGD.shape[2]
    out_THD = torch.zeros_like(q_THD)
    for n, (start, rows) in enumerate(zip(packing.starts, packing.lens, strict=False)):
        length = table.lens[n]
        own = _gathered(pages, table, n, q_THD.dtype)
        k, v = (x.float().repeat_interleave(group, 1) for x in own)  # [length, H, D]
        at = torch.arange(length, device=q_THD.device)
        scores = torch.einsum("qhd,khd->hqk", q_THD[start : start + rows].float(), k) * scale
        if bias is not None:
            scores = scores + bias.values(at[length - rows :] if mask.is_causal else at[:rows], at)
        if mask.is_causal:
            scores = scores.masked_fill(~mask.seen(at[length - rows :], at), -torch.inf)
        out_THD[start : start + rows] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(q_THD.dtype)
    return out_THD


def paged_attention(
    q_THD: Tensor,
    pages: Pages,
    table: PageTable,
    packing: Packing,
    *,
    mask: Mask,
    scale: float,
    bias: Bias | None = None,
) -> Tensor:
    """Attention of the packed query rows over their sequences' pages, [T, H, D]; inference only.

    With Mask.FULL every row of a sequence sees all of its keys (an encoder-decoder's cross-attention), without bias.
    """
    assert mask.is_causal or bias is None, "cross-attention has no bias"
    if runs_triton(q_THD) and is_covered(q_THD.shape[2], q_THD.shape[1] // pages.k_PSGD.shape[2]):
        return on_triton(q_THD, pages, table, packing, mask=mask, scale=scale, bias=bias)
    if native := attention_for(q_THD, pages.k_PSGD, pages.v_PSGD):
        keys = Keys(pages.k_PSGD, pages.v_PSGD, table.lens_N, table_NP=table.pages_NP, page_size=pages.page_size)
        added = None if bias is None else biases(bias, max(table.lens))
        return native.attention.over(q_THD, keys, packing.starts_on(q_THD.device), mask=mask, scale=scale, bias=added)
    if all(rows == 1 for rows in packing.lens):
        return _one_row_each(q_THD, pages, table, mask, scale, bias)
    out_THD = torch.empty_like(q_THD)
    single = [n for n, rows in enumerate(packing.lens) if rows == 1]
    starts = packing.starts
    if single:
        at = torch.tensor([starts[n] for n in single], device=q_THD.device)
        out_THD[at] = _one_row_each(q_THD[at], pages, _rows_of(table, single), mask, scale, bias)
    for n, rows in enumerate(packing.lens):
        if rows > 1:
            own = slice(starts[n], starts[n] + rows)
            out_THD[own] = _many_rows(q_THD[own], pages, table, n, mask, scale, bias)
    return out_THD


def _gathered(pages: Pages, table: PageTable, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys and values of sequence n in order, [length, G, D] each."""
    length = table.lens[n]
    own_P = table.pages_NP[n, : -(-length // pages.page_size)]
    k_KGD, v_KGD = (x_PSGD[own_P].flatten(0, 1)[:length].to(dtype) for x_PSGD in (pages.k_PSGD, pages.v_PSGD))
    return k_KGD, v_KGD


def _rows_of(table: PageTable, members: list[int]) -> PageTable:
    at = torch.tensor(members, device=table.pages_NP.device)
    return PageTable(table.pages_NP[at], table.lens_N[at], tuple(table.lens[n] for n in members))


def _many_rows(
    q_QHD: Tensor, pages: Pages, table: PageTable, n: int, mask: Mask, scale: float, bias: Bias | None
) -> Tensor:
    k_KGD, v_KGD = _gathered(pages, table, n, q_QHD.dtype)
    (rows, heads, _), (length, kv_heads, _) = q_QHD.shape, k_KGD.shape
    group = heads // kv_heads
    q = q_QHD.view(rows, kv_heads, group, -1).permute(1, 2, 0, 3)  # [G, group, Q, D]
    k, v = (x.transpose(0, 1)[:, None].expand(-1, group, -1, -1) for x in (k_KGD, v_KGD))  # [G, group, K, D]
    if not mask.is_causal:
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    elif rows == length and bias is None and mask.hides_nothing_within(length):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    else:
        at = torch.arange(length, device=q.device)
        seen_QK, added = mask.seen(at[length - rows :], at), None
        if bias is not None:
            values = bias.values(at[length - rows :], at).to(q.dtype).reshape(kv_heads, group, rows, length)
            added = values.masked_fill(~seen_QK, -torch.inf)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen_QK if added is None else added, scale=scale)
    return out.permute(2, 0, 1, 3).flatten(1, 2)


def _one_row_each(q_NHD: Tensor, pages: Pages, table: PageTable, mask: Mask, scale: float, bias: Bias | None) -> Tensor:
    """Slots beyond a sequence's end may hold anything, NaN too, so they are cleared before they meet a zero weight."""
    num, heads, width = q_NHD.shape
    kv_heads, longest = pages.k_PSGD.shape[2], max(table.lens)
    own_NP = table.pages_NP[:, : -(-longest // pages.page_size)]
    k_NKGD, v_NKGD = (x[own_NP].flatten(1, 2)[:, :longest].to(q_NHD.dtype) for x in (pages.k_PSGD, pages.v_PSGD))
    at_K = torch.arange(longest, device=q_NHD.device)
    seen_NK = at_K < table.lens_N[:, None]
    if mask.window is not None and mask.window < longest:
        seen_NK &= at_K >= table.lens_N[:, None] - mask.window
    q = q_NHD.view(num, kv_heads, heads // kv_heads, width)  # [N, G, group, D]
    scores = (q @ k_NKGD.permute(0, 2, 3, 1)).float() * scale  # [N, G, group, K]
    if bias is not None:
        scores += bias.values(table.lens_N - 1, at_K).transpose(0, 1).view_as(scores)
    weights = scores.masked_fill(~seen_NK[:, None, None], -torch.inf).softmax(-1).to(q_NHD.dtype)
    v_NKGD = v_NKGD.masked_fill(~seen_NK[:, :, None, None], 0.0)
    return (weights @ v_NKGD.transpose(1, 2)).view(num, heads, width)


def is_covered(head_dim: int, group: int) -> bool:
    """Does the kernel take this head width and this many query heads per KV head? Page sizes it takes all."""
    return head_dim <= WIDEST_HEAD and group <= LARGEST_GROUP


def on_triton(
    q_THD: Tensor,
    pages: Pages,
    table: PageTable,
    packing: Packing,
    *,
    mask: Mask,
    scale: float,
    bias: Bias | None = None,
) -> Tensor:
    """By the kernels below: leading one-row sequences split along their keys, the others in tiles of rows."""
    q_THD = with_whole_rows(q_THD)
    call = _Call(q_THD, pages, table, torch.empty_like(q_THD), mask, scale, kernel_bias(bias, q_THD))
    singles = next((n for n, rows in enumerate(packing.lens) if rows != 1), len(packing.lens))
    call.one_row_each(singles)
    call.many_rows(packing, singles)
    return call.out_THD


@dataclass(frozen=True, slots=True)
class _Call:
    """The arguments that both launches share."""

    q_THD: Tensor
    pages: Pages
    table: PageTable
    out_THD: Tensor
    mask: Mask
    scale: float
    bias: KernelBias

    def one_row_each(self, num: int) -> None:
        """The first `num` sequences."""
        group, tile = self._tile(DECODE_TILES)
        _, heads, width = self.q_THD.shape
        splits = self._splits(num * (heads // group))
        shape = (num, heads, splits) if splits > 1 else (0, heads, splits)
        partial, lse = (
            torch.empty(size, dtype=torch.float32, device=self.q_THD.device) for size in ((*shape, width), shape)
        )
        grid = (num, heads // group, splits)
        self._launch(grid, group, tile, self.table.lens_N, partial, lse, 0, rows=None, splits=splits)
        if splits > 1:
            launch(
                _join,
                (num, heads),
                *(partial, lse, self.out_THD, self.out_THD.stride(0), self.out_THD.stride(1), width),
                SPLITS=splits,
                BLOCK_D=padded_width(width),
                num_warps=4,
            )

    def many_rows(self, packing: Packing, skipped: int) -> None:
        """All sequences after the first `skipped`."""
        group, tile = self._tile(PREFILL_TILES)
        rows, num = tile.rows // group, len(packing.lens) - skipped
        num_tiles = (len(self.q_THD) - skipped) // rows + num if num else 0
        grid = (num_tiles, self.q_THD.shape[1] // group, 1)
        starts_N = packing.starts_on(self.q_THD.device)
        self._launch(grid, group, tile, starts_N, self.out_THD, self.out_THD, skipped, rows=rows, splits=1)

    def _tile(self, tiles: dict[str, Tile]) -> tuple[int, Tile]:
        group = self.q_THD.shape[1] // self.pages.k_PSGD.shape[2]
        is_small = self.q_THD.dtype.itemsize > 2 and chip() != "interpreter"
        tile = SMALL_TILE if is_small else tiles.get(chip(), SMALL_TILE)
        is_wide = self.q_THD.shape[2] > 128
        keys, warps = (tile.keys // 2, 8) if is_wide else (tile.keys, tile.warps)
        return group, Tile(max(tile.rows, triton.next_power_of_2(group)), keys, warps, tile.stages)

    def _splits(self, num_programs: int) -> int:
        """Enough programs to fill the chip twice over, as far as the widest sequence could use them."""
        longest = self.table.pages_NP.shape[1] * self.pages.page_size
        wanted = 2 * num_processors(self.q_THD.device) // max(num_programs, 1)
        return triton.next_power_of_2(max(1, min(wanted, longest // LEAST_SPLIT, MOST_SPLITS)))

    def _launch(
        self,
        grid: tuple[int, int, int],
        group: int,
        tile: Tile,
        starts_N: Tensor,
        partial: Tensor,
        lse: Tensor,
        skipped: int,
        *,
        rows: int | None,
        splits: int,
    ) -> None:
        pages = self.pages.k_PSGD
        launch(
            _attend,
            grid,
            *(self.q_THD, self.pages.k_PSGD, self.pages.v_PSGD, self.table.pages_NP),
            *(self.table.lens_N, starts_N, self.out_THD, partial, lse, self.bias.values),
            *(self.scale, self.mask.window or 0, self.bias.reach, len(self.table.lens_N), skipped),
            *(*self.q_THD.stride()[:2], *self.out_THD.stride()[:2], *pages.stride()[:3], self.table.pages_NP.stride(0)),
            D=self.q_THD.shape[2],
            BLOCK_D=padded_width(self.q_THD.shape[2]),
            GROUP=group,
            PAGE=self.pages.page_size,
            ONE_ROW=rows is None,
            ROWS=rows or 1,
            **tile.constants,
            SPLITS=splits,
            CAUSAL=self.mask.is_causal,
            HAS_WINDOW=self.mask.window is not None,
            BIAS=self.bias.kind,
        )


@triton.jit(do_not_specialize=["num_sequences", "skipped"])
def _attend(
    q,
    k_pages,
    v_pages,
    table,
    lens,
    starts,
    out,
    partial,
    lse,
    bias,
    scale,
    window,
    reach,
    num_sequences,
    skipped,
    q_stride,
    q_head_stride,
    out_stride,
    out_head_stride,
    page_stride,
    slot_stride,
    head_stride,
    table_stride,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    ONE_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    STAGES: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BIAS: tl.constexpr,
):
    """A tile of rows (or a sequence's only row), a KV head, a split of the keys."""
    kv_head, split = tl.program_id(1), tl.program_id(2)
    if ONE_ROW:
        n = tl.program_id(0)
        start, num_rows, first = n, 1, 0
    else:
        n = _sequence_of(starts, tl.program_id(0), skipped, num_sequences, ROWS)
        start = tl.load(starts + n)
        num_rows = tl.load(starts + n + 1) - start
        first = (tl.program_id(0) - _first_tile(starts, n, skipped, ROWS)) * ROWS
        if first >= num_rows:
            return
    length = tl.load(lens + n).to(tl.int32)
    place = tl.arange(0, BLOCK_M)
    row, head = first + place // GROUP, kv_head * GROUP + place % GROUP
    position = length - num_rows + row
    is_real = (place < ROWS * GROUP) & (row < num_rows)
    lane = tl.arange(0, BLOCK_D)
    at = (start + row).to(tl.int64)[:, None] * q_stride + head[:, None] * q_head_stride + lane[None, :]
    tile = tl.load(q + at, mask=is_real[:, None] & (lane < D)[None, :], other=0.0)  # [BLOCK_M, BLOCK_D]

    earliest, low, high = length - num_rows + first, 0, length
    if CAUSAL:
        high = tl.minimum(length, earliest + ROWS)
    if HAS_WINDOW:
        low = tl.maximum(0, earliest - window + 1)
    share = tl.cdiv(tl.cdiv(high - low, SPLITS), BLOCK_N) * BLOCK_N
    low = low + split * share
    high = tl.minimum(high, low + share)
    open_to = high  # every row sees every key before this one
    if CAUSAL:
        open_to = tl.minimum(high, earliest + 1)
    if HAS_WINDOW and ROWS > 1:
        open_to = low
    whole = low + tl.maximum(open_to - low, 0) // BLOCK_N * BLOCK_N

    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], -float("inf"), tl.float32)
    value = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    own_pages, column = table + n.to(tl.int64) * table_stride, tl.arange(0, BLOCK_N)
    for key in tl.range(low, whole, BLOCK_N, num_stages=STAGES):
        keys = key + column
        page = tl.load(own_pages + keys // PAGE)
        slots = (
            page[:, None] * page_stride + (keys % PAGE)[:, None] * slot_stride + kv_head * head_stride + lane[None, :]
        )
        if BLOCK_D == D:
            k, v = tl.load(k_pages + slots), tl.load(v_pages + slots)  # [BLOCK_N, BLOCK_D]
        else:
            k = tl.load(k_pages + slots, mask=(lane < D)[None, :], other=0.0)
            v = tl.load(v_pages + slots, mask=(lane < D)[None, :], other=0.0)
        k, v = k.to(tile.dtype), v.to(tile.dtype)  # what pages are kept in is not computed with
        scores = tl.dot(tile, tl.trans(k), input_precision="ieee")
        scores, rest = biased(
            scores, scale * LOG2E, bias, head[:, None], keys[None, :] - position[:, None], reach, BIAS
        )
        value, peak, total = fold(scores, rest, v, value, peak, total)
    for key in tl.range(whole, high, BLOCK_N, num_stages=1):
        keys = key + column
        page = tl.load(own_pages + keys // PAGE, mask=keys < high, other=0)
        slots = (
            page[:, None] * page_stride + (keys % PAGE)[:, None] * slot_stride + kv_head * head_stride + lane[None, :]
        )
        # slots beyond the end may hold anything, NaN too
        k = tl.load(k_pages + slots, mask=(keys < high)[:, None] & (lane < D)[None, :], other=0.0)
        v = tl.load(v_pages + slots, mask=(keys < high)[:, None] & (lane < D)[None, :], other=0.0)
        k, v = k.to(tile.dtype), v.to(tile.dtype)
        ahead = keys[None, :] - position[:, None]
        scores = tl.dot(tile, tl.trans(k), input_precision="ieee")
        scores, rest = biased(scores, scale * LOG2E, bias, head[:, None], ahead, reach, BIAS)
        is_seen = (keys < high)[None, :] & seen(ahead, window, CAUSAL, HAS_WINDOW)
        value, peak, total = fold(tl.where(is_seen, scores, HIDDEN), rest, v, value, peak, total)

    is_empty = total == 0.0  # a split without keys
    total = tl.where(is_empty, 1.0, total)
    value = value / total[:, None]
    if SPLITS == 1:
        target = (start + row).to(tl.int64)[:, None] * out_stride + head[:, None] * out_head_stride + lane[None, :]
        tl.store(out + target, value.to(out.dtype.element_ty), mask=is_real[:, None] & (lane < D)[None, :])
    else:
        spot = (n * tl.num_programs(1) * GROUP + head) * SPLITS + split
        tl.store(partial + spot[:, None] * D + lane[None, :], value, mask=is_real[:, None] & (lane < D)[None, :])
        tl.store(lse + spot, tl.where(is_empty, HIDDEN, peak + tl.math.log2(total)), mask=is_real)


@triton.jit
def _first_tile(starts, n, skipped, ROWS: tl.constexpr):
    """Sequences from `skipped` on take tiles in order, each as many as its rows could need wherever it starts."""
    return (tl.load(starts + n) - tl.load(starts + skipped)) // ROWS + n - skipped


@triton.jit
def _sequence_of(starts, tile, skipped, num_sequences, ROWS: tl.constexpr):
    """The last sequence whose first tile is not after this one."""
    low, high = skipped, num_sequences
    while high - low > 1:
        middle = (low + high) // 2
        is_after = _first_tile(starts, middle, skipped, ROWS) > tile
        low, high = tl.where(is_after, low, middle), tl.where(is_after, middle, high)
    return low


@triton.jit
def _join(partial, lse, out, out_stride, out_head_stride, D, SPLITS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The splits of one row and head."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    split, lane = tl.arange(0, SPLITS), tl.arange(0, BLOCK_D)
    at = (row * tl.num_programs(1) + head) * SPLITS + split
    height = tl.load(lse + at)
    weight = tl.math.exp2(height - tl.max(height, 0))
    value = tl.load(partial + at[:, None] * D + lane[None, :], mask=(lane < D)[None, :], other=0.0)  # [SPLITS, BLOCK_D]
    value = tl.sum(value * (weight / tl.sum(weight, 0))[:, None], 0)
    target = row * out_stride + head * out_head_stride + lane
    tl.store(out + target, value.to(out.dtype.element_ty), mask=lane < D)
