"""Products in fewer bits equal those of the restored weight, which is near the weight itself."""

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from trefoil_kernels.cpu import library
from trefoil_kernels.low_bit import (
    NIBBLE_GROUP,
    ROW_GROUP,
    Int4Weight,
    Int8Weight,
    PlainInt8Weight,
    has_int4,
    int8_linear,
    pack_int4,
    pack_int8,
    reference,
    rounded,
    to_int4,
    to_int8,
)

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
shapes = pytest.mark.parametrize("shape", [(1, 5, 33), (2, 111, 64), (3, 7, 1030), (63, 97, 31)], ids=str)
needs_bytes = pytest.mark.skipif(not has_int4(), reason="needs AVX-512 VNNI")


def draw(T: int, F: int, M: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T * F + M)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in ((T, M), (F, M), (F,)))


def exact(x_TM: Tensor, weight: Int8Weight | Int4Weight, bias_F: Tensor) -> Tensor:
    return x_TM.double() @ weight.restored(torch.float64).T + bias_F.double()


@dtypes
@shapes
def test_the_product_is_that_of_the_restored_weight(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x_TM, weight_FM, bias_F = draw(*shape, dtype)
    weight = to_int8(weight_FM)
    wanted = exact(x_TM, weight, bias_F).to(dtype)
    assert_close(int8_linear(x_TM, weight, bias_F), wanted)
    assert_close(reference(x_TM, weight, bias_F), wanted)


@needs_bytes
@dtypes
@shapes
def test_products_of_bytes_are_those_of_rounded_rows(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x_TM, weight_FM, bias_F = draw(*shape, dtype)
    by_8 = exact(rounded(x_TM, ROW_GROUP), to_int8(weight_FM), bias_F)
    by_4 = exact(rounded(x_TM, NIBBLE_GROUP), to_int4(weight_FM), bias_F)
    assert_close(pack_int8(weight_FM, bias_F).times(x_TM), by_8.to(dtype))
    assert_close(pack_int4(weight_FM, bias_F).times(x_TM), by_4.to(dtype))


@needs_bytes
def test_one_loud_channel_does_not_drown_the_others() -> None:
    x_TM, weight_FM, _ = draw(7, 64, 1024, torch.float32)
    x_TM[:, 5] *= 30  # one loud channel, as real activations have
    wanted = x_TM @ weight_FM.T
    off = (pack_int8(weight_FM).times(x_TM) - wanted).norm() / wanted.norm()
    assert off < 0.03


def test_no_number_moves_by_more_than_half_a_step() -> None:
    weight_FM = torch.randn(19, 64) * torch.logspace(-3, 3, 19)[:, None]
    weight_FM[3] = 0
    by_8, by_4 = to_int8(weight_FM), to_int4(weight_FM)
    off_FM = (by_8.restored(torch.float32) - weight_FM).abs()
    assert (off_FM <= by_8.scales_F[:, None] * 0.50001).all()
    steps_FM = by_4.scales_FG.float().abs().repeat_interleave(NIBBLE_GROUP, 1)
    off_FM = (by_4.restored(torch.float32) - weight_FM).abs()
    assert (off_FM <= steps_FM * 1.01).all()  # what mirrors the farthest number is cut to 7
    assert (off_FM <= steps_FM * 0.51).float().mean() > 0.95
    for weight in (by_8, by_4):
        assert torch.equal(weight.restored(torch.float32)[3], torch.zeros(64))


def test_torch_serves_where_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    x_TM, weight_FM, bias_F = draw(5, 7, 33, torch.float32)
    native = int8_linear(x_TM, to_int8(weight_FM), bias_F)
    monkeypatch.setattr(library, "native", lambda: None)
    weight = pack_int8(weight_FM, bias_F)
    assert isinstance(weight, PlainInt8Weight)
    assert_close(weight.times(x_TM), native)
    assert not has_int4()
