"""Packed attention in Triton, forward and backward (FlashAttention-2: Dao, arXiv 2307.08691).

The forward pass keeps each row's log-sum-exp (base 2), so that the backward pass computes weights again:

    p = 2^(s - lse)    dv = p^T do    ds = p (do v^T - delta)    dq = scale ds k    dk = scale ds^T q

with delta = rowsum(do * out). One kernel owns tiles of queries (delta, dq, and a learned bias by distance, whose
gradient is the sum of ds along diagonals), then one owns tiles of keys (dk, dv) and walks through all query heads of
its group. A learned bias is taken by whole tiles, cut out of a band (bias.Band): a lookup for each score would cost
more than the rest. On chips with a tensor memory accelerator the forward pass fetches whole tiles through descriptors,
and tiles so far away that all their distances share one number come in a loop of their own, as if there were no bias.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from trefoil_kernels.attention_tile import (
    HIDDEN,
    LOG2E,
    KernelBias,
    Tile,
    biased,
    fold,
    padded_width,
    seen,
)
from trefoil_kernels.bias import Band
from trefoil_kernels.launch import chip, launch
from trefoil_kernels.masks import Mask

DESCRIPTOR_CHIPS = ("sm_90", "sm_100")
"""Those with a tensor memory accelerator and room for its tiles."""
SMALL_TILE = Tile(16, 16, 8, 1)
"""For float32 and for chips of no table."""
INTERPRETER_TILE = Tile(32, 32, 4, 1)


@dataclass(frozen=True, slots=True)
class Tiles:
    """A tile for each kernel."""

    forward: Tile
    query: Tile
    key: Tile


TILES = {
    ("sm_80", 64): Tiles(Tile(128, 64, 8, 3), Tile(64, 64, 4, 2), Tile(32, 64, 8, 2)),
    ("sm_80", 128): Tiles(Tile(128, 32, 8, 2), Tile(64, 64, 8, 2), Tile(64, 64, 8, 1)),
    ("sm_80", 256): Tiles(Tile(64, 32, 8, 1), Tile(32, 32, 4, 1), Tile(32, 32, 8, 1)),
    ("sm_90", 64): Tiles(Tile(64, 64, 4, 4), Tile(64, 64, 4, 2), Tile(32, 64, 4, 3)),
    ("sm_90", 128): Tiles(Tile(128, 128, 8, 3), Tile(128, 64, 8, 3), Tile(32, 128, 8, 3)),
    ("sm_90", 256): Tiles(Tile(64, 64, 8, 2), Tile(32, 32, 4, 1), Tile(32, 32, 8, 1)),
}
BIASED_TILES = {
    ("sm_80", 64): Tiles(Tile(128, 64, 8, 2), Tile(64, 32, 4, 2), Tile(32, 64, 8, 1)),
    ("sm_80", 128): Tiles(Tile(64, 32, 8, 2), Tile(64, 32, 8, 2), Tile(64, 64, 8, 1)),
    ("sm_90", 64): Tiles(Tile(64, 64, 4, 2, registers=128), Tile(64, 64, 4, 2), Tile(32, 64, 4, 3)),
    ("sm_90", 128): Tiles(Tile(128, 64, 8, 3), Tile(64, 64, 8, 2), Tile(32, 128, 8, 2)),
}
"""By chip and padded head width, 64 at least: sm_90 as measured, sm_80 the largest without spills (docs/kernels.md)."""
UNEVEN_TILES = {("sm_90", 128): replace(TILES["sm_90", 128], forward=Tile(128, 64, 8, 3))}
"""For heads narrower than their padded width, which no descriptor fetches."""


FLOAT32_TILES = {
    ("sm_80", 128): Tiles(SMALL_TILE, SMALL_TILE, Tile(16, 16, 16, 1)),
    ("sm_80", 256): Tiles(SMALL_TILE, Tile(16, 16, 8, 2), SMALL_TILE),
    ("sm_90", 64): Tiles(SMALL_TILE, SMALL_TILE, Tile(16, 16, 4, 1)),
    ("sm_90", 128): Tiles(SMALL_TILE, SMALL_TILE, Tile(16, 16, 4, 1)),
    ("sm_90", 256): Tiles(SMALL_TILE, Tile(16, 16, 8, 2), SMALL_TILE),
}
"""Where gradients spill with the small tile."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The tiles of each kernel and where their sequences lie, int32 [tiles, 5] as of Packing.tiles_on."""

    forward_tiles: Tensor
    query_tiles: Tensor
    key_tiles: Tensor


