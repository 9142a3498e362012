"""The page writer's kernel fills its slots and no other, bit for bit."""

import pytest
import torch

from trefoil_kernels.page_write import new_pages, page_write


@pytest.mark.parametrize(("G", "D"), [(2, 8), (1, 60), (3, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_page_write_fills_its_slots_only(G: int, D: int, dtype: torch.dtype) -> None:
    pages = new_pages(7, 4, G, D, dtype=dtype, device=torch.device("cpu"))
    slots_T = torch.randperm(28, generator=torch.Generator().manual_seed(G))[:11]
    fused_T2GD = torch.randn(11, 2, G, D).to(dtype)
    page_write(pages, fused_T2GD[:, 0], fused_T2GD[:, 1], slots_T)
    for x_PSGD, rows_TGD in zip((pages.k_PSGD, pages.v_PSGD), fused_T2GD.unbind(1), strict=True):
        assert torch.equal(x_PSGD.flatten(0, 1)[slots_T], rows_TGD)
        assert x_PSGD.isnan().flatten(2).all(-1).sum() == 28 - 11


def test_page_write_of_no_rows_writes_nothing() -> None:
    pages = new_pages(2, 4, 2, 8, dtype=torch.float32, device=torch.device("cpu"))
    page_write(pages, torch.zeros(0, 2, 8), torch.zeros(0, 2, 8), torch.zeros(0, dtype=torch.int64))
    assert pages.k_PSGD.isnan().all()
