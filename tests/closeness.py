"""How near two tensors must be: the largest error against the largest wanted number, one bound per dtype everywhere."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Outputs = Tensor | tuple[Tensor, ...]
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def assert_close(actual: Tensor, wanted: Tensor, dtype: torch.dtype | None = None, *, floor: float = 1e-3) -> None:
    """Same shape and dtype, no NaN, and within the bound of `dtype` (the tensor's own unless told).

    `floor`: what the largest wanted number counts for at least.
    """
    assert actual.shape == wanted.shape
    assert actual.dtype == wanted.dtype
    if wanted.numel() == 0:
        return
    error = (actual.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=floor)
    assert error <= BOUNDS[dtype or actual.dtype], f"relative error {error:.2e}"  # NaN fails too


def assert_agrees(op: Callable[..., Outputs], reference: Callable[..., Outputs], inputs: Sequence[Tensor]) -> None:
    """An operation's outputs, and its gradients for a random direction, are those of its reference in float32.

    A gradient that is all but zero is held against a tenth of the largest one.
    """
    wide = [x.detach().float().requires_grad_(x.requires_grad) for x in inputs]
    outs, wanted = ([x] if isinstance(x, Tensor) else list(x) for x in (op(*inputs), reference(*wide)))
    for got, want in zip(outs, wanted, strict=True):
        assert_close(got, want.to(got.dtype))
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(x.shape, generator=generator).to(x) for x in outs]
    grads = torch.autograd.grad(outs, [x for x in inputs if x.requires_grad], directions)
    wide_directions = [x.float() for x in directions]
    wanted_grads = torch.autograd.grad(wanted, [x for x in wide if x.requires_grad], wide_directions)
    largest = max((x.abs().max().item() for x in wanted_grads if x.numel()), default=0.0)
    for got, want in zip(grads, wanted_grads, strict=True):
        assert_close(got, want.to(got.dtype), floor=max(1e-3, largest / 10))
