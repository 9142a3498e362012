"""Rows times weights of their own choice, out_p = W[e_p] x[row of p], of a stack of weights [E, F, M] (grouped matmul,
as in MegaBlocks, Gale et al., arXiv 2211.15841).

Pairs of a row and a weight are counted through row by row, `pairs / rows` of each. Few pairs are computed one by one,
as a product bound by reading weights is. Many are ordered by weight first and computed in tiles of rows that share it.
How many tiles there can be at most is known from sizes alone, so neither kind asks the host, and both can be captured
in a graph.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from trefoil_kernels.float8 import as_read, widened
from trefoil_kernels.launch import chip, launch, with_whole_rows

FEW_PAIRS = 32
"""Up to here each pair reads its weight by itself, so a weight that several chose is read as often, from the cache."""
BLOCK_F, BLOCK_M, WARPS, STAGES = 16, 512, 4, 3
"""The tile of weight that one pair meets at a time."""


@dataclass(frozen=True, slots=True)
class GroupedTile:
    """Pairs, outputs and the depth of one matmul tile, warps that work on it, depths in flight."""

    rows: int
    outs: int
    depth: int
    warps: int
    stages: int

    @property
    def constants(self) -> dict[str, int]:
        """As the kernel names them."""
        return {
            "ROWS": self.rows,
            "BLOCK_F": self.outs,
            "BLOCK_M": self.depth,
            "STAGES": self.stages,
            "num_warps": self.warps,
        }


LOW_TILES = {"interpreter": GroupedTile(16, 32, 32, 4, 1), "sm_80": GroupedTile(16, 64, 128, 4, 4)}
HIGH_TILES = {"interpreter": GroupedTile(32, 32, 32, 4, 1), "sm_80": GroupedTile(64, 128, 64, 8, 3)}
LOW_TILES["sm_90"] = LOW_TILES["sm_80"]
HIGH_TILES["sm_90"] = GroupedTile(128, 128, 64, 8, 4)
SMALL_TILE = GroupedTile(16, 32, 32, 4, 1)
"""For float32 and for chips of no table."""
CROWD = 32
"""From so many pairs a weight on the tiles are high."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Pairs in the order of their weights.

    `order_P` holds their numbers, those of weight e from `starts_E1[e]` to the next; `tiles_E1` counts the tiles of all
    weights before. All int64.
    """

    order_P: Tensor
    starts_E1: Tensor
    tiles_E1: Tensor
    tile: GroupedTile

    @property
    def most_tiles(self) -> int:
        """However the pairs fall."""
        pairs, weights = len(self.order_P), len(self.starts_E1) - 1
        return min(pairs, pairs // self.tile.rows + weights)


def reference(x_RM: Tensor, weights_EFM: Tensor, choice_P: Tensor) -> Tensor:
    """Pair by pair, [P, F]."""
    each = len(choice_P) // len(x_RM)
    return torch.stack([weights_EFM[weight] @ x_RM[p // each] for p, weight in enumerate(choice_P.tolist())])


def grouped_linear(
    x_RM: Tensor, weights_EFM: Tensor, choice_P: Tensor, ordered: Choice | None, scales_EF: Tensor | None = None
) -> Tensor:
    """[P, F] by the kernels below; `ordered` as `in_order` gives it for the same choice (int64). Inference only.

    The weights may be codes of `float8` with their scales.
    """
    x_RM, read_EFM = with_whole_rows(x_RM), weights_EFM if scales_EF is None else as_read(weights_EFM)
    has_scales, scales = scales_EF is not None, x_RM if scales_EF is None else scales_EF
    (num_weights, outs, width), pairs = weights_EFM.shape, len(choice_P)
    out_PF = torch.empty(pairs, outs, dtype=x_RM.dtype, device=x_RM.device)
    sizes = (pairs // len(x_RM), outs, width, x_RM.stride(0))
    if ordered is None:
        launch(
            _one_pair,
            (pairs, triton.cdiv(outs, BLOCK_F)),
            *(x_RM, read_EFM, scales, choice_P, out_PF, *sizes),
            HAS_SCALES=has_scales,
            IS_WHOLE=outs % BLOCK_F == 0 and width % BLOCK_M == 0,
            BLOCK_F=BLOCK_F,
            BLOCK_M=BLOCK_M,
            STAGES=STAGES,
            num_warps=WARPS,
        )
        return out_PF
    tile = ordered.tile
    launch(
        _tile,
        (triton.cdiv(outs, tile.outs), ordered.most_tiles),
        *(x_RM, read_EFM, scales, ordered.order_P, ordered.starts_E1, ordered.tiles_E1, out_PF, *sizes, num_weights),
        HAS_SCALES=has_scales,
        IS_WHOLE=outs % tile.outs == 0 and width % tile.depth == 0,
        **tile.constants,
    )
    return out_PF


def in_order(choice_P: Tensor, num_weights: int, dtype: torch.dtype) -> Choice | None:
    """The pairs for products in this dtype, without asking the host; None where they are few."""
    pairs = len(choice_P)
    if pairs <= FEW_PAIRS:
        return None
    tiles = HIGH_TILES if pairs >= CROWD * num_weights else LOW_TILES
    tile = SMALL_TILE if dtype == torch.float32 else tiles.get(chip(), SMALL_TILE)
    sorted_P, order_P = choice_P.sort(stable=True)
    starts_E1 = torch.searchsorted(sorted_P, torch.arange(num_weights + 1, device=choice_P.device))
    tiles_E = (starts_E1.diff() + tile.rows - 1) // tile.rows
    return Choice(order_P, starts_E1, F.pad(tiles_E.cumsum(0), (1, 0)), tile)


@triton.jit(do_not_specialize=["each"])
def _one_pair(
    x,
    weights,
    scales,
    choice,
    out,
    each,
    num_outs,
    width,
    x_stride,
    HAS_SCALES: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STAGES: tl.constexpr,
):
    """BLOCK_F numbers of a pair's result."""
    pair = tl.program_id(0).to(tl.int64)
    entry, column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_M)
    first = tl.load(choice + pair) * num_outs
    line, lines = x + pair // each * x_stride, weights + (first + entry[:, None]) * width
    total = tl.zeros([BLOCK_F, BLOCK_M], tl.float32)
    for start in tl.range(0, width, BLOCK_M, num_stages=STAGES):
        at = start + column
        if IS_WHOLE:
            number, tile = tl.load(line + at), tl.load(lines + at[None, :])
        else:
            number = tl.load(line + at, mask=at < width, other=0.0)
            tile = tl.load(lines + at[None, :], mask=(entry < num_outs)[:, None] & (at < width)[None, :], other=0.0)
        total += widened(tile) * number.to(tl.float32)[None, :]
    value = tl.sum(total, 1)
    if HAS_SCALES:
        value *= tl.load(scales + first + entry, mask=entry < num_outs, other=0.0)
    tl.store(out + pair * num_outs + entry, value.to(out.dtype.element_ty), mask=entry < num_outs)


