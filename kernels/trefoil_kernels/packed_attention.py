"""Attention over packed sequences: no padding, no batch axis, grouped query heads (Ainslie et al., arXiv 2305.13245).

    out_t = sum_j softmax_j(scale * q_t . k_j + bias_tj) v_j        over the keys j of t's own sequence that t may see

Query head h reads KV head h // (H / G). Keys may be of another packing (cross-attention), then without mask and bias.
`reference` says it plainly; `packed_attention` is the door.
"""

from dataclasses import dataclass, field
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil_kernels.attention_tile import WIDEST_HEAD, kernel_bias
from trefoil_kernels.bias import Bias
from trefoil_kernels.cpu.attention import Keys, biases
from trefoil_kernels.cpu.library import attention_for
from trefoil_kernels.launch import chip, runs_triton
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention_triton import (
    DESCRIPTOR_CHIPS,
    Call,
    Layout,
    attend,
    can_describe,
    tiles_for,
)

PAD_LIMIT = 1.25
"""Sequences share one padded matmul while the padded rows stay within this factor of the real ones."""


@dataclass(frozen=True, slots=True)
class Packing:
    """How many rows each sequence brings, in order."""

    lens: tuple[int, ...]
    _on_device: dict[object, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def told(cls, lens: tuple[int, ...], starts_N1: Tensor) -> "Packing":
        """With `starts` as they are on a device, int32; a tape's change from pass to pass."""
        return cls(lens, {(starts_N1.device, 0): starts_N1})

    @property
    def starts(self) -> list[int]:
        """Row at which each sequence begins, then the number of rows: N + 1 numbers."""
        return [0, *accumulate(self.lens)]

    def starts_on(self, device: torch.device) -> Tensor:
        """`starts` as int32 [N + 1], sent once for all layers of a pass."""
        if (device, 0) not in self._on_device:
            self._on_device[device, 0] = torch.tensor(self.starts, dtype=torch.int32, device=device)
        return self._on_device[device, 0]

    def tiles_on(self, device: torch.device, rows: int, other: "Packing") -> Tensor:
        """The sequences cut into tiles of `rows`, sent once for all layers; int32 [tiles, 5].

        Each is (start, length, first row of the tile, start and length of the same sequence in `other`). The ends of
        long sequences come first: under a causal mask they take longest.
        """
        key = device, rows, None if other is self else other.lens
        if key not in self._on_device:
            tiles = [
                (*own, first, *others)
                for own, others in zip(self._spans, other._spans, strict=True)
                for first in range(0, own[1], rows)
            ]
            tiles.sort(key=lambda tile: -tile[2])
            self._on_device[key] = torch.tensor(tiles, dtype=torch.int32, device=device).view(-1, 5)
        return self._on_device[key]

    @property
    def _spans(self) -> list[tuple[int, int]]:
        return list(zip(self.starts, self.lens, strict=False))


def reference(
    q_THD: Tensor,
    k_KGD: Tensor,
    v_KGD: Tensor,
    packing: Packing,
    *,
    mask: Mask,
    scale: float,
    bias: Bias | None = None,
    keys: Packing | None = None,
) -> Tensor:
    """One sequence at a time, softmax in float32."""
    group = q_THD.shape[1] // k_KGD.shape[1]
    keys = keys or packing
    out_THD = torch.zeros_like(q_THD)
    for n, (length, num_keys) in enumerate(zip(packing.lens, keys.lens, strict=True)):
        own = slice(packing.starts[n], packing.starts[n] + length)
        seen = slice(keys.starts[n], keys.starts[n] + num_keys)
        q_at, k_at = (torch.arange(count, device=q_THD.device) for count in (length, num_keys))
        k, v = (x[seen].float().repeat_interleave(group, 1) for x in (k_KGD, v_KGD))  # [num_keys, H, D]
        scores = torch.einsum("qhd,khd->hqk", q_THD[own].float(), k) * scale
        if bias is not None:
            scores = scores + bias.values(q_at, k_at)
        scores = scores.masked_fill(~mask.seen(q_at, k_at), -torch.inf)
        out_THD[own] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).to(q_THD.dtype)
    return out_THD


