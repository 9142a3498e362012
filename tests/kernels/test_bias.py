"""Distance biases: T5's buckets as transformers computes them, ALiBi, and both inside packed and paged attention."""

import pytest
import torch
from torch import Tensor
from transformers.models.t5.modeling_t5 import T5Attention

from closeness import assert_close
from trefoil_kernels import packed_attention, paged_attention
from trefoil_kernels.bias import Alibi, Bias, RelativeBias
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing
from trefoil_kernels.page_write import new_pages, page_write
from trefoil_kernels.paged_attention import PageTable

H, G, D, S = 4, 2, 8, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def biases() -> dict[str, Bias]:
    return {"t5": RelativeBias(normal(32, H), 128, is_bidirectional=False), "alibi": Alibi(normal(H).abs())}


@pytest.mark.parametrize("is_bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20), (32, 100)])
def test_buckets_are_those_of_transformers(is_bidirectional: bool, buckets: int, furthest: int) -> None:
    ahead = torch.arange(-700, 700)
    mine = RelativeBias(torch.zeros(buckets, H), furthest, is_bidirectional).buckets(ahead)
    theirs = T5Attention._relative_position_bucket(ahead, is_bidirectional, buckets, furthest)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("lens", [(1,), (63, 1), (5, 11, 17), (0, 5, 1)], ids=str)
@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.FULL, Mask(window=4)], ids=str)
def test_packed_attention_adds_a_learned_bias(lens: tuple[int, ...], mask: Mask) -> None:
    table_BH = normal(32, H).requires_grad_()
    bias = RelativeBias(table_BH, 20, is_bidirectional=not mask.is_causal)
    qkv = [normal(sum(lens), n, D, seed=n).requires_grad_() for n in (H, G, G)]
    outs = [
        attention(*qkv, Packing(lens), mask=mask, scale=1.0, bias=bias)
        for attention in (packed_attention.reference, packed_attention.packed_attention)
    ]
    assert_close(outs[1], outs[0])
    direction = normal(*outs[0].shape)
    wanted, actual = (torch.autograd.grad(out, [*qkv, table_BH], direction) for out in outs)
    for got, want in zip(actual, wanted, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("keys", [(7, 1, 30), (3, 3, 3)], ids=str)
@pytest.mark.parametrize("rows", [(1, 1, 1), (5, 0, 9), (2, 2, 2)], ids=str)
def test_rows_attend_to_keys_of_another_packing(rows: tuple[int, ...], keys: tuple[int, ...]) -> None:
    q, k, v = normal(sum(rows), H, D), normal(sum(keys), G, D, seed=1), normal(sum(keys), G, D, seed=2)
    wanted, actual = (
        attention(q, k, v, Packing(rows), mask=Mask.FULL, scale=0.3, keys=Packing(keys))
        for attention in (packed_attention.reference, packed_attention.packed_attention)
    )
    assert_close(actual, wanted)


@pytest.mark.parametrize("kind", ["t5", "alibi", "cross"])
@pytest.mark.parametrize("batch", [[(1, 1), (1, 90)], [(3, 9), (1, 5), (7, 7)]], ids=str)
def test_paged_attention_adds_a_bias_at_every_step(kind: str, batch: list[tuple[int, int]]) -> None:
    mask, bias = (Mask.FULL, None) if kind == "cross" else (Mask.CAUSAL, biases()[kind])
    needs = [-(-length // S) for _, length in batch]
    pages = new_pages(sum(needs), S, G, D, dtype=torch.float32, device=torch.device("cpu"))
    pages.k_PSGD.fill_(torch.nan), pages.v_PSGD.fill_(torch.nan)
    pages_NP = torch.zeros(len(batch), max(needs), dtype=torch.int64)
    for n, (_, length) in enumerate(batch):
        pages_NP[n, : needs[n]] = torch.arange(needs[n]) + sum(needs[:n])
        at = torch.arange(length)
        slots = pages_NP[n, at // S] * S + at % S
        page_write(pages, normal(length, G, D, seed=n), normal(length, G, D, seed=n + 9), slots)
    lens = tuple(length for _, length in batch)
    table = PageTable(pages_NP, torch.tensor(lens), lens)
    packing = Packing(tuple(rows for rows, _ in batch))
    q = normal(sum(packing.lens), H, D)
    wanted, actual = (
        attention(q, pages, table, packing, mask=mask, scale=0.3, bias=bias)
        for attention in (paged_attention.reference, paged_attention.paged_attention)
    )
    assert_close(actual, wanted)
