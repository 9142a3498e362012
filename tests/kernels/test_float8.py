"""Numbers of 8 bits, and products with weights of them, natively and in torch."""

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from trefoil_kernels.cpu import library
from trefoil_kernels.float8 import Float8, to_float8
from trefoil_kernels.float8_linear import Float8Weight, float8_linear, joined, reference, together
from trefoil_kernels.low_bit import laid_out, pack_float8
from trefoil_kernels.packed_linear import products

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
shapes = pytest.mark.parametrize(
    "shape", [(1, 5, 33), (2, 111, 64), (3, 7, 1030), (40, 70, 130), (63, 97, 31), (130, 65, 67)], ids=str
)


def draw(T: int, F: int, M: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T * F + M)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in ((T, M), (F, M), (F,)))


@dtypes
@pytest.mark.parametrize("rows", [1, 30, 70])
@pytest.mark.parametrize("column", [0, 1, 4])
def test_every_code_is_its_number(column: int, rows: int, dtype: torch.dtype) -> None:
    codes_FM = torch.zeros(256, 5, dtype=torch.uint8)
    codes_FM[:, column] = torch.arange(256)
    weight = Float8(codes_FM.view(torch.float8_e4m3fn), torch.ones(256))
    x_TM = torch.arange(rows)[:, None] % 4 * torch.ones(5, dtype=dtype)
    wanted_TF = x_TM[:, column, None] * weight.codes_FM[:, column].to(dtype)  # two of them are NaN
    for way in (Float8Weight(weight, None), laid_out(weight)):
        assert torch.equal(way.times(x_TM).nan_to_num(1e4), wanted_TF.nan_to_num(1e4))


@dtypes
@shapes
def test_the_product_is_that_of_the_restored_weight(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x_TM, weight_FM, bias_F = draw(*shape, dtype)
    weight = to_float8(weight_FM)
    wanted = (x_TM.double() @ weight.restored(torch.float64).T + bias_F.double()).to(dtype)
    assert_close(float8_linear(x_TM, weight, bias_F), wanted)
    assert_close(reference(x_TM, weight, bias_F), wanted)
    assert_close(pack_float8(weight_FM, bias_F).times(x_TM), wanted)


def test_no_number_moves_by_more_than_its_last_bit_allows() -> None:
    weight_FM = torch.randn(19, 640) * torch.logspace(-3, 3, 19)[:, None]
    weight_FM[3] = 0
    weight = to_float8(weight_FM)
    off_FM, smallest_F1 = (weight.restored(torch.float32) - weight_FM).abs(), weight.scales_F[:, None] * 2**-10
    assert (off_FM <= (weight_FM.abs() * 2**-4).maximum(smallest_F1) * 1.00001).all()
    assert torch.equal(weight.restored(torch.float32)[3], torch.zeros(640))


def test_parts_of_a_whole_meet_their_rows_in_one_product() -> None:
    x_TM, weight_FM, bias_F = draw(3, 60, 40, torch.float32)
    apart = [
        Float8Weight(to_float8(part_FM), bias)
        for part_FM, bias in zip(weight_FM.split(20), bias_F.split(20), strict=True)
    ]
    whole, parts = together(apart)
    assert joined(apart) is None
    found = joined(parts)
    assert found is not None
    assert found.outs == 60
    for own, alone in zip(products(x_TM, parts), apart, strict=True):
        assert_close(own, alone.times(x_TM))
    assert_close(whole.times(x_TM), torch.cat([alone.times(x_TM) for alone in apart], 1))


@dtypes
def test_torch_serves_where_the_library_is_missing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x_TM, weight_FM, bias_F = draw(5, 37, 133, dtype)
    native = pack_float8(weight_FM, bias_F).times(x_TM)
    monkeypatch.setattr(library, "native", lambda: None)
    weight = pack_float8(weight_FM, bias_F)
    assert isinstance(weight, Float8Weight)
    assert_close(weight.times(x_TM), native)
