"""Packed weights give what the plain ones give, at every shape, in any company, by the native library or by oneDNN."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from closeness import assert_close
from trefoil_kernels import packed_linear
from trefoil_kernels.cpu import library
from trefoil_kernels.packed_linear import NativeWeight, OneDnnWeight, activated, pack, products

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
SHAPES = [
    (1, 1, 1),
    (1, 63, 33),
    (14, 2048, 3),
    (2, 7, 64),
    (5, 1, 1030),
    (12, 32, 96),
    (13, 100, 96),
    (63, 97, 111),
    (400, 130, 32),
]


def draw(T: int, F: int, M: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T * F + M)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in ((T, M), (F, M), (F,)))


def exact(x_TM: Tensor, weight_FM: Tensor, bias_F: Tensor) -> Tensor:
    return (x_TM.double() @ weight_FM.double().T + bias_F.double()).to(x_TM.dtype)


def packed(weight_FM: Tensor, bias_F: Tensor) -> NativeWeight:
    weight = pack(weight_FM, bias_F)
    if weight is None:
        pytest.skip("this processor multiplies no bfloat16")
    assert isinstance(weight, NativeWeight)
    return weight


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_match_exact_arithmetic(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x_TM, weight_FM, bias_F = draw(*shape, dtype)
    assert_close(packed(weight_FM, bias_F).times(x_TM), exact(x_TM, weight_FM, bias_F))


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activate", [F.gelu, F.relu])
def test_an_activation_comes_with_the_product(
    activate: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    x_TM, weight_FM, bias_F = draw(*shape, dtype)
    wanted = activate(x_TM.double() @ weight_FM.double().T + bias_F.double()).to(dtype)
    assert_close(activated(x_TM, packed(weight_FM, bias_F), activate), wanted)


@dtypes
def test_rows_may_be_slices_and_nothing_beyond_them_is_read(dtype: torch.dtype) -> None:
    x_TM, weight_FM, bias_F = draw(3, 19, 37, dtype)
    wide = torch.full((3, 50), torch.nan, dtype=dtype)
    wide[:, :37] = x_TM
    weight = packed(weight_FM, bias_F)
    assert torch.equal(weight.times(wide[:, :37]), weight.times(x_TM))
    assert weight.times(x_TM[:0]).shape == (0, 19)


@dtypes
def test_a_row_is_bit_for_bit_the_same_in_any_company(dtype: torch.dtype) -> None:
    x_TM, weight_FM, bias_F = draw(29, 70, 96, dtype)
    weight = packed(weight_FM, bias_F)
    together = weight.times(x_TM)
    assert all(torch.equal(weight.times(x_TM[row : row + 1]), together[row : row + 1]) for row in range(29))


@dtypes
def test_several_weights_in_one_call_are_each_their_own(dtype: torch.dtype) -> None:
    x_TM, weight_FM, bias_F = draw(5, 300, 64, dtype)
    parts = [packed(weight_FM[own], bias_F[own]) for own in (slice(0, 1), slice(1, 90), slice(90, 300))]
    assert torch.equal(torch.cat(products(x_TM, parts), 1), packed(weight_FM, bias_F).times(x_TM))


@pytest.mark.parametrize("rows", [1, 5])
@dtypes
def test_onednn_serves_where_the_library_is_missing(
    rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "native", lambda: None)
    monkeypatch.setattr(packed_linear, "has_bf16_products", lambda: True)
    x_TM, weight_FM, bias_F = draw(rows, 19, 37, dtype)
    weight = pack(weight_FM, bias_F)
    assert isinstance(weight, OneDnnWeight)
    assert_close(weight.times(x_TM), exact(x_TM, weight_FM, bias_F))
    assert_close(products(x_TM, [weight, weight])[1], exact(x_TM, weight_FM, bias_F))


def test_what_nobody_lays_out_stays_as_it_was() -> None:
    assert pack(torch.randn(3, 5).half()) is None