def packed_attention(
    q_THD: Tensor,
    k_KGD: Tensor,
    v_KGD: Tensor,
    packing: Packing,
    *,
    mask: Mask,
    scale: float,
    bias: Bias | None = None,
    keys: Packing | None = None,
) -> Tensor:
    """Attention of each row within its own sequence, [T, H, D]; differentiable in q, k, v and a learned bias.

    With `keys`, row t of sequence n sees all keys of that packing's sequence n, each of which has at least one;
    `mask` must then be Mask.FULL and `bias` None.
    """
    assert keys is None or (mask == Mask.FULL and bias is None), "cross-attention has neither mask nor bias"
    if not len(q_THD):
        return q_THD.clone()
    if runs_triton(q_THD) and q_THD.shape[2] <= WIDEST_HEAD:
        return on_triton(q_THD, k_KGD, v_KGD, packing, mask=mask, scale=scale, bias=bias, keys=keys)
    if native := attention_for(q_THD, k_KGD, v_KGD):
        starts_N1, key_starts_N1 = (own.starts_on(q_THD.device) for own in (packing, keys or packing))
        own_keys = Keys(k_KGD, v_KGD, starts_N1=key_starts_N1)
        added = None if bias is None else biases(bias, max(packing.lens))
        return native.attention.over(q_THD, own_keys, starts_N1, mask=mask, scale=scale, bias=added)
    if len(packing.lens) == 1:
        lens = (keys or packing).lens
        return _batched(q_THD[None], k_KGD[None], v_KGD[None], lens, mask, scale, bias)[0]
    parts, order = [], []
    for members in _alike(packing.lens):
        rows_NL = _row_table(packing, members, q_THD.device)
        keys_NL = rows_NL if keys is None else _row_table(keys, members, q_THD.device)
        lens = tuple((keys or packing).lens[n] for n in members)
        out = _batched(q_THD[rows_NL], k_KGD[keys_NL], v_KGD[keys_NL], lens, mask, scale, bias)  # [n, longest, H, D]
        own_N1 = torch.tensor([[packing.lens[n]] for n in members], device=q_THD.device)
        real = torch.arange(rows_NL.shape[1], device=q_THD.device) < own_N1
        parts.append(out[real])
        order.append(rows_NL[real])
    back_T = torch.cat(order).argsort()
    return torch.cat(parts)[back_T]


def on_triton(
    q_THD: Tensor,
    k_KGD: Tensor,
    v_KGD: Tensor,
    packing: Packing,
    *,
    mask: Mask,
    scale: float,
    bias: Bias | None = None,
    keys: Packing | None = None,
) -> Tensor:
    """By the kernels of packed_attention_triton."""
    dtype, device, keys = q_THD.dtype, q_THD.device, keys or packing
    added = kernel_bias(bias, q_THD)
    tiles = tiles_for(q_THD.shape[2], dtype, added.kind)
    layout = Layout(
        packing.tiles_on(device, tiles.forward.rows, keys),
        packing.tiles_on(device, tiles.query.rows, keys),
        keys.tiles_on(device, tiles.key.keys, packing),
    )
    has_descriptors = chip() in DESCRIPTOR_CHIPS and dtype.itemsize == 2 and can_describe(q_THD, k_KGD, v_KGD)
    return attend(q_THD, k_KGD, v_KGD, Call(layout, mask, scale, added, has_descriptors))


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
    starts, longest = packing.starts, max(packing.lens[n] for n in members)
    start_N1 = torch.tensor([[starts[n]] for n in members], device=device)
    last_N1 = torch.tensor([[packing.lens[n] - 1] for n in members], device=device)
    return start_N1 + torch.arange(longest, device=device)[None].minimum(last_N1)


def _batched(
    q: Tensor, k: Tensor, v: Tensor, lens: tuple[int, ...], mask: Mask, scale: float, bias: Bias | None
) -> Tensor:
    """[n, L, heads, D] queries over [n, K, heads, D] keys, right-padded; sequence n has `lens[n]` real keys.

    A causal mask alone keeps real rows from padding.
    """
    group, num_rows, num_keys = q.shape[2] // k.shape[2], q.shape[1], k.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [n, heads, L, D]
    if group > 1:
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    if mask.is_causal and mask.hides_nothing_within(num_keys) and bias is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2)
    q_at, k_at = (torch.arange(count, device=q.device) for count in (num_rows, num_keys))
    seen = mask.seen(q_at, k_at)[None, None]  # [1, 1, L, K]
    if not mask.is_causal and min(lens) < num_keys:
        seen = seen & (k_at < torch.tensor(lens, device=q.device)[:, None])[:, None, None]
    added = None if bias is None else bias.values(q_at, k_at).to(q.dtype)[None].masked_fill(~seen, -torch.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen if added is None else added, scale=scale).transpose(
        1, 2
    )
