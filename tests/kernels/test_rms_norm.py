"""RMSNorm matches transformers in every dtype, where the order of cast and weight shows."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from closeness import assert_close
from trefoil_kernels.rms_norm import add_rms_norm, reference, rms_norm


def published(weight_M: torch.Tensor, eps: float) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(len(weight_M), eps)
    norm.weight = torch.nn.Parameter(weight_M)
    return norm


@pytest.mark.parametrize("shape", [(1, 8), (63, 33), (5, 3, 64), (0, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_the_reference_equals_transformers_and_rms_norm_the_reference(
    shape: tuple[int, ...], dtype: torch.dtype, eps: float
) -> None:
    x, weight_M = (0.1 * torch.randn(shape)).to(dtype), torch.randn(shape[-1]).to(dtype)
    assert torch.equal(reference(x, weight_M, eps), published(weight_M, eps)(x))
    assert_close(rms_norm(x, weight_M, eps), reference(x, weight_M, eps))


def test_rms_norm_gradients_match_transformers() -> None:
    x, weight_M = torch.randn(7, 16, requires_grad=True), torch.randn(16, requires_grad=True)
    norm, direction = published(weight_M.detach(), 1e-6), torch.randn(7, 16)
    wanted = torch.autograd.grad(norm(x), [x, norm.weight], direction)
    for got, want in zip(
        torch.autograd.grad(rms_norm(x, weight_M, 1e-6), [x, weight_M], direction), wanted, strict=True
    ):
        assert_close(got, want)


def test_float16_squares_do_not_overflow() -> None:
    x = torch.full((1, 8), 60000.0, dtype=torch.float16)
    assert_close(rms_norm(x, torch.ones(8, dtype=torch.float16), 1e-6), torch.ones(1, 8, dtype=torch.float16))


def test_add_rms_norm_gives_the_sum_and_its_norm() -> None:
    x, residual, weight_M = torch.randn(5, 8), torch.randn(5, 8), torch.randn(8)
    normed, summed = add_rms_norm(x, residual, weight_M, 1e-6)
    assert torch.equal(summed, x + residual)
    assert torch.equal(normed, rms_norm(x + residual, weight_M, 1e-6))


@pytest.mark.gpu
def test_rms_norm_matches_transformers_on_gpu(gpu: str) -> None:
    x, weight_M = torch.randn(777, 4096, device=gpu).bfloat16(), torch.randn(4096, device=gpu).bfloat16()
    assert_close(rms_norm(x, weight_M, 1e-5), published(weight_M, 1e-5)(x))