@dataclass(frozen=True, slots=True)
class Call:
    """What one attention is asked."""

    layout: Layout
    mask: Mask
    scale: float
    bias: KernelBias
    has_descriptors: bool

    def band(self, tile: Tile, q_THD: Tensor) -> Band:
        """The bias in tiles of this size; stands empty where none is learned."""
        source = self.bias.source
        return Band(q_THD, 0, 0) if source is None else source.band(tile.rows, tile.keys, self.scale, q_THD.dtype)

    def constants(self, q_THD: Tensor, k_KGD: Tensor) -> dict[str, Any]:
        """What all kernels are compiled for."""
        return {
            "GROUP": q_THD.shape[1] // k_KGD.shape[1],
            "D": q_THD.shape[2],
            "BLOCK_D": padded_width(q_THD.shape[2]),
            "CAUSAL": self.mask.is_causal,
            "HAS_WINDOW": self.mask.window is not None,
            "BIAS": self.bias.kind,
        }


def tiles_for(head_dim: int, dtype: torch.dtype, bias_kind: str) -> Tiles:
    """On the current chip."""
    name, width = chip(), max(64, padded_width(head_dim))
    if name == "interpreter":
        return Tiles(INTERPRETER_TILE, INTERPRETER_TILE, INTERPRETER_TILE)
    plain = TILES if head_dim == width else TILES | UNEVEN_TILES
    half = plain if bias_kind == "none" else BIASED_TILES
    table = FLOAT32_TILES if dtype.itemsize > 2 else half
    return table.get((name, width), Tiles(SMALL_TILE, SMALL_TILE, SMALL_TILE))


def can_describe(*tensors: Tensor) -> bool:
    """Can all be fetched through tensor descriptors: heads side by side, everything on 16-byte borders?"""
    width = tensors[0].shape[2]
    return padded_width(width) == width and all(
        x.stride(1) == width and x.stride(2) == 1 and x.stride(0) * x.itemsize % 16 == 0 and x.data_ptr() % 16 == 0
        for x in tensors
    )


