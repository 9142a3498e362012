"""Gated activation of a feed-forward: act(gate) * up (Shazeer, arXiv 2002.05202, eq. 6).

Gradients: dgate = dout up act'(gate), dup = dout act(gate). The kernel computes in float32 and rounds once.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from trefoil_kernels.cpu.calls import ACTIVATIONS as NATIVE
from trefoil_kernels.cpu.library import native_for
from trefoil_kernels.launch import launch, runs_triton, with_whole_rows

BLOCK = 1024


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Tensor) -> Tensor:
    """As GPT-2 and ALBERT have it."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": F.relu,
    "tanh": torch.tanh,
}
"""The names that config.json uses."""

KERNEL_NAMES = {"swish": "silu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}
"""What the kernel calls those activations that it does not call by the same name."""


def reference(gate_TF: Tensor, up_TF: Tensor, activation: str) -> Tensor:
    """The formula in torch."""
    return ACTIVATIONS[activation](gate_TF) * up_TF


def gated_act(gate_TF: Tensor, up_TF: Tensor, activation: str) -> Tensor:
    """act(gate) * up, elementwise and differentiable; `activation` is a key of ACTIVATIONS."""
    if runs_triton(gate_TF) and gate_TF.dtype == up_TF.dtype:
        return on_triton(gate_TF, up_TF, activation)
    name = KERNEL_NAMES.get(activation, activation)
    if name in NATIVE and (native := native_for(gate_TF, up_TF)) and _are_rows(gate_TF, up_TF):
        return native.rowwise.gated(gate_TF, up_TF, name)
    return reference(gate_TF, up_TF, activation)


def _are_rows(gate_TF: Tensor, up_TF: Tensor) -> bool:
    """Of one dtype, perhaps slices of wider rows."""
    return gate_TF.dtype == up_TF.dtype and gate_TF.dim() == 2 and gate_TF.stride(1) == up_TF.stride(1) == 1


def on_triton(gate_TF: Tensor, up_TF: Tensor, activation: str) -> Tensor:
    """By the kernels below; both of one dtype."""
    out_TF: Tensor = _GatedAct.apply(gate_TF, up_TF, activation)
    return out_TF


class _GatedAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor, activation: str) -> Tensor:
        rows = [with_whole_rows(x.reshape(-1, x.shape[-1])) for x in (gate_TF, up_TF)]
        out_TF = torch.empty(gate_TF.shape, dtype=gate_TF.dtype, device=gate_TF.device)
        _launch(_forward, rows, [out_TF], activation)
        ctx.save_for_backward(*rows)
        ctx.activation = activation
        return out_TF

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_TF = grads[0].contiguous()
        grad_gate_TF, grad_up_TF = torch.empty_like(grad_TF), torch.empty_like(grad_TF)
        _launch(_backward, list(ctx.saved_tensors), [grad_TF, grad_gate_TF, grad_up_TF], ctx.activation)
        return grad_gate_TF, grad_up_TF, None


def _launch(kernel: Any, rows: list[Tensor], whole: list[Tensor], activation: str) -> None:
    """`rows` may be slices of wider ones; `whole` are contiguous."""
    num_rows, width = rows[0].shape
    launch(
        kernel,
        (num_rows, triton.cdiv(width, BLOCK)),
        *(*rows, *whole, *(x.stride(0) for x in rows), width),
        ACTIVATION=KERNEL_NAMES.get(activation, activation),
        BLOCK=BLOCK,
        num_warps=4,
    )


@triton.jit
def _forward(gate, up, out, gate_stride, up_stride, width, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = column < width
    x = tl.load(gate + row * gate_stride + column, mask=real, other=0.0).to(tl.float32)
    factor = tl.load(up + row * up_stride + column, mask=real, other=0.0).to(tl.float32)
    value, _ = _activated(x, ACTIVATION)
    tl.store(out + row * width + column, (value * factor).to(out.dtype.element_ty), mask=real)


@triton.jit
def _backward(
    gate,
    up,
    grad,
    grad_gate,
    grad_up,
    gate_stride,
    up_stride,
    width,
    ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = column < width
    x = tl.load(gate + row * gate_stride + column, mask=real, other=0.0).to(tl.float32)
    factor = tl.load(up + row * up_stride + column, mask=real, other=0.0).to(tl.float32)
    out = tl.load(grad + row * width + column, mask=real, other=0.0).to(tl.float32)
    value, slope = _activated(x, ACTIVATION)
    tl.store(grad_gate + row * width + column, (out * factor * slope).to(grad_gate.dtype.element_ty), mask=real)
    tl.store(grad_up + row * width + column, (out * value).to(grad_up.dtype.element_ty), mask=real)


@triton.jit
def _activated(x, ACTIVATION: tl.constexpr):
    """The activation and its slope."""
    if ACTIVATION == "silu":
        s = tl.sigmoid(x)
        value, slope = x * s, s * (1.0 + x * (1.0 - s))
    elif ACTIVATION == "quick_gelu":
        s = tl.sigmoid(1.702 * x)
        value, slope = x * s, s * (1.0 + 1.702 * x * (1.0 - s))
    elif ACTIVATION == "gelu":
        below = 0.5 * (1.0 + tl.math.erf(x * 0.7071067811865476))
        value, slope = x * below, below + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
    elif ACTIVATION == "gelu_tanh":
        inner = 1.5957691216057308 * (x + 0.044715 * x * x * x)
        s = tl.sigmoid(inner)  # (1 + tanh(y)) / 2 = sigmoid(2 y)
        value, slope = x * s, s + x * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 0.134145 * x * x)
    elif ACTIVATION == "relu":
        value, slope = tl.maximum(x, 0.0), tl.where(x > 0.0, 1.0, 0.0)
    else:
        tl.static_assert(ACTIVATION == "tanh")
        value = 2.0 * tl.sigmoid(2.0 * x) - 1.0
        slope = 1.0 - value * value
    return value, slope
