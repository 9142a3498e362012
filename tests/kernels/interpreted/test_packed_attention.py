"""The packed kernels give the reference's outputs and gradients for every packing, mask, grouping, width and bias."""

import pytest
import torch
from torch import Tensor

from closeness import assert_agrees, assert_close
from trefoil_kernels.attention_tile import kernel_bias
from trefoil_kernels.bias import Alibi, Bias, RelativeBias
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing, on_triton, reference
from trefoil_kernels.packed_attention_triton import Call, Layout, attend, can_describe

LENS = [(1,), (31, 33), (5, 71, 0, 17), (0, 4)]
MASKS = {"causal": Mask.CAUSAL, "full": Mask.FULL, "window 4": Mask(window=4), "window 40": Mask(window=40)}
masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)


def draw(lens: tuple[int, ...], H: int, G: int, D: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(lens) + H * G)
    return [torch.randn(sum(lens), n, D, generator=generator).to(dtype).requires_grad_() for n in (H, G, G)]


def assert_same(qkv: list[Tensor], lens: tuple[int, ...], mask: Mask, keys: Packing | None = None) -> None:
    packing, scale = Packing(lens), qkv[0].shape[-1] ** -0.5
    kernel, plain = (
        lambda *of, op=op: op(*of, packing, mask=mask, scale=scale, keys=keys) for op in (on_triton, reference)
    )
    assert_agrees(kernel, plain, qkv)


@pytest.mark.parametrize("lens", LENS, ids=str)
@masks
def test_packings_and_masks(lens: tuple[int, ...], mask: Mask) -> None:
    assert_same(draw(lens, 2, 1, 16), lens, mask)


@pytest.mark.parametrize(("H", "G"), [(3, 3), (7, 1), (6, 2)], ids=str)
def test_groups(H: int, G: int) -> None:
    assert_same(draw((17, 40), H, G, 16), (17, 40), Mask.CAUSAL)


@pytest.mark.parametrize(("D", "dtype"), [(8, torch.bfloat16), (60, torch.float16), (128, torch.bfloat16)], ids=str)
def test_head_widths(D: int, dtype: torch.dtype) -> None:
    assert_same(draw((17, 40), 2, 1, D, dtype), (17, 40), Mask.CAUSAL)


def test_keys_of_another_packing() -> None:
    q_THD, k_KGD, v_KGD = draw((5, 40, 1), 2, 1, 16)[0], *draw((33, 2, 65), 2, 1, 16)[1:]
    assert_same([q_THD, k_KGD, v_KGD], (5, 40, 1), Mask.FULL, Packing((33, 2, 65)))


@pytest.mark.parametrize(("mask", "reach"), [(Mask.CAUSAL, 128), (Mask.FULL, 20)], ids=str)
def test_a_learned_bias_and_its_gradient(mask: Mask, reach: int) -> None:
    lens, table_BH = (5, 100), torch.randn(32, 2, requires_grad=True)

    def biased(op: object) -> object:
        def run(q: Tensor, k: Tensor, v: Tensor, table: Tensor) -> Tensor:
            bias = RelativeBias(table, reach, is_bidirectional=not mask.is_causal)
            return op(q, k, v, Packing(lens), mask=mask, scale=0.3, bias=bias)

        return run

    assert_agrees(biased(on_triton), biased(reference), [*draw(lens, 2, 1, 16), table_BH])


@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.FULL], ids=str)
def test_alibi(mask: Mask) -> None:
    lens, bias = (5, 70), Alibi(torch.tensor([0.5, 0.1]))
    kernel, plain = (
        lambda *of, op=op: op(*of, Packing(lens), mask=mask, scale=0.3, bias=bias) for op in (on_triton, reference)
    )
    assert_agrees(kernel, plain, draw(lens, 2, 1, 16))


def described(q: Tensor, k: Tensor, v: Tensor, packing: Packing, *, mask: Mask, scale: float, bias: Bias) -> Tensor:
    """Through tensor descriptors, as on sm_90."""
    tiles = packing.tiles_on(q.device, 32, packing)
    added = kernel_bias(bias, q)
    layout = Layout(tiles, tiles, tiles)
    return attend(q, k, v, Call(layout, mask, scale, added, has_descriptors=True))


@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.FULL], ids=str)
@pytest.mark.parametrize(
    "bias",
    [Alibi(torch.tensor([0.5, 0.1])), RelativeBias(0.3 * torch.arange(16.0).view(8, 2), 16, is_bidirectional=True)],
    ids=["alibi", "relative"],
)
def test_tiles_fetched_through_descriptors(mask: Mask, bias: Bias) -> None:
    lens = (3, 170, 41)
    kernel, plain = (
        lambda *of, op=op: op(*of, Packing(lens), mask=mask, scale=0.3, bias=bias) for op in (described, reference)
    )
    assert_agrees(kernel, plain, draw(lens, 2, 1, 16, torch.bfloat16))


def test_descriptors_need_heads_side_by_side_on_16_byte_borders() -> None:
    fused = torch.zeros(5, 3, 2, 16, dtype=torch.float16)
    assert can_describe(fused[:, 1], fused[:, 2])
    assert not can_describe(fused.transpose(2, 3)[:, 1], fused[:, 2])
    assert not can_describe(torch.zeros(5, 2, 60).half(), torch.zeros(5, 2, 60).half())
    assert not can_describe(torch.zeros(5 * 33).half()[1:161].view(5, 2, 16), fused[:, 1])


@pytest.mark.filterwarnings("ignore:.*NaN:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask.FULL], ids=str)
def test_sequences_do_not_see_each_other(mask: Mask) -> None:
    q, k, v = (x.detach() for x in draw((40, 33), 2, 1, 16))
    before = on_triton(q, k, v, Packing((40, 33)), mask=mask, scale=0.3)
    k[:40], v[:40] = torch.nan, torch.nan
    after = on_triton(q, k, v, Packing((40, 33)), mask=mask, scale=0.3)
    assert_close(after[40:], before[40:])