def attend(q_THD: Tensor, k_KGD: Tensor, v_KGD: Tensor, call: Call) -> Tensor:
    """Attention of the layout's sequences, [T, H, D]; differentiable in q, k, v and the values of a relative bias."""
    out_THD: Tensor = _PackedAttention.apply(q_THD, k_KGD, v_KGD, call.bias.values, call)
    return out_THD


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_THD: Tensor, k_KGD: Tensor, v_KGD: Tensor, bias: Tensor, call: Call) -> Tensor:
        q_THD, k_KGD, v_KGD = (x if x.stride(2) == 1 else x.contiguous() for x in (q_THD, k_KGD, v_KGD))
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype, device=q_THD.device)
        lse_HT = torch.empty(q_THD.shape[1::-1], dtype=torch.float32, device=q_THD.device)
        tile = tiles_for(q_THD.shape[2], q_THD.dtype, call.bias.kind).forward
        band = call.band(tile, q_THD)
        launch(
            _forward,
            (len(call.layout.forward_tiles), q_THD.shape[1]),
            *(q_THD, k_KGD, v_KGD, *_described(q_THD, k_KGD, v_KGD, band, tile, call), out_THD, lse_HT, bias),
            *(call.layout.forward_tiles, call.scale, call.mask.window or 0, len(q_THD)),
            *(call.bias.reach, band.low, band.high, band.values_RW.stride(0)),
            *(*q_THD.stride()[:2], *k_KGD.stride()[:2], *v_KGD.stride()[:2]),
            **call.constants(q_THD, k_KGD),
            **tile.constants,
            HAS_DESCRIPTORS=call.has_descriptors,
        )
        ctx.save_for_backward(q_THD, k_KGD, v_KGD, bias, out_THD, lse_HT)
        ctx.call = call
        return out_THD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        q_THD, k_KGD, v_KGD, bias, out_THD, lse_HT = ctx.saved_tensors
        call: Call = ctx.call
        grad_THD, delta_HT = grads[0].contiguous(), torch.empty_like(lse_HT)
        grad_q_THD = torch.empty_like(out_THD)
        grad_k_KGD, grad_v_KGD = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k_KGD, v_KGD))
        grad_bias = torch.zeros_like(bias) if ctx.needs_input_grad[3] else None
        tiles = tiles_for(q_THD.shape[2], q_THD.dtype, call.bias.kind)
        shared = (
            *(q_THD, k_KGD, v_KGD, grad_THD, lse_HT, delta_HT, bias),
            *(call.scale, call.mask.window or 0, len(q_THD)),
            *(*q_THD.stride()[:2], *k_KGD.stride()[:2], *v_KGD.stride()[:2]),
        )
        constants = call.constants(q_THD, k_KGD)
        bands = [call.band(tile, q_THD) for tile in (tiles.query, tiles.key)]
        for_query, for_key = ((band.values_RW, band.low, band.high, band.values_RW.stride(0)) for band in bands)
        launch(
            _query_gradients,
            (len(call.layout.query_tiles), q_THD.shape[1]),
            *(*shared, call.layout.query_tiles, *for_query),
            *(out_THD, grad_q_THD, bias if grad_bias is None else grad_bias, call.bias.reach),
            **constants,
            **tiles.query.constants,
            LEARNS_BIAS=grad_bias is not None,
        )
        launch(
            _key_gradients,
            (len(call.layout.key_tiles), k_KGD.shape[1]),
            *(*shared, call.layout.key_tiles, *for_key, grad_k_KGD, grad_v_KGD),
            **constants,
            **tiles.key.constants,
        )
        return grad_q_THD, grad_k_KGD, grad_v_KGD, grad_bias, None


def _described(q_THD: Tensor, k_KGD: Tensor, v_KGD: Tensor, band: Band, tile: Tile, call: Call) -> tuple[Any, ...]:
    """Descriptors of each [rows, heads * D] in tiles of one head, and of the band; the tensors where none are used."""
    if not call.has_descriptors:
        return q_THD, k_KGD, v_KGD, band.values_RW
    tiles = (
        TensorDescriptor(x, [len(x), x.shape[1] * x.shape[2]], [x.stride(0), 1], [rows, x.shape[2]])
        for x, rows in ((q_THD, tile.rows), (k_KGD, tile.keys), (v_KGD, tile.keys))
    )
    if call.bias.source is None:
        return *tiles, band.values_RW
    return *tiles, TensorDescriptor.from_tensor(band.values_RW, [tile.rows, tile.keys])


