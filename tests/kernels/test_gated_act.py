"""Every activation that a config may name computes what transformers computes under that name."""

import pytest
import torch
from transformers.activations import ACT2FN

from closeness import assert_close
from trefoil_kernels.gated_act import ACTIVATIONS, gated_act, reference
from trefoil_kernels.scaled import scaled

names = pytest.mark.parametrize("name", ACTIVATIONS)


@names
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_activation_matches_transformers(name: str, dtype: torch.dtype) -> None:
    x = torch.linspace(-6, 6, 501)
    assert_close(ACTIVATIONS[name](x.to(dtype)), ACT2FN[name](x.to(dtype).float()).to(dtype))


@names
def test_activation_matches_transformers_where_tanh_and_erf_differ(name: str) -> None:
    x = torch.linspace(-3, 3, 501)
    assert (ACTIVATIONS[name](x) - ACT2FN[name](x)).abs().max() < 2e-6  # the two gelus differ by 5e-4


@names
def test_gated_act_multiplies_and_carries_gradients(name: str) -> None:
    gate_TF, up_TF = torch.randn(63, 5, requires_grad=True), torch.randn(63, 5, requires_grad=True)
    actual, wanted = gated_act(gate_TF, up_TF, name), ACT2FN[name](gate_TF) * up_TF
    assert_close(actual, wanted)
    direction = torch.randn(63, 5)
    grads = [torch.autograd.grad(out, [gate_TF, up_TF], direction) for out in (actual, wanted)]
    for got, want in zip(*grads, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [5, 4099, 8192])
@names
def test_gate_and_up_may_be_halves_of_one_projection(name: str, width: int, dtype: torch.dtype) -> None:
    gate_TF, up_TF = torch.randn(7, 2 * width).to(dtype).chunk(2, -1)
    assert_close(gated_act(gate_TF, up_TF, name), reference(gate_TF, up_TF, name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [1, 37, 512])
def test_a_scaled_tensor_is_what_torch_makes_of_it(width: int, dtype: torch.dtype) -> None:
    x_TM = torch.randn(3, width).to(dtype)
    assert scaled(x_TM, 0.0441).equal(x_TM * 0.0441)
    assert scaled(x_TM, 1.0) is x_TM


@pytest.mark.gpu
@names
def test_activation_matches_transformers_on_gpu(name: str, gpu: str) -> None:
    x = torch.linspace(-6, 6, 50_001, device=gpu).bfloat16()
    assert_close(ACTIVATIONS[name](x), ACT2FN[name](x.float()).bfloat16())
