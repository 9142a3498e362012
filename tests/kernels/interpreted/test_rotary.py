"""The rotary kernels turn heads as the reference does, in part of the head too, back for gradients, and into pages."""

import pytest
import torch

from closeness import assert_agrees, assert_close
from trefoil_kernels.page_write import new_pages, rotary_page_write
from trefoil_kernels.rotary import Turn, reference, rotary


def turn_of(T: int, R: int, run: int) -> Turn:
    angles_TR = torch.arange(3, 3 + T)[:, None] * 10000.0 ** -(torch.arange(R // 2) / (R // 2))
    return Turn(angles_TR.cos(), angles_TR.sin(), run)


@pytest.mark.parametrize(("D", "R"), [(8, 8), (60, 60), (80, 32), (128, 128)])
@pytest.mark.parametrize("runs", [1, 2, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rotary_matches_reference(D: int, R: int, runs: int | None, dtype: torch.dtype) -> None:
    turn = turn_of(5, R, R // 2 // runs if runs else 1)
    x_THD = torch.randn(5, 3, D, generator=torch.Generator().manual_seed(D)).to(dtype).requires_grad_()
    assert_agrees(lambda x: rotary(x, turn), lambda x: reference(x, turn), [x_THD])


@pytest.mark.parametrize(("D", "R", "run"), [(8, 8, 4), (80, 32, 16), (80, 32, 1), (80, 32, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_turned_keys_and_values_as_they_are_go_to_their_slots(D: int, R: int, run: int, dtype: torch.dtype) -> None:
    pages = new_pages(7, 4, 2, D, dtype=dtype, device=torch.device("cpu"))
    fused_T8D, slots_T = torch.randn(5, 8, D).to(dtype), torch.tensor([19, 0, 6, 5, 27])
    q_THD, k_TGD, v_TGD = fused_T8D[:, :4], fused_T8D[:, 4:6], fused_T8D[:, 6:]
    turn = turn_of(5, R, run)
    turned_THD = rotary_page_write(pages, q_THD, k_TGD, v_TGD, turn, slots_T)
    assert_close(turned_THD, reference(q_THD, turn))
    assert_close(pages.k_PSGD.flatten(0, 1)[slots_T], reference(k_TGD, turn))
    assert torch.equal(pages.v_PSGD.flatten(0, 1)[slots_T], v_TGD)
    for x_PSGD in (pages.k_PSGD, pages.v_PSGD):
        assert x_PSGD.isnan().flatten(2).all(-1).sum() == 28 - 5
