"""The gated activations' kernels give torch's outputs and gradients for every name that config.json may use."""

import pytest
import torch

from closeness import assert_agrees
from trefoil_kernels.gated_act import ACTIVATIONS, gated_act, reference


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_gated_act_matches_reference(activation: str, dtype: torch.dtype) -> None:
    inputs = [torch.linspace(-9, 9, 5 * 33).view(5, 33).to(dtype), torch.randn(5, 33).to(dtype)]
    inputs = [x.requires_grad_() for x in inputs]
    assert_agrees(lambda *of: gated_act(*of, activation), lambda *of: reference(*of, activation), inputs)


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (2, 3, 1111)], ids=str)
def test_gated_act_takes_halves_of_a_fused_projection(shape: tuple[int, ...]) -> None:
    fused = torch.randn(*shape[:-1], 2 * shape[-1], requires_grad=True)
    kernel, plain = (lambda x, act=act: act(*x.chunk(2, -1), "silu") for act in (gated_act, reference))
    assert_agrees(kernel, plain, [fused])


def test_numbers_of_a_row_may_lie_apart() -> None:
    inputs = [torch.randn(16, 7).T.requires_grad_() for _ in range(2)]
    assert_agrees(lambda *of: gated_act(*of, "silu"), lambda *of: reference(*of, "silu"), inputs)
