"""Kernels that meet 8-bit floats: as a chip of today reads them, and as bytes that are decoded."""

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from trefoil_kernels import float8, grouped_linear
from trefoil_kernels.float8 import Float8, rounded_rows, to_float8
from trefoil_kernels.float8_linear import float8_linear
from trefoil_kernels.grouped_linear import in_order

dtypes = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


@pytest.fixture(params=["read", "decoded"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "decoded":
        monkeypatch.setattr(float8, "has_float8", lambda: False)


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def test_every_code_is_its_number() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    numbers = codes[codes.float().isfinite()]
    weight = Float8(numbers[:, None].contiguous(), torch.ones(len(numbers)))
    (row_F,) = float8_linear(torch.ones(1, 1, dtype=torch.bfloat16), weight)
    assert torch.equal(row_F.float(), numbers.float())


@dtypes
@pytest.mark.parametrize("shape", [(5, 33), (33, 1030), (48, 1024)], ids=str)
def test_one_row(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x_TM, bias_F, weight = draw(1, shape[1], dtype=dtype), draw(shape[0], dtype=dtype), to_float8(draw(*shape))
    wanted = x_TM.double() @ weight.restored(torch.float64).T
    assert_close(float8_linear(x_TM, weight), wanted.to(dtype))
    assert_close(float8_linear(x_TM, weight, bias_F), (wanted + bias_F.double()).to(dtype))


@dtypes
@pytest.mark.parametrize(("rows", "each"), [(1, 3), (33, 2)])
def test_products_with_weights_of_the_rows_choice(rows: int, each: int, dtype: torch.dtype) -> None:
    experts = [to_float8(draw(40 + n, 72)[n:]) for n in range(7)]
    x_RM, choice_P = draw(rows, 72, dtype=dtype), torch.randperm(7)[:each].repeat(rows)
    got_PF = grouped_linear.grouped_linear(
        x_RM,
        torch.stack([own.codes_FM for own in experts]),
        choice_P,
        in_order(choice_P, 7, dtype),
        torch.stack([own.scales_F for own in experts]),
    )
    whole_EFM = torch.stack([own.restored(torch.float64) for own in experts])
    assert_close(got_PF, grouped_linear.reference(x_RM.double(), whole_EFM, choice_P).to(dtype))


@dtypes
def test_rows_are_rounded_as_weights_are(dtype: torch.dtype) -> None:
    x_TM = draw(9, 1200, dtype=dtype)[:, 70:] * torch.logspace(-4, 3, 9)[:, None].to(dtype)
    x_TM[4] = 0
    rounded, wanted = rounded_rows(x_TM), to_float8(x_TM)
    assert torch.equal(rounded.scales_F, wanted.scales_F)
    assert torch.equal(rounded.codes_FM.float(), wanted.codes_FM.float())
