"""Attention whose keys and values lie in pages (Kwon et al., arXiv 2309.06180), any number of query rows per sequence.

The last query row of a sequence sits at its last key; a row at position i sees the keys that the mask lets it see.
One-row sequences (decode) go through one batched product; longer ones (prefill chunks) go one by one. Grouped query
heads are folded into rows of their KV head, so keys are never repeated.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil_kernels.bias import Bias
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing
from trefoil_kernels.page_write import Pages


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
        k, v = (x.float().repeat_interleave(group, 1) for x in _gathered(pages, table, n))  # [length, H, D]
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


def _gathered(pages: Pages, table: PageTable, n: int) -> tuple[Tensor, Tensor]:
    """Keys and values of sequence n in order, [length, G, D] each."""
    length = table.lens[n]
    own_P = table.pages_NP[n, : -(-length // pages.page_size)]
    return pages.k_PSGD[own_P].flatten(0, 1)[:length], pages.v_PSGD[own_P].flatten(0, 1)[:length]


def _rows_of(table: PageTable, members: list[int]) -> PageTable:
    at = torch.tensor(members, device=table.pages_NP.device)
    return PageTable(table.pages_NP[at], table.lens_N[at], tuple(table.lens[n] for n in members))


def _many_rows(
    q_QHD: Tensor, pages: Pages, table: PageTable, n: int, mask: Mask, scale: float, bias: Bias | None
) -> Tensor:
    k_KGD, v_KGD = _gathered(pages, table, n)
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
    k_NKGD, v_NKGD = (x[own_NP].flatten(1, 2)[:, :longest] for x in (pages.k_PSGD, pages.v_PSGD))
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
