"""The norm of a sum is torch's of the sum, in one go where nobody asks for gradients."""

import pytest
import torch

from closeness import assert_close
from trefoil_kernels.layer_norm import add_layer_norm, layer_norm, reference


@pytest.mark.parametrize("shape", [(1, 8), (63, 33), (5, 3, 64), (0, 8), (70, 768)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_of_rows_and_of_a_sum(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, y = (torch.randn(shape).add(3).to(dtype) for _ in range(2))
    weight_M, bias_M = (torch.randn(shape[-1]).to(dtype) for _ in range(2))
    wanted = reference(x.float() + y.float(), weight_M.float(), bias_M.float(), 1e-5).to(dtype)
    assert_close(add_layer_norm(x, y, weight_M, bias_M, 1e-5), wanted)
    alone = reference(x.float(), weight_M.float(), bias_M.float(), 1e-5).to(dtype)
    assert_close(layer_norm(x, weight_M, bias_M, 1e-5), alone)


def test_the_norm_of_a_sum_has_gradients() -> None:
    x, y, weight_M, bias_M = (torch.randn(shape, requires_grad=True) for shape in ((7, 16), (7, 16), (16,), (16,)))
    assert torch.autograd.gradcheck(
        lambda *args: add_layer_norm(*args, 1e-5),
        [one.double().detach().requires_grad_() for one in (x, y, weight_M, bias_M)],
    )