@triton.jit(do_not_specialize=["each"])
def _tile(
    x,
    weights,
    scales,
    order,
    starts,
    tiles,
    out,
    each,
    num_outs,
    width,
    x_stride,
    num_weights,
    HAS_SCALES: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_M: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Up to ROWS pairs that chose one weight, by BLOCK_F of its outputs."""
    number = tl.program_id(1)
    if number >= tl.load(tiles + num_weights):
        return
    weight = _weight_of(tiles, number, num_weights)
    first = tl.load(starts + weight) + (number - tl.load(tiles + weight)) * ROWS
    place = first + tl.arange(0, ROWS)
    is_real = place < tl.load(starts + weight + 1)
    pair = tl.load(order + place, mask=is_real, other=0)
    entry, column = tl.program_id(0) * BLOCK_F + tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_M)
    rows = x + (pair // each)[:, None] * x_stride
    lines = weights + (weight.to(tl.int64) * num_outs + entry[None, :]) * width
    total = tl.zeros([ROWS, BLOCK_F], tl.float32)
    for start in tl.range(0, width, BLOCK_M, num_stages=STAGES):
        at = start + column
        if IS_WHOLE:
            some, part = tl.load(rows + at[None, :]), tl.load(lines + at[:, None])
        else:
            is_in = at < width
            some = tl.load(rows + at[None, :], mask=is_in[None, :], other=0.0)
            part = tl.load(lines + at[:, None], mask=is_in[:, None] & (entry < num_outs)[None, :], other=0.0)
        if HAS_SCALES:
            part = widened(part).to(some.dtype)
        total = tl.dot(some, part, total, input_precision="ieee")  # [ROWS, BLOCK_M] by [BLOCK_M, BLOCK_F]
    if HAS_SCALES:
        total *= tl.load(scales + weight.to(tl.int64) * num_outs + entry, mask=entry < num_outs, other=0.0)[None, :]
    target = out + pair[:, None] * num_outs + entry[None, :]
    tl.store(target, total.to(out.dtype.element_ty), mask=is_real[:, None] & (entry < num_outs)[None, :])


@triton.jit
def _weight_of(tiles, number, num_weights):
    """The last weight whose tiles begin no later than this one."""
    low, high = 0, num_weights
    while high - low > 1:
        middle = (low + high) // 2
        is_after = tl.load(tiles + middle) > number
        low, high = tl.where(is_after, low, middle), tl.where(is_after, middle, high)
    return low
