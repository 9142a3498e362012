"""The paged kernels give the reference's outputs for every mix of rows, mask, grouping, head width and bias."""

import pytest
import torch

from closeness import assert_close
from paged_world import BATCHES, MASKS, World, draw
from trefoil_kernels.bias import Alibi, Bias, RelativeBias
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing
from trefoil_kernels.paged_attention import PageTable, on_triton, reference

batches = pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
LONG = [(1, 1), (1, 600), (1, 33), (2, 65)]


def assert_same(world: World, mask: Mask, bias: Bias | None = None) -> None:
    args = world.q_THD, world.pages, world.table, world.packing
    actual = on_triton(*args, mask=mask, scale=0.2, bias=bias)
    assert_close(actual, reference(*args, mask=mask, scale=0.2, bias=bias))


@batches
@pytest.mark.parametrize("mask", [*MASKS.values(), Mask.FULL], ids=[*MASKS, "full"])
def test_masks(batch: list[tuple[int, int]], mask: Mask) -> None:
    assert_same(draw(batch, 4, 2, 16, torch.float32), mask)


@pytest.mark.parametrize(("H", "G"), [(3, 3), (14, 2), (40, 1)], ids=str)
def test_groups(H: int, G: int) -> None:
    assert_same(draw(BATCHES["mixed"], H, G, 16, torch.float32), Mask.CAUSAL)


@pytest.mark.parametrize("D", [8, 60, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_head_widths(D: int, dtype: torch.dtype) -> None:
    assert_same(draw(BATCHES["mixed"], 4, 2, D, dtype), Mask.CAUSAL)


@pytest.mark.parametrize("mask", [Mask.CAUSAL, Mask(window=300), Mask.FULL], ids=str)
def test_splits_of_long_and_short_sequences(mask: Mask) -> None:
    assert_same(draw(LONG, 2, 1, 16, torch.bfloat16), mask)


@pytest.mark.parametrize("kind", ["relative", "alibi"])
def test_biases(kind: str) -> None:
    world = draw(BATCHES["mixed"], 4, 2, 16, torch.float32)
    bias = Alibi(torch.rand(4)) if kind == "alibi" else RelativeBias(torch.randn(32, 4), 20, is_bidirectional=False)
    assert_same(world, Mask.CAUSAL, bias)


def test_a_sequence_does_not_depend_on_its_company_or_on_how_wide_the_table_is() -> None:
    world = draw(LONG[:3], 4, 2, 16, torch.float32)
    together = on_triton(world.q_THD, world.pages, world.table, world.packing, mask=Mask.CAUSAL, scale=0.3)
    for n, length in enumerate(world.table.lens):
        own = PageTable(world.table.pages_NP[n : n + 1], world.table.lens_N[n : n + 1], (length,))
        alone = on_triton(world.q_THD[n : n + 1], world.pages, own, Packing((1,)), mask=Mask.CAUSAL, scale=0.3)
        assert_close(alone, together[n : n + 1])


def test_queries_may_be_slices_of_a_fused_projection() -> None:
    world = draw(BATCHES["mixed"], 4, 4, 16, torch.float32)
    fused = torch.stack([world.q_THD, world.q_THD + 1], 1)
    args = world.pages, world.table, world.packing
    actual = on_triton(fused[:, 0], *args, mask=Mask.CAUSAL, scale=0.3)
    assert torch.equal(actual, on_triton(world.q_THD, *args, mask=Mask.CAUSAL, scale=0.3))
