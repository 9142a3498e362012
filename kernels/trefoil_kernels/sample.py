"""Choosing tokens on the device: one id a row, from the row's own temperature, truncations and random number.

    weights_v = exp((logit_v - max) / temperature), kept where
        weight_v >= min_p, and
        fewer than top_k weights are larger, and
        the larger ones make up less than top_p of all that the two above keep;
    the id is the first, in order of ids, at which the running sum of kept weights passes uniform * sum.

A temperature of 0 takes the largest logit; a top_k of 0, a top_p of 1 and a min_p of 0 keep everything. The kernel does
not sort: it bisects the distance max - logit, whose bits as a non-negative float32 are in order, for both truncations.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trefoil_kernels.launch import launch, runs_triton

BLOCK = 4096
LOWEST = tl.constexpr(-3.0e38)


def reference(
    logits_NV: Tensor, temperature_N: Tensor, top_k_N: Tensor, top_p_N: Tensor, min_p_N: Tensor, uniform_N: Tensor
) -> Tensor:
    """By sorting."""
    greedy_N = logits_NV.argmax(-1)
    heat_N1 = torch.where(temperature_N > 0, temperature_N, 1.0)[:, None]
    weights_NV = ((logits_NV - logits_NV.amax(-1, keepdim=True)) / heat_N1).exp()
    sorted_NV, order_NV = weights_NV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(logits_NV.shape[1], device=logits_NV.device)
    kept_NV = sorted_NV >= min_p_N[:, None]
    kept_NV &= (rank_V < top_k_N[:, None]) | (top_k_N == 0)[:, None]
    mass_NV = sorted_NV.masked_fill(~kept_NV, 0.0).double()
    larger_NV = mass_NV.cumsum(-1) - mass_NV
    kept_NV &= (larger_NV < top_p_N[:, None] * mass_NV.sum(-1, keepdim=True)) | (top_p_N >= 1)[:, None]
    kept_NV = torch.zeros_like(kept_NV).scatter(1, order_NV, kept_NV)
    sums_NV = weights_NV.masked_fill(~kept_NV, 0.0).double().cumsum(-1)
    drawn_N = (sums_NV <= uniform_N[:, None] * sums_NV[:, -1:]).sum(-1).clamp(max=logits_NV.shape[1] - 1)
    return torch.where(temperature_N > 0, drawn_N, greedy_N)


def sample(
    logits_NV: Tensor, temperature_N: Tensor, top_k_N: Tensor, top_p_N: Tensor, min_p_N: Tensor, uniform_N: Tensor
) -> Tensor:
    """An id per row of float32 logits, int64 [N]; `top_k_N` is int32, the others float32; waits for nothing."""
    if not runs_triton(logits_NV):
        return reference(logits_NV, temperature_N, top_k_N, top_p_N, min_p_N, uniform_N)
    return on_triton(logits_NV, temperature_N, top_k_N, top_p_N, min_p_N, uniform_N)


def on_triton(
    logits_NV: Tensor, temperature_N: Tensor, top_k_N: Tensor, top_p_N: Tensor, min_p_N: Tensor, uniform_N: Tensor
) -> Tensor:
    """By the kernel below; equal weights at a truncation's edge are kept together."""
    num, vocab = logits_NV.shape
    ids_N = torch.empty(num, dtype=torch.int64, device=logits_NV.device)
    block = min(BLOCK, triton.next_power_of_2(vocab))
    parameters = temperature_N, top_k_N, top_p_N, min_p_N, uniform_N
    launch(_sample, (num,), logits_NV, *parameters, ids_N, logits_NV.stride(0), vocab, BLOCK=block, num_warps=8)
    return ids_N


@triton.jit
def _sample(logits, temperatures, top_ks, top_ps, min_ps, uniforms, ids, stride, vocab, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    temperature, top_k, top_p = tl.load(temperatures + row), tl.load(top_ks + row), tl.load(top_ps + row)
    column = tl.arange(0, BLOCK)
    peak, best = -float("inf"), 0
    for start in range(0, vocab, BLOCK):
        x = tl.load(logits + start + column, mask=start + column < vocab, other=LOWEST)
        x = tl.maximum(x, LOWEST)  # the search for the place of the largest multiplies
        height, place = tl.max(x, 0, return_indices=True)
        best = tl.where(height > peak, start + place, best)
        peak = tl.maximum(peak, height)
    if temperature <= 0.0:
        tl.store(ids + row, best)
        return
    limit = 0x7F800000  # of the distance's bits; infinity keeps all
    if top_k > 0:
        limit = _bisected(logits, vocab, peak, temperature, limit, top_k.to(tl.float32), True, BLOCK)
    min_p = tl.load(min_ps + row)
    if min_p > 0.0:
        limit = tl.minimum(limit, tl.maximum(-tl.log(min_p), 0.0).to(tl.int32, bitcast=True))
    if top_p < 1.0:
        mass = top_p * _kept(logits, vocab, peak, temperature, limit, False, BLOCK)
        limit = _bisected(logits, vocab, peak, temperature, limit, mass, False, BLOCK)
    target = tl.load(uniforms + row) * _kept(logits, vocab, peak, temperature, limit, False, BLOCK)
    total, chosen, last = 0.0, vocab, best
    for start in range(0, vocab, BLOCK):
        weight, is_kept = _weights(logits, start + column, vocab, peak, temperature, limit)
        sums = total + tl.cumsum(weight, 0)
        chosen = tl.minimum(chosen, tl.min(tl.where(is_kept & (sums > target), start + column, vocab), 0))
        last = tl.maximum(last, tl.max(tl.where(is_kept & (weight > 0.0), start + column, 0), 0))
        total += tl.sum(weight, 0)
    # rounding can leave the target just above the last sum
    tl.store(ids + row, tl.where(chosen < vocab, chosen, last))


@triton.jit
def _weights(logits, at, vocab, peak, temperature, limit):
    """Weights of the entries whose distance from the peak is within the limit, and which these are."""
    x = tl.load(logits + at, mask=at < vocab, other=-float("inf"))
    distance = (peak - x) / temperature
    is_kept = (distance.to(tl.int32, bitcast=True) <= limit) & (at < vocab)
    return tl.where(is_kept, tl.exp(-distance), 0.0), is_kept


@triton.jit
def _kept(logits, vocab, peak, temperature, limit, COUNTS: tl.constexpr, BLOCK: tl.constexpr):
    """How many entries lie within the limit, or how much they weigh."""
    total = 0.0
    for start in range(0, vocab, BLOCK):
        weight, is_kept = _weights(logits, start + tl.arange(0, BLOCK), vocab, peak, temperature, limit)
        total += tl.sum(is_kept.to(tl.float32) if COUNTS else weight, 0)
    return total


@triton.jit
def _bisected(logits, vocab, peak, temperature, limit, wanted, COUNTS: tl.constexpr, BLOCK: tl.constexpr):
    """The smallest limit, at most the given one, within which there is as much as is wanted."""
    low, high = -1, limit
    while high - low > 1:
        middle = low + (high - low) // 2
        is_enough = _kept(logits, vocab, peak, temperature, middle, COUNTS, BLOCK) >= wanted
        low, high = tl.where(is_enough, low, middle), tl.where(is_enough, middle, high)
    return high