@triton.jit(do_not_specialize=["num_rows_total"])
def _forward(
    q,
    k,
    v,
    q_tiles,
    k_tiles,
    v_tiles,
    band,
    out,
    lse,
    bias,
    tiles,
    scale,
    window,
    num_rows_total,
    reach,
    band_low,
    band_high,
    band_stride,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    HAS_DESCRIPTORS: tl.constexpr,
):
    """One tile of queries of one head."""
    start, num_rows, first, key_start, num_keys = _placed(tiles)
    head = tl.program_id(1)
    row, column, lane = first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    is_real = (row < num_rows)[:, None] & (lane < D)[None, :]
    at = (start + row).to(tl.int64)[:, None]
    if HAS_DESCRIPTORS:  # rows behind the sequence's last are its neighbour's, and are not stored
        tile = q_tiles.load([start + first, head * D])  # [rows, D]
    else:
        tile = tl.load(q + at * q_stride + head * q_head_stride + lane[None, :], mask=is_real, other=0.0)
    k += key_start.to(tl.int64) * k_stride + head // GROUP * k_head_stride
    v += key_start.to(tl.int64) * v_stride + head // GROUP * v_head_stride
    place, factor = head // GROUP * D, scale * LOG2E

    low, high = 0, num_keys
    open_from, open_to = 0, num_keys  # every row of the tile sees every key between
    if CAUSAL:
        high, open_to = tl.minimum(num_keys, first + BLOCK_M), tl.minimum(num_keys, first + 1)
    if HAS_WINDOW:
        low = tl.maximum(0, first - window + 1) // BLOCK_N * BLOCK_N
        open_from = first + BLOCK_M - window
    whole = tl.minimum(tl.cdiv(high, BLOCK_N), num_keys // BLOCK_N) * BLOCK_N  # the rest reaches beyond the sequence
    near, far = low, whole  # tiles in which the bias differs by distance
    if BIAS == "relative":
        near = tl.minimum(tl.maximum((first - reach + 1) // BLOCK_N * BLOCK_N, low), whole)
        far = tl.minimum(tl.cdiv(first + reach + BLOCK_M - 1, BLOCK_N) * BLOCK_N, whole)

    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], -float("inf"), tl.float32)
    value = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for key in tl.range(near, far, BLOCK_N, num_stages=STAGES):
        k_tile = _whole_tile(k_tiles, k, key_start, key, column, lane, k_stride, place, D, BLOCK_D, HAS_DESCRIPTORS)
        v_tile = _whole_tile(v_tiles, v, key_start, key, column, lane, v_stride, place, D, BLOCK_D, HAS_DESCRIPTORS)
        ahead = (key + column)[None, :] - row[:, None]
        shift = _shift(key - first, band_low, band_high)
        added = _cut(band, head, shift, band_stride, BLOCK_M, BLOCK_N, BIAS, HAS_DESCRIPTORS)
        scores, rest = _scored(tile, k_tile, added, ahead, factor, bias, head, BIAS)
        if CAUSAL or HAS_WINDOW:  # noqa: SIM102 (the compiler's question, the other is the program's)
            if (key < open_from) | (key + BLOCK_N > open_to):
                scores = tl.where(seen(ahead, window, CAUSAL, HAS_WINDOW), scores, HIDDEN)
        value, peak, total = fold(scores, rest, v_tile, value, peak, total)
    if BIAS == "relative":
        before = tl.load(bias + head * (2 * reach + 1)) * LOG2E
        behind = tl.load(bias + head * (2 * reach + 1) + 2 * reach) * LOG2E
        for step in tl.range(low, whole - (far - near), BLOCK_N, num_stages=STAGES):
            key = tl.where(step < near, step, step + (far - near))
            k_tile = _whole_tile(k_tiles, k, key_start, key, column, lane, k_stride, place, D, BLOCK_D, HAS_DESCRIPTORS)
            v_tile = _whole_tile(v_tiles, v, key_start, key, column, lane, v_stride, place, D, BLOCK_D, HAS_DESCRIPTORS)
            scores = tl.dot(tile, tl.trans(k_tile), input_precision="ieee")
            if HAS_WINDOW:  # noqa: SIM102
                if key < open_from:
                    ahead = (key + column)[None, :] - row[:, None]
                    scores = tl.where(seen(ahead, window, CAUSAL, HAS_WINDOW), scores, HIDDEN)
            offset = tl.where(step < near, before, behind)
            value, peak, total = fold(scores, factor, v_tile, value, peak, total, offset)
    for key in tl.range(whole, high, BLOCK_N, num_stages=1):
        k_tail = _tile_of(k, key + column, lane, k_stride, num_keys, D, BLOCK_D, True)
        v_tail = _tile_of(v, key + column, lane, v_stride, num_keys, D, BLOCK_D, True)
        ahead = (key + column)[None, :] - row[:, None]
        shift = _shift(key - first, band_low, band_high)
        added = _cut(band, head, shift, band_stride, BLOCK_M, BLOCK_N, BIAS, HAS_DESCRIPTORS)
        scores, rest = _scored(tile, k_tail, added, ahead, factor, bias, head, BIAS)
        is_seen = (key + column < num_keys)[None, :] & seen(ahead, window, CAUSAL, HAS_WINDOW)
        value, peak, total = fold(tl.where(is_seen, scores, HIDDEN), rest, v_tail, value, peak, total)

    value = value * (1.0 / total)[:, None]
    target = at * (tl.num_programs(1) * D) + head * D + lane[None, :]
    tl.store(out + target, value.to(out.dtype.element_ty), mask=is_real)
    tl.store(lse + head * num_rows_total + start + row, peak + tl.math.log2(total), mask=row < num_rows)


@triton.jit
def _placed(tiles):
    """The five numbers of this program's tile."""
    at = tiles + 5 * tl.program_id(0)
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3), tl.load(at + 4)


