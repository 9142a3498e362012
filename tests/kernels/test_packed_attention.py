"""Packed attention gives the reference's outputs and gradients for every packing, grouping and mask."""

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from trefoil_kernels.attention_tile import HIDDEN
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing, packed_attention, reference

LENS = [(1,), (63, 1), (5, 111, 17), (9,) * 7, (0, 5, 0, 1, 3), (40, 33, 2, 1, 1), (0, 4)]
MASKS = {
    "causal": Mask.CAUSAL,
    "full": Mask.FULL,
    "window 4": Mask(window=4),
    "window 1": Mask(window=1),
    "wide": Mask(window=500),
}
HEADS = [(4, 4), (4, 2), (8, 1)]

masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
heads = pytest.mark.parametrize(("H", "G"), HEADS, ids=str)


def draw(lens: tuple[int, ...], H: int, G: int, D: int, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lens) + H * G)
    shapes = [(sum(lens), n, D) for n in (H, G, G)]
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


def assert_same(qkv: list[Tensor], lens: tuple[int, ...], mask: Mask, scale: float | None = None) -> None:
    """Outputs, and gradients for one random direction."""
    packing, scale = Packing(lens), scale or qkv[0].shape[-1] ** -0.5
    wanted = reference(*qkv, packing, mask=mask, scale=scale)
    actual = packed_attention(*qkv, packing, mask=mask, scale=scale)
    assert_close(actual, wanted)
    direction = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).to(wanted)
    got, want = (torch.autograd.grad(out, qkv, direction) for out in (actual, wanted))
    assert_close(torch.cat([x.flatten() for x in got]), torch.cat([x.flatten() for x in want]))


@pytest.mark.parametrize("lens", LENS, ids=str)
@heads
@masks
def test_packed_attention_matches_reference(lens: tuple[int, ...], H: int, G: int, mask: Mask) -> None:
    assert_same(draw(lens, H, G, 8, torch.float32), lens, mask)


@pytest.mark.parametrize("D", [60, 64, 128])
@masks
def test_packed_attention_matches_reference_at_every_head_width(D: int, mask: Mask) -> None:
    assert_same(draw((17, 1, 16), 4, 2, D, torch.float32), (17, 1, 16), mask)


@heads
@masks
def test_packed_attention_matches_reference_in_bf16(H: int, G: int, mask: Mask) -> None:
    assert_same(draw((5, 111, 17), H, G, 64, torch.bfloat16), (5, 111, 17), mask)


@pytest.mark.parametrize("lens", [(), (0,), (0, 0)], ids=str)
def test_an_empty_packing_gives_no_rows(lens: tuple[int, ...]) -> None:
    q_THD, k_TGD, v_TGD = draw(lens, 4, 2, 8, torch.float32)
    out_THD = packed_attention(q_THD, k_TGD, v_TGD, Packing(lens), mask=Mask.CAUSAL, scale=1.0)
    assert out_THD.shape == q_THD.shape
    out_THD.sum().backward()


@masks
def test_sequences_do_not_see_each_other(mask: Mask) -> None:
    q, k, v = (x.detach() for x in draw((7, 9), 4, 2, 8, torch.float32))
    before = packed_attention(q, k, v, Packing((7, 9)), mask=mask, scale=0.3)
    k[:7], v[:7] = torch.nan, torch.nan
    after = packed_attention(q, k, v, Packing((7, 9)), mask=mask, scale=0.3)
    assert torch.equal(before[7:], after[7:])


def test_a_packing_says_where_its_sequences_start() -> None:
    assert Packing((3, 0, 2)).starts == [0, 3, 3, 5]


def test_a_window_counts_the_row_itself() -> None:
    seen_QK = Mask(window=2).seen(torch.arange(4), torch.arange(4))
    assert seen_QK.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


@pytest.mark.gpu
@pytest.mark.parametrize("lens", [(1,), (1023, 1), (5, 1111, 170, 171), (0, 64, 64)], ids=str)
@heads
@masks
def test_packed_attention_matches_reference_on_gpu(lens: tuple[int, ...], H: int, G: int, mask: Mask, gpu: str) -> None:
    assert_same(draw(lens, H, G, 128, torch.bfloat16, gpu), lens, mask)


@pytest.mark.gpu
@pytest.mark.parametrize("scale", [1.0, 0.3, 0.11, 0.07])
def test_a_row_may_see_nothing_of_a_whole_tile(scale: float, gpu: str) -> None:
    """Whichever way the product of its hidden scores and the scale is rounded."""
    assert_same(draw((5, 333), 4, 2, 64, torch.bfloat16, gpu), (5, 333), Mask(window=7), scale)


def test_a_hidden_score_times_any_scale_is_exact() -> None:
    scales = torch.rand(10_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal((scales * HIDDEN.value).double(), scales.double() * HIDDEN.value)
