"""What becomes of each row by itself, by the native library: lookup, sum, norm, turn, gate, the best of its logits."""

import torch
from torch import Tensor

from trefoil_kernels.cpu.calls import ACTIVATIONS, KINDS, Calls, addresses
from trefoil_kernels.cpu.structures import (
    Angles,
    Argmax,
    Gating,
    LayerNorm,
    Likeliest,
    Lookup,
    RmsNorm,
    Rotary,
    Scaling,
    Sum,
)


class Rowwise:
    """Arguments must be as `library.native_for` and each method say."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def rms_norm(self, x_TM: Tensor, weight_M: Tensor, eps: float) -> Tensor:
        """Of rows that are contiguous each, at one stride."""
        rows, width = x_TM.shape
        out_TM = self._calls.empty((rows, width), x_TM.dtype)
        tensors = addresses(x_TM, None, weight_M, None, out_TM)
        self._calls.ask(RmsNorm(*tensors, rows, x_TM.stride(0), width, eps, KINDS[x_TM.dtype]))
        return out_TM

    def add_rms_norm(self, x_TM: Tensor, other_TM: Tensor, weight_M: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The norm of their sum and the sum; both contiguous."""
        rows, width = x_TM.shape
        out_TM, sum_TM = (self._calls.empty((rows, width), x_TM.dtype) for _ in range(2))
        tensors = addresses(x_TM, other_TM, weight_M, sum_TM, out_TM)
        self._calls.ask(RmsNorm(*tensors, rows, width, width, eps, KINDS[x_TM.dtype]))
        return out_TM, sum_TM

    def layer_norm(
        self, x_TM: Tensor, weight_M: Tensor, bias_M: Tensor, eps: float, y_TM: Tensor | None = None
    ) -> Tensor:
        """The norm of x or of x + y, all of one dtype and contiguous; y may be one row for all of x (a stride of 0)."""
        out_TM = self._calls.empty(x_TM.shape, x_TM.dtype)
        tensors, y_stride = addresses(x_TM, y_TM, weight_M, bias_M, out_TM), 0 if y_TM is None else y_TM.stride(0)
        self._calls.ask(LayerNorm(*tensors, *x_TM.shape, y_stride, eps, KINDS[x_TM.dtype]))
        return out_TM

    def add(self, x_TM: Tensor, y_TM: Tensor) -> Tensor:
        """x + y, both contiguous and of one dtype and shape."""
        out_TM = self._calls.empty(x_TM.shape, x_TM.dtype)
        self._calls.ask(Sum(*addresses(x_TM, y_TM, out_TM), x_TM.numel(), KINDS[x_TM.dtype]))
        return out_TM

    def angles(self, positions_T: Tensor, frequencies_R: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        """Cosines and sines of each position times each frequency, times a factor; float32 [T, R]."""
        shape = len(positions_T), len(frequencies_R)
        cos_TR, sin_TR = (self._calls.empty(shape, torch.float32) for _ in range(2))
        tensors = addresses(positions_T, frequencies_R, cos_TR, sin_TR)
        self._calls.ask(Angles(*tensors, *shape, factor))
        return cos_TR, sin_TR

    def rotary(self, x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor, run: int) -> Tensor:
        """Heads lie side by side in each row; the tables are float32 and contiguous."""
        rows, heads, width = x_THD.shape
        out_THD = self._calls.empty((rows, heads, width), x_THD.dtype)
        sizes = rows, x_THD.stride(0), heads, width, cos_TR.shape[1], run
        self._calls.ask(Rotary(*addresses(x_THD, out_THD, cos_TR, sin_TR), *sizes, KINDS[x_THD.dtype]))
        return out_THD

    def gated(self, gate_TF: Tensor, up_TF: Tensor, activation: str) -> Tensor:
        """act(gate) * up of rows that may be slices of wider ones; `activation` is one of ACTIVATIONS."""
        out_TF = self._calls.empty(gate_TF.shape, gate_TF.dtype)
        sizes = *gate_TF.shape, gate_TF.stride(0), up_TF.stride(0)
        self._calls.ask(
            Gating(*addresses(gate_TF, up_TF, out_TF), *sizes, KINDS[gate_TF.dtype], ACTIVATIONS[activation])
        )
        return out_TF

    def scaled(self, x_TM: Tensor, factor: float) -> Tensor:
        """factor * x, contiguous."""
        out_TM = self._calls.empty(x_TM.shape, x_TM.dtype)
        self._calls.ask(Scaling(*addresses(x_TM, out_TM), x_TM.numel(), factor, KINDS[x_TM.dtype]))
        return out_TM

    def lookup(self, ids_T: Tensor, table_VM: Tensor) -> Tensor:
        """The table's rows of these ids (int64), both contiguous. Raises IndexError."""
        length, width = table_VM.shape
        out_TM = self._calls.empty((len(ids_T), width), table_VM.dtype)
        tensors = addresses(ids_T, table_VM, out_TM)
        self._calls.ask(Lookup(*tensors, len(ids_T), length, width * table_VM.dtype.itemsize))
        return out_TM

    def argmax(self, x_TV: Tensor) -> Tensor:
        """Where each row of a contiguous tensor has its greatest number, int64 [T]."""
        rows, width = x_TV.shape
        out_T = self._calls.empty((rows,), torch.int64)
        self._calls.ask(Argmax(*addresses(x_TV, out_T), rows, width, KINDS[x_TV.dtype]))
        return out_T

    def likeliest(self, x_TV: Tensor, count: int, never: Tensor) -> tuple[Tensor, Tensor]:
        """log p of the likeliest ids of each row of logits, float32, and these ids, int64, [T, count] each.

        Likeliest first, of equals the lower id, and none of `never` (int64, in order); x is contiguous. Where there are
        fewer, log p of the others is minus infinity.
        """
        rows, width = x_TV.shape
        logprobs_TC, ids_TC = (self._calls.empty((rows, count), dtype) for dtype in (torch.float32, torch.int64))
        tensors = addresses(x_TV, never, logprobs_TC, ids_TC)
        self._calls.ask(Likeliest(*tensors, rows, width, len(never), count, KINDS[x_TV.dtype]))
        return logprobs_TC, ids_TC
