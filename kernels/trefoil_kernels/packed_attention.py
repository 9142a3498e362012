"""Attention over packed sequences: no padding, no batch axis, grouped query heads (Ainslie et al., arXiv 2305.13245).

    out_t = sum_j softmax_j(scale * q_t . k_j) v_j        over the keys j of t's own sequence that the mask lets it see

Query head h reads KV head h // (H / G). `reference` says it plainly; `packed_attention` is the door.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil_kernels.masks import Mask

PAD_LIMIT = 1.25
"""Sequences share one padded matmul while the padded rows stay within this factor of the real ones."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How many rows each sequence brings, in order."""

    lens: tuple[int, ...]

    @property
    def starts(self) -> list[int]:
        """Row at which each sequence begins, then the number of rows: N + 1 numbers."""
        return [0, *accumulate(self.lens)]


def reference(q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, packing: Packing, *, mask: Mask, scale: float) -> Tensor:
    """One sequence at a time, softmax in float32."""
    group = q_THD.shape[1] // k_TGD.shape[1]
    out_THD = torch.zeros_like(q_THD)
    for start, length in zip(packing.starts, packing.lens, strict=False):
        own = slice(start, start + length)
        at = torch.arange(length, device=q_THD.device)
        k, v = (x[own].float().repeat_interleave(group, 1) for x in (k_TGD, v_TGD))  # [length, H, D]
        scores = torch.einsum("qhd,khd->hqk", q_THD[own].float(), k) * scale
        scores = scores.masked_fill(~mask.seen(at, at), -torch.inf)
        out_THD[own] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(q_THD.dtype)
    return out_THD


def packed_attention(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, packing: Packing, *, mask: Mask, scale: float
) -> Tensor:
    """Attention of each row within its own sequence, [T, H, D]; differentiable in q, k and v."""
    if not len(q_THD):
        return q_THD.clone()
    if len(packing.lens) == 1:
        return _batched(q_THD[None], k_TGD[None], v_TGD[None], packing.lens, mask, scale)[0]
    parts, order = [], []
    for members in _alike(packing.lens):
        rows_NL = _row_table(packing, members, q_THD.device)
        lens = tuple(packing.lens[n] for n in members)
        out = _batched(q_THD[rows_NL], k_TGD[rows_NL], v_TGD[rows_NL], lens, mask, scale)  # [n, longest, H, D]
        real = torch.arange(rows_NL.shape[1], device=q_THD.device) < torch.tensor(lens, device=q_THD.device)[:, None]
        parts.append(out[real])
        order.append(rows_NL[real])
    back_T = torch.cat(order).argsort()
    return torch.cat(parts)[back_T]


def _alike(lens: tuple[int, ...]) -> list[list[int]]:
    """Sequence numbers grouped so that padding each group to its longest wastes little."""
    groups: list[list[int]] = []
    rows = 0
    for n in sorted((n for n in range(len(lens)) if lens[n]), key=lambda n: -lens[n]):
        longest = lens[groups[-1][0]] if groups else 0
        if groups and longest * (len(groups[-1]) + 1) <= PAD_LIMIT * (rows + lens[n]):
            groups[-1].append(n)
            rows += lens[n]
        else:
            groups.append([n])
            rows = lens[n]
    return groups


def _row_table(packing: Packing, members: list[int], device: torch.device) -> Tensor:
    """[n, longest] row numbers; beyond a sequence's end its last row again."""
    starts, longest = packing.starts, packing.lens[members[0]]
    start_N1 = torch.tensor([[starts[n]] for n in members], device=device)
    last_N1 = torch.tensor([[packing.lens[n] - 1] for n in members], device=device)
    return start_N1 + torch.arange(longest, device=device)[None].minimum(last_N1)


def _batched(q: Tensor, k: Tensor, v: Tensor, lens: tuple[int, ...], mask: Mask, scale: float) -> Tensor:
    """[n, L, heads, D] each, right-padded; a causal mask alone keeps real rows from padding."""
    group, longest = q.shape[2] // k.shape[2], q.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [n, heads, L, D]
    if group > 1:
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    if mask.is_causal and mask.hides_nothing_within(longest):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2)
    at = torch.arange(longest, device=q.device)
    seen = mask.seen(at, at)[None, None]  # [1, 1, L, L]
    if not mask.is_causal and min(lens) < longest:
        seen = seen & (at < torch.tensor(lens, device=q.device)[:, None])[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale).transpose(1, 2)
