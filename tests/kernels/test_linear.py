"""The product matches float64 arithmetic at every shape, and leaves alone what torch must do."""

import pytest
import torch
from torch import Tensor

from closeness import assert_close
from trefoil_kernels import linear as door
from trefoil_kernels.linear import linear, linears

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
SHAPES = [(1, 1, 1), (1, 63, 33), (2, 7, 64), (3, 111, 5), (5, 1, 1030), (16, 100, 96), (63, 97, 111), (200, 130, 31)]


def draw(T: int, F: int, M: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T * F + M)
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in ((T, M), (F, M), (F,)))


def exact(x_TM: Tensor, weight_FM: Tensor, bias_F: Tensor | None = None) -> Tensor:
    out_TF = x_TM.double() @ weight_FM.double().T
    return (out_TF if bias_F is None else out_TF + bias_F.double()).to(x_TM.dtype)


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_matches_exact_arithmetic(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x_TM, weight_FM, bias_F = draw(*shape, dtype)
    assert_close(linear(x_TM, weight_FM, bias_F), exact(x_TM, weight_FM, bias_F))
    assert_close(linear(x_TM, weight_FM), exact(x_TM, weight_FM))


@dtypes
def test_rows_may_be_slices_and_nothing_beyond_them_is_read(dtype: torch.dtype) -> None:
    x_TM, weight_FM, bias_F = draw(3, 19, 37, dtype)
    wide = torch.full((3, 50), torch.nan, dtype=dtype)
    wide[:, :37] = x_TM
    tall = torch.full((21, 37), torch.nan, dtype=dtype)
    tall[1:20] = weight_FM
    assert torch.equal(linear(wide[:, :37], tall[1:20], bias_F), linear(x_TM, weight_FM, bias_F))


@dtypes
def test_no_rows_give_no_rows(dtype: torch.dtype) -> None:
    x_TM, weight_FM, bias_F = draw(3, 19, 37, dtype)
    assert linear(x_TM[:0], weight_FM, bias_F).shape == (0, 19)


def test_a_row_does_not_depend_on_its_company() -> None:
    x_TM, weight_FM, _ = draw(7, 19, 1100, torch.float32)
    for row in range(7):
        assert_close(linear(x_TM[row : row + 1], weight_FM), linear(x_TM, weight_FM)[row : row + 1])


@pytest.mark.parametrize("asking", range(3))
def test_gradients_are_those_of_torch(asking: int) -> None:
    given = draw(3, 19, 37, torch.float32)
    given[asking].requires_grad_()
    direction = torch.randn(3, 19)
    (actual,) = torch.autograd.grad(linear(*given), given[asking], direction)
    (wanted,) = torch.autograd.grad(torch.nn.functional.linear(*given), given[asking], direction)
    assert torch.equal(actual, wanted)


@dtypes
def test_weights_that_follow_each_other_make_one_product(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x_TM, whole_FM, whole_F = draw(3, 24, 40, dtype)
    weights, biases = whole_FM.split([16, 4, 4]), whole_F.split([16, 4, 4])
    wanted = [linear(x_TM, *pair) for pair in zip(weights, biases, strict=True)]
    asked: list[int] = []
    monkeypatch.setattr(door, "linear", lambda *of: (asked.append(len(of[1])), linear(*of))[1])
    together = linears(x_TM, weights, biases)
    apart = linears(x_TM, [weight.clone() for weight in weights], biases)
    backwards = linears(x_TM, weights[::-1], biases[::-1])
    assert asked == [24, 16, 4, 4, 4, 4, 16]
    for results in (together, apart, backwards[::-1]):
        for got, want in zip(results, wanted, strict=True):
            assert_close(got, want)