@triton.jit
def _whole_tile(
    tiles,
    x,
    start,
    key,
    column,
    lane,
    stride,
    place,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_DESCRIPTORS: tl.constexpr,
):
    """The keys from `key` of the sequence from `start`, all of them its own, [keys, D]; `x` points to its first."""
    if HAS_DESCRIPTORS:
        return tiles.load([start + key, place])
    else:
        return _tile_of(x, key + column, lane, stride, 0, D, BLOCK_D, False)


@triton.jit
def _shift(distance, low, high):
    """Column of a band at which the tile begins whose first key is so far from its first query."""
    return tl.multiple_of(tl.minimum(tl.maximum(distance, low), high) - low, 16)


@triton.jit
def _cut(
    band,
    head,
    shift,
    stride,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BIAS: tl.constexpr,
    HAS_DESCRIPTORS: tl.constexpr,
):
    """The tile of the head's band that begins at column `shift`, [rows, keys]; nothing without a learned bias."""
    if BIAS != "relative":
        return 0.0
    elif HAS_DESCRIPTORS:
        return band.load([head * ROWS, shift])
    else:
        lines = band + (head * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None] * stride
        return tl.load(lines + shift + tl.arange(0, KEYS)[None, :])


@triton.jit
def _scored(tile, others, added, ahead, factor, bias, head, BIAS: tl.constexpr):
    """Scores of a tile's rows and others, and what is left to multiply them by.

    A learned bias, `added`, is what the matmul's sums begin with.
    """
    if BIAS == "relative":
        return tl.dot(tile, tl.trans(others), added.to(tl.float32), input_precision="ieee"), factor
    else:
        scores = tl.dot(tile, tl.trans(others), input_precision="ieee")
        return biased(scores, factor, bias, head, ahead, 0, BIAS)


