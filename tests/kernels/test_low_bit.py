"""8-bit products equal those of the restored weight, which is near the weight itself."""

import pytest
import torch

from closeness import assert_close
from trefoil_kernels.cpu import library
from trefoil_kernels.low_bit import int8_linear, reference, to_int8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 5, 33), (2, 111, 64), (3, 7, 1030), (63, 97, 31)], ids=str)
def test_the_product_is_that_of_the_restored_weight(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    T, F, M = shape
    x_TM, weight_FM, bias_F = (torch.randn(size).to(dtype) for size in ((T, M), (F, M), (F,)))
    weight = to_int8(weight_FM)
    wanted = x_TM.double() @ weight.restored(torch.float64).T + bias_F.double()
    assert_close(int8_linear(x_TM, weight, bias_F), wanted.to(dtype))
    assert_close(reference(x_TM, weight, bias_F), wanted.to(dtype))


def test_no_number_moves_by_more_than_half_a_step() -> None:
    weight_FM = torch.randn(19, 64) * torch.logspace(-6, 3, 19)[:, None]
    weight_FM[3] = 0
    weight = to_int8(weight_FM)
    off_FM = (weight.restored(torch.float32) - weight_FM).abs()
    assert (off_FM <= weight.scales_F[:, None] * 0.50001).all()
    assert torch.equal(weight.restored(torch.float32)[3], torch.zeros(64))


def test_torch_serves_where_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    x_TM, weight = torch.randn(5, 33), to_int8(torch.randn(7, 33))
    native = int8_linear(x_TM, weight)
    monkeypatch.setattr(library, "native", lambda: None)
    assert_close(int8_linear(x_TM, weight), native)
