"""LayerNorm's kernels give torch's outputs and gradients."""

import pytest
import torch

from closeness import assert_agrees, assert_close
from trefoil_kernels.layer_norm import layer_norm, reference


@pytest.mark.parametrize("shape", [(1, 8), (63, 33), (5, 3, 64), (300, 111)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_layer_norm_matches_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    sizes = (shape, shape[-1:], shape[-1:])
    inputs = [torch.randn(size, generator=generator).to(dtype).requires_grad_() for size in sizes]
    assert_agrees(lambda *of: layer_norm(*of, 1e-5), lambda *of: reference(*of, 1e-5), inputs)


def test_a_large_mean_does_not_drown_the_variance() -> None:
    x, weight_M, bias_M = 1000 + torch.randn(5, 33), torch.randn(33), torch.randn(33)
    wanted = reference(x.double(), weight_M.double(), bias_M.double(), 1e-5).float()
    torch.testing.assert_close(layer_norm(x, weight_M, bias_M, 1e-5), wanted, atol=1e-3, rtol=1e-3)


def test_rows_may_be_slices_of_wider_ones() -> None:
    wide, weight_M, bias_M = torch.randn(7, 3, 16), torch.randn(16), torch.randn(16)
    assert_close(layer_norm(wide[:, 1], weight_M, bias_M, 1e-5), reference(wide[:, 1], weight_M, bias_M, 1e-5))


def test_numbers_of_a_row_may_lie_apart() -> None:
    inputs = [x.requires_grad_() for x in (torch.randn(16, 7).T, torch.randn(16), torch.randn(16))]
    assert_agrees(lambda *of: layer_norm(*of, 1e-5), lambda *of: reference(*of, 1e-5), inputs)
