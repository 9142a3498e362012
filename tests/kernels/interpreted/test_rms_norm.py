"""RMSNorm's kernels give the reference's outputs and gradients, alone and after a residual sum."""

import pytest
import torch
from torch import Tensor

from closeness import assert_agrees, assert_close
from trefoil_kernels.rms_norm import add_rms_norm, reference, rms_norm

shapes = pytest.mark.parametrize("shape", [(1, 8), (63, 33), (5, 3, 64), (300, 111)], ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)


def draw(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    sizes = (shape, shape, shape[-1:])
    return [torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in sizes]


@shapes
@dtypes
def test_rms_norm_matches_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, _, weight_M = draw(shape, dtype)
    assert_agrees(lambda *of: rms_norm(*of, 1e-6), lambda *of: reference(*of, 1e-6), [x, weight_M])


@shapes
@dtypes
def test_add_rms_norm_matches_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    def plain(x: Tensor, residual: Tensor, weight_M: Tensor) -> tuple[Tensor, Tensor]:
        summed = (x + residual).to(dtype).to(x)  # the sum is rounded before it is normed
        return reference(summed, weight_M, 1e-6), summed

    assert_agrees(lambda *of: add_rms_norm(*of, 1e-6), plain, draw(shape, dtype))


def test_the_sum_alone_carries_gradients() -> None:
    x, residual, weight_M = draw((5, 16), torch.float32)
    _, summed = add_rms_norm(x, residual, weight_M, 1e-6)
    grads = torch.autograd.grad(summed.sum(), [x, residual])
    assert all(torch.equal(grad, torch.ones_like(grad)) for grad in grads)


def test_rows_may_be_slices_of_wider_ones() -> None:
    wide, weight_M = torch.randn(7, 3, 16), torch.randn(16)
    assert_close(rms_norm(wide[:, 1], weight_M, 1e-6), reference(wide[:, 1], weight_M, 1e-6))


def test_numbers_of_a_row_may_lie_apart() -> None:
    x, residual, weight_M = torch.randn(16, 7).T, torch.randn(16, 7).T, torch.randn(16)
    assert_agrees(
        lambda *of: add_rms_norm(*of, 1e-6),
        lambda x, y, weight_M: (reference(x + y, weight_M, 1e-6), x + y),
        [x.requires_grad_(), residual.requires_grad_(), weight_M.requires_grad_()],
    )
    assert_close(rms_norm(x, weight_M, 1e-6), reference(x, weight_M, 1e-6))


def test_no_rows_give_no_rows_and_no_gradient() -> None:
    x, weight_M = torch.randn(0, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    rms_norm(x, weight_M, 1e-6).sum().backward()
    assert weight_M.grad is not None
    assert torch.equal(weight_M.grad, torch.zeros(8))


def test_float16_squares_do_not_overflow() -> None:
    x = torch.full((1, 8), 60000.0, dtype=torch.float16)
    assert_close(rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-6), torch.ones(1, 8, dtype=torch.float16))
