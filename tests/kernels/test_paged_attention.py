"""Paged attention gives the reference's outputs, whatever page order, slot junk or mix of row counts it meets."""

import pytest
import torch

from closeness import assert_close
from paged_world import BATCHES, MASKS, World, draw
from trefoil_kernels import packed_attention
from trefoil_kernels.masks import Mask
from trefoil_kernels.packed_attention import Packing
from trefoil_kernels.paged_attention import PageTable, paged_attention, reference

masks = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
batches = pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
heads = pytest.mark.parametrize(("H", "G"), [(4, 4), (4, 2), (8, 1)], ids=str)


def assert_same(world: World, mask: Mask) -> None:
    scale = world.q_THD.shape[-1] ** -0.5
    args = world.q_THD, world.pages, world.table, world.packing
    assert_close(paged_attention(*args, mask=mask, scale=scale), reference(*args, mask=mask, scale=scale))


@batches
@heads
@masks
def test_paged_attention_matches_reference(batch: list[tuple[int, int]], H: int, G: int, mask: Mask) -> None:
    assert_same(draw(batch, H, G, 8, torch.float32), mask)


@batches
@pytest.mark.parametrize("D", [60, 64, 128])
def test_paged_attention_matches_reference_at_every_head_width(batch: list[tuple[int, int]], D: int) -> None:
    assert_same(draw(batch, 4, 2, D, torch.float32), Mask.CAUSAL)


@batches
@heads
@masks
def test_paged_attention_matches_reference_in_bf16(batch: list[tuple[int, int]], H: int, G: int, mask: Mask) -> None:
    assert_same(draw(batch, H, G, 64, torch.bfloat16), mask)


@masks
def test_whole_prompts_in_pages_equal_packed_attention(mask: Mask) -> None:
    world = draw(BATCHES["whole prompts"], 4, 2, 8, torch.float32)
    actual = paged_attention(world.q_THD, world.pages, world.table, world.packing, mask=mask, scale=0.3)
    k, v = torch.cat(world.keys), torch.cat(world.values)
    assert_close(actual, packed_attention.reference(world.q_THD, k, v, world.packing, mask=mask, scale=0.3))


def test_queries_may_be_slices_of_a_fused_projection() -> None:
    world = draw(BATCHES["mixed"], 4, 4, 8, torch.float32)
    fused = torch.stack([world.q_THD, world.q_THD + 1], 1)
    args = world.pages, world.table, world.packing
    actual = paged_attention(fused[:, 0], *args, mask=Mask.CAUSAL, scale=0.3)
    assert torch.equal(actual, paged_attention(world.q_THD, *args, mask=Mask.CAUSAL, scale=0.3))


def test_a_row_does_not_depend_on_its_company() -> None:
    world = draw(BATCHES["one each"], 4, 2, 8, torch.float32)
    together = paged_attention(world.q_THD, world.pages, world.table, world.packing, mask=Mask.CAUSAL, scale=0.3)
    for n, length in enumerate(world.table.lens):
        own = PageTable(world.table.pages_NP[n : n + 1], world.table.lens_N[n : n + 1], (length,))
        alone = paged_attention(world.q_THD[n : n + 1], world.pages, own, Packing((1,)), mask=Mask.CAUSAL, scale=0.3)
        assert_close(alone, together[n : n + 1])


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [[(1, 4000), (1, 1), (1, 777)], [(512, 512), (1, 90), (100, 1000)]], ids=str)
@heads
@masks
def test_paged_attention_matches_reference_on_gpu(
    batch: list[tuple[int, int]], H: int, G: int, mask: Mask, gpu: str
) -> None:
    assert_same(draw(batch, H, G, 128, torch.bfloat16, gpu), mask)