@triton.jit(do_not_specialize=["num_rows_total"])
def _query_gradients(
    q,
    k,
    v,
    grad,
    lse,
    delta,
    bias,
    scale,
    window,
    num_rows_total,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    tiles,
    band,
    band_low,
    band_high,
    band_stride,
    out,
    grad_q,
    grad_bias,
    reach,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    LEARNS_BIAS: tl.constexpr,
):
    """One tile of queries of one head walks over the keys it sees."""
    start, num_rows, first, key_start, num_keys = _placed(tiles)
    head = tl.program_id(1)
    row, column, lane = first + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    is_real = (row < num_rows)[:, None] & (lane < D)[None, :]
    at, width = (start + row).to(tl.int64)[:, None], tl.num_programs(1) * D
    place, numbers = at * width + head * D + lane[None, :], head * num_rows_total + start + row
    tile = tl.load(q + at * q_stride + head * q_head_stride + lane[None, :], mask=is_real, other=0.0)
    grad_tile = tl.load(grad + place, mask=is_real, other=0.0)
    out_tile = tl.load(out + place, mask=is_real, other=0.0)
    slack = tl.sum(grad_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
    tl.store(delta + numbers, slack, mask=row < num_rows)
    height = tl.load(lse + numbers, mask=row < num_rows, other=0.0)[:, None]
    k += key_start.to(tl.int64) * k_stride + head // GROUP * k_head_stride
    v += key_start.to(tl.int64) * v_stride + head // GROUP * v_head_stride
    low, high = 0, num_keys
    if CAUSAL:
        high = tl.minimum(num_keys, first + BLOCK_M)
    if HAS_WINDOW:
        low = tl.maximum(0, first - window + 1) // BLOCK_N * BLOCK_N

    result = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for key in tl.range(low, high, BLOCK_N, num_stages=STAGES):
        k_tile = _tile_of(k, key + column, lane, k_stride, num_keys, D, BLOCK_D, True)
        v_tile = _tile_of(v, key + column, lane, v_stride, num_keys, D, BLOCK_D, True)
        ahead = (key + column)[None, :] - row[:, None]
        added = _cut(band, head, _shift(key - first, band_low, band_high), band_stride, BLOCK_M, BLOCK_N, BIAS, False)
        scores, rest = _scored(tile, k_tile, added, ahead, scale * LOG2E, bias, head, BIAS)
        is_seen = (key + column < num_keys)[None, :] & (row < num_rows)[:, None]
        is_seen &= seen(ahead, window, CAUSAL, HAS_WINDOW)
        weights = tl.where(is_seen, tl.math.exp2(scores * rest - height), 0.0)
        slope = weights * (tl.dot(grad_tile, tl.trans(v_tile), input_precision="ieee") - slack[:, None])
        if LEARNS_BIAS:
            _add_by_distance(grad_bias + head * (2 * reach + 1), slope, key - first, reach)
        result = tl.dot(slope.to(k_tile.dtype), k_tile, result, input_precision="ieee")
    tl.store(grad_q + place, (result * scale).to(grad_q.dtype.element_ty), mask=is_real)


@triton.jit(do_not_specialize=["num_rows_total"])
def _key_gradients(
    q,
    k,
    v,
    grad,
    lse,
    delta,
    bias,
    scale,
    window,
    num_rows_total,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    tiles,
    band,
    band_low,
    band_high,
    band_stride,
    grad_k,
    grad_v,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One tile of keys of one KV head walks over the queries that see it, head after head of the group."""
    key_start, num_keys, first, start, num_rows = _placed(tiles)
    kv_head = tl.program_id(1)
    key, place, lane = first + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    k += key_start.to(tl.int64) * k_stride + kv_head * k_head_stride
    v += key_start.to(tl.int64) * v_stride + kv_head * v_head_stride
    k_tile = _tile_of(k, key, lane, k_stride, num_keys, D, BLOCK_D, True)  # [keys, D]
    v_tile = _tile_of(v, key, lane, v_stride, num_keys, D, BLOCK_D, True)
    low, high = 0, num_rows
    if CAUSAL:
        low = first // BLOCK_M * BLOCK_M
    if HAS_WINDOW:
        high = tl.minimum(num_rows, first + BLOCK_N - 1 + window)

    width = tl.num_programs(1) * GROUP * D
    k_result = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    v_result = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for head in tl.range(kv_head * GROUP, (kv_head + 1) * GROUP, num_stages=1):
        q_rows = q + start.to(tl.int64) * q_stride + head * q_head_stride
        grad_rows = grad + start.to(tl.int64) * width + head * D
        numbers = head * num_rows_total + start
        for row in tl.range(low, high, BLOCK_M, num_stages=STAGES):
            rows = row + place
            q_tile = _tile_of(q_rows, rows, lane, q_stride, num_rows, D, BLOCK_D, True)  # [rows, D]
            grad_tile = _tile_of(grad_rows, rows, lane, width, num_rows, D, BLOCK_D, True)
            height = tl.load(lse + numbers + rows, mask=rows < num_rows, other=0.0)[None, :]
            slack = tl.load(delta + numbers + rows, mask=rows < num_rows, other=0.0)[None, :]
            ahead = key[:, None] - rows[None, :]  # [keys, rows], as the tiles below
            shift = _shift(first - row, band_low, band_high)
            added = _cut(band, head, shift, band_stride, BLOCK_M, BLOCK_N, BIAS, False)
            if BIAS == "relative":
                added = tl.trans(added)
            scores, rest = _scored(k_tile, q_tile, added, ahead, scale * LOG2E, bias, head, BIAS)
            # rows beyond the sequence have no gradient, and what keys beyond it get is not stored
            if CAUSAL or HAS_WINDOW:
                scores = tl.where(seen(ahead, window, CAUSAL, HAS_WINDOW), scores, HIDDEN)
            weights = tl.math.exp2(scores * rest - height)
            v_result = tl.dot(weights.to(grad_tile.dtype), grad_tile, v_result, input_precision="ieee")
            slope = weights * (tl.dot(v_tile, tl.trans(grad_tile), input_precision="ieee") - slack)
            k_result = tl.dot(slope.to(q_tile.dtype), q_tile, k_result, input_precision="ieee")
    is_real = (key < num_keys)[:, None] & (lane < D)[None, :]
    target = (key_start + key).to(tl.int64)[:, None] * (tl.num_programs(1) * D) + kv_head * D + lane[None, :]
    tl.store(grad_k + target, (k_result * scale).to(grad_k.dtype.element_ty), mask=is_real)
    tl.store(grad_v + target, v_result.to(grad_v.dtype.element_ty), mask=is_real)


@triton.jit
def _tile_of(x, at, lane, stride, length, D: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Rows `at` of one head, [rows, BLOCK_D]; where MASKED, zero beyond `length`."""
    pointers = x + at.to(tl.int64)[:, None] * stride + lane[None, :]
    if MASKED:
        return tl.load(pointers, mask=(at < length)[:, None] & (lane < D)[None, :], other=0.0)
    elif BLOCK_D == D:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=(lane < D)[None, :], other=0.0)


@triton.jit
def _add_by_distance(target, slope, distance, reach):
    """Add the sums of the tile's diagonals to their distances' numbers; a tile that is far as a whole adds one sum.

    `distance` is that of its first key to its first query; hidden slopes are zero.
    """
    ROWS: tl.constexpr = slope.shape[0]
    KEYS: tl.constexpr = slope.shape[1]
    if distance + KEYS - 1 <= -reach:
        tl.atomic_add(target, tl.sum(tl.sum(slope, 1), 0))
    elif distance - ROWS + 1 >= reach:
        tl.atomic_add(target + 2 * reach, tl.sum(tl.sum(slope, 1), 0))
    else:
        STEP: tl.constexpr = 32
        for first in tl.range((1 - ROWS) // STEP * STEP, KEYS, STEP):
            diagonal = first + tl.arange(0, STEP)
            key = tl.arange(0, ROWS)[:, None] + diagonal[None, :]
            found = tl.gather(slope, tl.minimum(tl.maximum(key, 0), KEYS - 1), 1)
            sums = tl.sum(tl.where((key >= 0) & (key < KEYS), found, 0.0), 0)
            at = tl.minimum(tl.maximum(distance + diagonal, -reach), reach) + reach
            tl.atomic_add(target + at, sums, sem="relaxed")
