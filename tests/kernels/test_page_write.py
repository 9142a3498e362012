"""Rows land in their slots and nowhere else; whole pages copy."""

import pytest
import torch

from closeness import assert_close
from trefoil_kernels.page_write import Pages, copy_pages, new_pages, page_write, rotary_page_write
from trefoil_kernels.rotary import Turn, reference


def draw(dtype: torch.dtype = torch.float32, device: str = "cpu") -> Pages:
    return new_pages(5, 4, 2, 8, dtype=dtype, device=torch.device(device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_page_write_fills_its_slots_only(dtype: torch.dtype) -> None:
    pages, slots_T = draw(dtype), torch.tensor([19, 0, 6, 5])
    k_TGD, v_TGD = torch.randn(2, 4, 2, 8).to(dtype)
    page_write(pages, k_TGD, v_TGD, slots_T)
    for x_PSGD, rows_TGD in ((pages.k_PSGD, k_TGD), (pages.v_PSGD, v_TGD)):
        assert torch.equal(x_PSGD[slots_T // 4, slots_T % 4], rows_TGD)
        assert x_PSGD.isnan().flatten(2).all(-1).sum() == 5 * 4 - 4


def test_page_write_takes_slices_of_a_fused_projection() -> None:
    pages, fused_T2GD = draw(), torch.randn(3, 2, 2, 8)
    page_write(pages, fused_T2GD[:, 0], fused_T2GD[:, 1], torch.tensor([1, 2, 3]))
    assert torch.equal(pages.k_PSGD[0, 1:], fused_T2GD[:, 0])
    assert torch.equal(pages.v_PSGD[0, 1:], fused_T2GD[:, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("half", "run"), [(3, 3), (4, 4), (4, 2), (3, 1)])
def test_turning_on_the_way_is_turning_and_writing(half: int, run: int, dtype: torch.dtype) -> None:
    pages, wanted, slots_T = draw(dtype), draw(dtype), torch.tensor([19, 0, 6])
    q_THD, k_TGD, v_TGD = (torch.randn(3, heads, 8).to(dtype) for heads in (4, 2, 2))
    turn = Turn(torch.randn(3, half), torch.randn(3, half), run)
    turned_THD = rotary_page_write(pages, q_THD, k_TGD, v_TGD, turn, slots_T)
    assert_close(turned_THD, reference(q_THD, turn))
    page_write(wanted, reference(k_TGD, turn), v_TGD, slots_T)
    for own, right in ((pages.k_PSGD, wanted.k_PSGD), (pages.v_PSGD, wanted.v_PSGD)):
        assert torch.equal(own.isnan(), right.isnan())
        assert_close(own.nan_to_num(), right.nan_to_num())


def test_page_write_of_no_rows_writes_nothing() -> None:
    pages = draw()
    page_write(pages, torch.zeros(0, 2, 8), torch.zeros(0, 2, 8), torch.zeros(0, dtype=torch.int64))
    assert pages.k_PSGD.isnan().all()


def test_copy_pages_copies_keys_and_values_whole() -> None:
    pages = Pages(torch.randn(5, 4, 2, 8), torch.randn(5, 4, 2, 8))
    before = Pages(pages.k_PSGD.clone(), pages.v_PSGD.clone())
    copy_pages(pages, torch.tensor([0, 0, 3]), torch.tensor([4, 1, 2]))
    for now, old in ((pages.k_PSGD, before.k_PSGD), (pages.v_PSGD, before.v_PSGD)):
        assert torch.equal(now, old[[0, 0, 3, 3, 0]])


@pytest.mark.gpu
def test_page_write_fills_its_slots_only_on_gpu(gpu: str) -> None:
    pages, slots_T = draw(torch.bfloat16, gpu), torch.tensor([19, 0, 6, 5], device=gpu)
    k_TGD, v_TGD = torch.randn(2, 4, 2, 8, device=gpu, dtype=torch.bfloat16)
    page_write(pages, k_TGD, v_TGD, slots_T)
    assert torch.equal(pages.k_PSGD.flatten(0, 1)[slots_T], k_TGD)
    assert torch.equal(pages.v_PSGD.flatten(0, 1)[slots_T], v_TGD)
