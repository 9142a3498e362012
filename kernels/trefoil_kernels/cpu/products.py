"""Rows times weights as files hold them, as laid out once (`Packed`), and of adapters, by the native library."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from trefoil_kernels.cpu.calls import ACTIVATIONS, KINDS, Calls, addresses
from trefoil_kernels.cpu.structures import Int, Long, Lora, PackedProduct, PackedWeight, Pointer, Product

NIBBLE_GROUP = 32
"""How many 4-bit values of an output share a scale."""
LORA_PANEL = 32
"""How many outputs of an adapter lie side by side."""
LINE_BYTES, PLACES_BYTES = 64, 4096
"""What a cache takes at once; rows that far apart share its places."""


class Packed:
    """A weight as `Products.pack` laid it out, with its bias (of x's dtype) and float32 scales, one an output."""

    def __init__(
        self, data: Tensor, kind: int, outs: int, bias_F: Tensor | None = None, scales_F: Tensor | None = None
    ) -> None:
        self.kind, self.outs = kind, outs
        self._tensors = data, bias_F, scales_F  # what the addresses point to
        self._told = PackedWeight(*addresses(*self._tensors), None, outs, 0)

    def told(self, out_TF: Tensor) -> PackedWeight:
        """What C hears of it, and where the product goes."""
        told = PackedWeight.from_buffer_copy(self._told)
        told.out, told.out_stride = out_TF.data_ptr(), out_TF.stride(0)
        return told


class Products:
    """Arguments must be as `library.native_for` and each method say."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._packed_bytes = calls.declared("packed_bytes", [Int, Long, Long], Long)
        self._pack = calls.declared("pack", [Int, Pointer, Pointer, Pointer, Long, Long])

    def plain(
        self, x_TM: Tensor, weight_FM: Tensor, bias_F: Tensor | None = None, scales_F: Tensor | None = None
    ) -> Tensor:
        """x @ weight.T * scales + bias, [T, F] of x's dtype; the weight is contiguous, x's rows are.

        Weights are float32, bfloat16, or int8 or float8_e4m3fn with float32 `scales_F`; the bias has x's dtype.
        """
        rows, (outs, width) = len(x_TM), weight_FM.shape
        out_TF = self._calls.empty((rows, outs), x_TM.dtype)
        tensors = addresses(x_TM, weight_FM, bias_F, out_TF, scales_F)
        kinds = KINDS[x_TM.dtype], KINDS[weight_FM.dtype]
        self._calls.ask(Product(*tensors, rows, x_TM.stride(0), outs, width, *kinds))
        return out_TF

    def packs(self, kind: int) -> bool:
        """Does this library multiply with packed weights of that kind?"""
        return bool(self._packed_bytes(kind, 1, 1))

    def pack(self, values_FM: Tensor, kind: int, scales_FG: Tensor | None = None) -> Tensor | None:
        """The weight as `packed` reads it; None where this library multiplies no such kind.

        Values are of the kind's dtype, 4-bit ones int8 from -8 to 7 with float16 scales for each group of 32.
        """
        if not self.packs(kind):
            return None
        outs, width = values_FM.shape
        packed = torch.empty(self._packed_bytes(kind, outs, width), dtype=torch.uint8)
        values_FM, scales_FG = values_FM.contiguous(), None if scales_FG is None else scales_FG.contiguous()
        self._pack(kind, *addresses(values_FM, scales_FG, packed), outs, width)
        return packed

    def packed(self, x_TM: Tensor, weights: Sequence[Packed], *, activation: str | None = None) -> list[Tensor]:
        """x @ weight.T * scales + bias for each of these weights, which are of one kind and width.

        Or its `activation`, one of ACTIVATIONS, whose rows, which are for the next product, may lie further apart than
        they are wide.
        """
        rows, width = x_TM.shape
        new = self._calls.empty if activation is None else self._rows_apart
        outs = [new((rows, weight.outs), x_TM.dtype) for weight in weights]
        told = (PackedWeight * len(weights))(*[w.told(out) for w, out in zip(weights, outs, strict=True)])
        kinds = KINDS[x_TM.dtype], weights[0].kind, 0 if activation is None else ACTIVATIONS[activation]
        asked = PackedProduct(x_TM.data_ptr(), ctypes.addressof(told), len(told), rows, x_TM.stride(0), width, *kinds)
        self._calls.ask(asked, told)
        return outs

    def add_lora(self, out_TO: Tensor, x_TM: Tensor, down_SRM: Tensor, up_SPRB: Tensor, slots_T: Tensor) -> None:
        """out += (x @ down.T) @ up of each row's slot (int64); all of one dtype and contiguous, but for x's rows.

        `up_SPRB` lies in panels of LORA_PANEL outputs.
        """
        num_slots, rank, width = down_SRM.shape
        tensors = addresses(x_TM, down_SRM, up_SPRB, out_TO, slots_T)
        rows, outs = out_TO.shape
        self._calls.ask(Lora(*tensors, rows, x_TM.stride(0), width, outs, num_slots, rank, KINDS[x_TM.dtype]))

    def _rows_apart(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Rows that a product reads many of at once: in a first-level cache not all may have the same few places."""
        rows, width = shape
        apart = width + LINE_BYTES // dtype.itemsize if width * dtype.itemsize % PLACES_BYTES == 0 else width
        return self._calls.empty((rows, apart), dtype)[:, :width]
