"""Kernels write and read pages of another dtype as torch does."""

import pytest
import torch

from closeness import assert_close
from paged_world import BATCHES, draw
from trefoil_kernels.masks import Mask
from trefoil_kernels.page_write import kept, new_pages, page_write, rotary_page_write
from trefoil_kernels.paged_attention import on_triton, reference
from trefoil_kernels.rotary import Turn
from trefoil_kernels.rotary import reference as turned

pairs = pytest.mark.parametrize(
    ("dtype", "page_dtype"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float8_e4m3fn),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.float8_e4m3fn),
        (torch.float16, torch.float8_e5m2),
    ],
    ids=str,
)


@pairs
def test_rows_are_rounded_on_their_way(dtype: torch.dtype, page_dtype: torch.dtype) -> None:
    pages, slots_T = new_pages(7, 4, 2, 20, dtype=page_dtype, device=torch.device("cpu")), torch.tensor([19, 0, 6])
    q_THD, k_TGD, v_TGD = (200 * torch.randn(3, 8, 20)).to(dtype).split((4, 2, 2), 1)
    page_write(pages, k_TGD, v_TGD, slots_T)
    for x_PSGD, rows_TGD in ((pages.k_PSGD, k_TGD), (pages.v_PSGD, v_TGD)):
        assert torch.equal(x_PSGD.float().flatten(0, 1)[slots_T], kept(rows_TGD, page_dtype).float())
        assert x_PSGD.float().isnan().flatten(2).all(-1).sum() == 28 - 3
    turn = Turn(torch.randn(3, 4), torch.randn(3, 4), 4)
    rotary_page_write(pages, q_THD, k_TGD, v_TGD, turn, slots_T)
    for x_PSGD, rows_TGD in ((pages.k_PSGD, turned(k_TGD, turn)), (pages.v_PSGD, v_TGD)):
        assert torch.equal(x_PSGD.float().flatten(0, 1)[slots_T], kept(rows_TGD, page_dtype).float())


@pairs
def test_attention_is_that_of_the_rounded_cache(dtype: torch.dtype, page_dtype: torch.dtype) -> None:
    world = draw([*BATCHES["mixed"], (1, 600)], 4, 2, 24, dtype, page_dtype=page_dtype)
    args = world.q_THD, world.pages, world.table, world.packing
    assert_close(on_triton(*args, mask=Mask.CAUSAL, scale=0.2), reference(*args, mask=Mask.CAUSAL, scale=0.2))
