"""How near two tensors must be: the largest error against the largest wanted number, one bound per dtype everywhere."""

import torch
from torch import Tensor

BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def assert_close(actual: Tensor, wanted: Tensor, dtype: torch.dtype | None = None) -> None:
    """Same shape and dtype, no NaN, and within the bound of `dtype` (the tensor's own unless told)."""
    assert actual.shape == wanted.shape
    assert actual.dtype == wanted.dtype
    if wanted.numel() == 0:
        return
    error = (actual.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=1e-3)
    assert error <= BOUNDS[dtype or actual.dtype], f"relative error {error:.2e}"  # NaN fails too
