"""The door to the C files: raw pointers of CPU tensors in, tensors out. What it cannot do is left to torch.

`native_for(tensors)` is what the kernels ask: the library where it serves these tensors, else None. It is built and
checked at the first question of a process; where that fails, one log line says why and torch serves everything.
"""

import ctypes
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import structlog
import torch
from torch import Tensor

from trefoil_kernels.bias import Bias
from trefoil_kernels.cpu.build import (
    COMPILERS,
    NativeUnavailable,
    cache_folders,
    choose_variant,
    cpu_flags,
    find_or_build,
)
from trefoil_kernels.masks import Mask

log = structlog.get_logger()

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
INT4 = 3
NIBBLE_GROUP = 32
"""How many 4-bit values of an output share a scale."""
LORA_PANEL = 32
"""How many outputs of an adapter lie side by side."""
WIDEST_HEAD = 256
"""What the attention keeps on its stack is sized for this."""
CHECK_BOUND = 1e-4

Pointer, Long, Int, Float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class _Product(ctypes.Structure):
    """struct product"""

    _fields_ = [
        *((name, Pointer) for name in ("x", "weight", "bias", "out", "scales")),
        *((name, Long) for name in ("rows", "x_stride", "outs", "width")),
        *((name, Int) for name in ("kind", "weight_kind")),
    ]


class _PackedWeight(ctypes.Structure):
    """struct packed_weight"""

    _fields_ = [*((name, Pointer) for name in ("data", "bias", "scales", "out")), ("outs", Long)]


class _Packed(ctypes.Structure):
    """struct packed"""

    _fields_ = [
        *((name, Pointer) for name in ("x", "weights")),
        *((name, Long) for name in ("count", "rows", "x_stride", "width")),
        *((name, Int) for name in ("kind", "weight_kind", "has_gelu")),
    ]


class _Lora(ctypes.Structure):
    """struct lora"""

    _fields_ = [
        *((name, Pointer) for name in ("x", "down", "up", "out", "slots")),
        *((name, Long) for name in ("rows", "x_stride", "width", "outs", "num_slots", "rank")),
        ("kind", Int),
    ]


class _Turning(ctypes.Structure):
    """struct turning"""

    _fields_ = [
        *((name, Pointer) for name in ("q", "k", "v", "out", "k_pages", "v_pages", "cosines", "sines", "slots")),
        *((name, Long) for name in ("rows", "heads", "kv_heads", "width", "half", "q_stride", "k_stride", "v_stride")),
        ("kind", Int),
    ]


class _Attention(ctypes.Structure):
    """struct attention"""

    _fields_ = [
        *((name, Pointer) for name in ("q", "k", "v", "out", "row_starts", "num_keys", "table", "key_starts", "bias")),
        *((name, Long) for name in ("sequences", "heads", "kv_heads", "head_dim", "q_stride", "kv_stride")),
        *((name, Long) for name in ("table_stride", "page_size", "window", "bias_offset", "bias_stride")),
        ("scale", Float),
        *((name, Int) for name in ("kind", "is_causal")),
    ]


@dataclass(frozen=True, slots=True)
class Keys:
    """Where the keys and values of each sequence lie, [..., G, D]; both at the same strides.

    In pages, `table_NP` holds page numbers; without it a sequence's rows follow one another from `starts_N` on.
    `lens_N` counts them. All int64.
    """

    k: Tensor
    v: Tensor
    lens_N: Tensor
    table_NP: Tensor | None = None
    page_size: int = 1
    starts_N: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Biases:
    """What is added to scores by distance: `by_distance_HS`[h, key - query + offset], float32."""

    by_distance_HS: Tensor
    offset: int


class Packed:
    """A weight as `Native.pack` laid it out, with its bias (of x's dtype) and float32 scales, one an output."""

    def __init__(
        self, data: Tensor, kind: int, outs: int, bias_F: Tensor | None = None, scales_F: Tensor | None = None
    ) -> None:
        self.kind, self.outs = kind, outs
        self._tensors = data, bias_F, scales_F  # what the addresses point to
        self._told = _PackedWeight(*(None if x is None else x.data_ptr() for x in self._tensors), None, outs)

    def told(self, out_TF: Tensor) -> _PackedWeight:
        """What C hears of it, and where the product goes."""
        told = _PackedWeight.from_buffer_copy(self._told)
        told.out = out_TF.data_ptr()
        return told


class Native:
    """The functions of a loaded library. Arguments must be as `native_for` and each method say."""

    def __init__(self, path: Path, variant: str) -> None:
        self.variant = variant
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeUnavailable(f"{path} cannot be loaded: {error}") from error
        self._product = _function(library, "product", [Pointer], Int)
        self._packed_bytes = _function(library, "packed_bytes", [Int, Long, Long], Long)
        self._pack = _function(library, "pack", [Int, Pointer, Pointer, Pointer, Long, Long])
        self._packed_product = _function(library, "packed_product", [Pointer], Int)
        self._add_lora = _function(library, "add_lora", [Pointer], Int)
        self._attention = _function(library, "attention", [Pointer], Int)
        self._add_layer_norm = _function(library, "add_layer_norm", [Int, *[Pointer] * 5, Long, Long, Float], Int)
        self._rms_norm = _function(library, "rms_norm", [Int, *[Pointer] * 5, Long, Long, Long, Float])
        self._rotary = _function(library, "rotary", [Int, *[Pointer] * 4, *[Long] * 5])
        self._rotary_page_write = _function(library, "rotary_page_write", [Pointer])
        self._silu_mul = _function(library, "silu_mul", [Int, Pointer, Pointer, Pointer, Long])
        self._argmax = _function(library, "argmax", [Int, Pointer, Pointer, Long, Long])
        self._page_write = _function(library, "page_write", [Pointer, Pointer, Pointer, Long, Long, Long])

    def product(
        self, x_TM: Tensor, weight_FM: Tensor, bias_F: Tensor | None = None, scales_F: Tensor | None = None
    ) -> Tensor:
        """x @ weight.T * scales + bias, [T, F] of x's dtype; the weight is contiguous, x's rows are.

        Weights are float32, bfloat16, or int8 with float32 `scales_F`; the bias has x's dtype.
        """
        rows, width = x_TM.shape
        outs = weight_FM.shape[0]
        out_TF = torch.empty(rows, outs, dtype=x_TM.dtype)
        asked = _Product(
            x_TM.data_ptr(),
            weight_FM.data_ptr(),
            None if bias_F is None else bias_F.data_ptr(),
            out_TF.data_ptr(),
            None if scales_F is None else scales_F.data_ptr(),
            rows,
            x_TM.stride(0),
            outs,
            width,
            KINDS[x_TM.dtype],
            KINDS[weight_FM.dtype],
        )
        _check(self._product(ctypes.byref(asked)))
        return out_TF

    def packs(self, kind: int) -> bool:
        """Does this library multiply with packed weights of that kind?"""
        return bool(self._packed_bytes(kind, 1, 1))

    def pack(self, values_FM: Tensor, kind: int, scales_FG: Tensor | None = None) -> Tensor | None:
        """The weight as `packed_products` reads it; None where this library multiplies no such kind.

        Values are of the kind's dtype, 4-bit ones int8 from -8 to 7 with float16 scales for each group of 32.
        """
        if not self.packs(kind):
            return None
        outs, width = values_FM.shape
        packed = torch.empty(self._packed_bytes(kind, outs, width), dtype=torch.uint8)
        values_FM, scales_FG = values_FM.contiguous(), None if scales_FG is None else scales_FG.contiguous()
        scales = None if scales_FG is None else scales_FG.data_ptr()
        self._pack(kind, values_FM.data_ptr(), scales, packed.data_ptr(), outs, width)
        return packed

    def packed_products(self, x_TM: Tensor, weights: Sequence[Packed], *, has_gelu: bool = False) -> list[Tensor]:
        """x @ weight.T * scales + bias, or its gelu, for each of these weights, which are of one kind and width."""
        rows, width = x_TM.shape
        outs = [torch.empty(rows, weight.outs, dtype=x_TM.dtype) for weight in weights]
        told = (_PackedWeight * len(weights))(*[w.told(out) for w, out in zip(weights, outs, strict=True)])
        kind, weight_kind = KINDS[x_TM.dtype], weights[0].kind
        asked = _Packed(
            x_TM.data_ptr(), ctypes.addressof(told), len(told), rows, x_TM.stride(0), width, kind, weight_kind, has_gelu
        )
        _check(self._packed_product(ctypes.byref(asked)))
        return outs

    def add_lora(self, out_TO: Tensor, x_TM: Tensor, down_SRM: Tensor, up_SPRB: Tensor, slots_T: Tensor) -> None:
        """out += (x @ down.T) @ up of each row's slot (int64); all of one dtype and contiguous, but for x's rows.

        `up_SPRB` lies in panels of LORA_PANEL outputs.
        """
        num_slots, rank, width = down_SRM.shape
        tensors = (tensor.data_ptr() for tensor in (x_TM, down_SRM, up_SPRB, out_TO, slots_T))
        rows, outs = out_TO.shape
        asked = _Lora(*tensors, rows, x_TM.stride(0), width, outs, num_slots, rank, KINDS[x_TM.dtype])
        _check(self._add_lora(ctypes.byref(asked)))

    def attention(
        self, q_THD: Tensor, keys: Keys, starts_N1: Tensor, *, mask: Mask, scale: float, bias: Biases | None = None
    ) -> Tensor:
        """[T, H, D]; sequence n has the query rows from starts_N1[n] (int32) to starts_N1[n + 1].

        Under a causal mask its last row stands at its last key. Tensors as `attention_for` says.
        """
        _, heads, width = q_THD.shape
        out_THD = torch.empty(q_THD.shape, dtype=q_THD.dtype)
        table = keys.table_NP
        asked = _Attention(
            q_THD.data_ptr(),
            keys.k.data_ptr(),
            keys.v.data_ptr(),
            out_THD.data_ptr(),
            starts_N1.data_ptr(),
            keys.lens_N.data_ptr(),
            None if table is None else table.data_ptr(),
            None if keys.starts_N is None else keys.starts_N.data_ptr(),
            None if bias is None else bias.by_distance_HS.data_ptr(),
            len(keys.lens_N),
            heads,
            keys.k.shape[-2],
            width,
            q_THD.stride(0),
            keys.k.stride(-3),
            0 if table is None else table.stride(0),
            keys.page_size,
            mask.window or 0,
            0 if bias is None else bias.offset,
            0 if bias is None else bias.by_distance_HS.stride(0),
            scale,
            KINDS[q_THD.dtype],
            mask.is_causal,
        )
        _check(self._attention(ctypes.byref(asked)))
        return out_THD

    def rms_norm(self, x_TM: Tensor, weight_M: Tensor, eps: float) -> Tensor:
        """Of rows that are contiguous each, at one stride."""
        rows, width = x_TM.shape
        out_TM = torch.empty(rows, width, dtype=x_TM.dtype)
        kind = KINDS[x_TM.dtype]
        to = weight_M.data_ptr(), None, out_TM.data_ptr()
        self._rms_norm(kind, x_TM.data_ptr(), None, *to, rows, x_TM.stride(0), width, eps)
        return out_TM

    def add_layer_norm(self, x_TM: Tensor, y_TM: Tensor, weight_M: Tensor, bias_M: Tensor, eps: float) -> Tensor:
        """The norm of x + y, all contiguous and of one dtype."""
        out_TM = torch.empty(x_TM.shape, dtype=x_TM.dtype)
        tensors = (tensor.data_ptr() for tensor in (x_TM, y_TM, weight_M, bias_M, out_TM))
        _check(self._add_layer_norm(KINDS[x_TM.dtype], *tensors, *x_TM.shape, eps))
        return out_TM

    def add_rms_norm(self, x_TM: Tensor, other_TM: Tensor, weight_M: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The norm of their sum and the sum; both contiguous."""
        rows, width = x_TM.shape
        out_TM, sum_TM = (torch.empty(rows, width, dtype=x_TM.dtype) for _ in range(2))
        to = weight_M.data_ptr(), sum_TM.data_ptr(), out_TM.data_ptr()
        self._rms_norm(KINDS[x_TM.dtype], x_TM.data_ptr(), other_TM.data_ptr(), *to, rows, width, width, eps)
        return out_TM, sum_TM

    def rotary(self, x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
        """Heads lie side by side in each row; the tables are float32 and contiguous."""
        rows, heads, width = x_THD.shape
        out_THD = torch.empty(rows, heads, width, dtype=x_THD.dtype)
        self._rotary(
            KINDS[x_THD.dtype],
            x_THD.data_ptr(),
            out_THD.data_ptr(),
            cos_TR.data_ptr(),
            sin_TR.data_ptr(),
            rows,
            x_THD.stride(0),
            heads,
            width,
            cos_TR.shape[1],
        )
        return out_THD

    def rotary_page_write(
        self,
        rows: tuple[Tensor, Tensor, Tensor],
        pages: tuple[Tensor, Tensor],
        angles: tuple[Tensor, Tensor],
        slots_T: Tensor,
    ) -> Tensor:
        """The queries turned; keys, turned too, and values to their slots. Heads lie side by side in each row."""
        q_THD, k_TGD, _ = rows
        num_rows, heads, width = q_THD.shape
        out_THD = torch.empty(num_rows, heads, width, dtype=q_THD.dtype)
        asked = _Turning(
            *(x.data_ptr() for x in (*rows, out_THD, *pages, *angles, slots_T)),
            num_rows,
            heads,
            k_TGD.shape[1],
            width,
            angles[0].shape[1],
            *(x.stride(0) for x in rows),
            KINDS[q_THD.dtype],
        )
        self._rotary_page_write(ctypes.byref(asked))
        return out_THD

    def silu_mul(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        """silu(gate) * up of contiguous tensors."""
        out_TF = torch.empty(gate_TF.shape, dtype=gate_TF.dtype)
        kind = KINDS[gate_TF.dtype]
        self._silu_mul(kind, gate_TF.data_ptr(), up_TF.data_ptr(), out_TF.data_ptr(), gate_TF.numel())
        return out_TF

    def argmax(self, x_TV: Tensor) -> Tensor:
        """Where each row of a contiguous tensor has its greatest number, int64 [T]."""
        rows, width = x_TV.shape
        out_T = torch.empty(rows, dtype=torch.int64)
        self._argmax(KINDS[x_TV.dtype], x_TV.data_ptr(), out_T.data_ptr(), rows, width)
        return out_T

    def page_write(self, rows_TGD: Tensor, pages_PSGD: Tensor, slots_T: Tensor) -> None:
        """Copy each row's heads, which lie side by side, to its slot (int64, contiguous)."""
        size = rows_TGD.dtype.itemsize
        row_bytes = rows_TGD.shape[1] * rows_TGD.shape[2] * size
        self._page_write(
            rows_TGD.data_ptr(),
            pages_PSGD.data_ptr(),
            slots_T.data_ptr(),
            len(rows_TGD),
            rows_TGD.stride(0) * size,
            row_bytes,
        )


def native_for(*tensors: Tensor) -> Native | None:
    """The library, where all of these lie on the CPU in a dtype it knows and nobody asks for gradients."""
    for tensor in tensors:
        if not tensor.is_cpu or tensor.dtype not in KINDS:
            return None
        if tensor.requires_grad and torch.is_grad_enabled():
            return None
    return native()


def attention_for(q_THD: Tensor, k: Tensor, v: Tensor) -> Native | None:
    """The library, where it serves attention over these keys [..., G, D]; heads wider than it covers are said once."""
    native = native_for(q_THD, k, v)
    if native is None or not q_THD.dtype == k.dtype == v.dtype:
        return None
    if q_THD.shape[2] > WIDEST_HEAD:
        _say_too_wide(q_THD.shape[2])
        return None
    is_plain = all(has_side_by_side_heads(x) for x in (q_THD, k, v)) and k.stride(-3) == v.stride(-3)
    return native if is_plain else None


def biases(bias: Bias, longest: int) -> Biases:
    """A bias by distance, for sequences up to this length."""
    at = torch.arange(1 - longest, longest)
    return Biases(bias.values(torch.zeros(1, dtype=torch.int64), at)[:, 0].contiguous(), longest - 1)


@cache
def _say_too_wide(width: int) -> None:
    log.warning("native_attention_off", head_dim=width, widest=WIDEST_HEAD, instead="torch")


def has_side_by_side_heads(x: Tensor) -> bool:
    """Are the heads of a row [..., heads, D] one contiguous run?"""
    return x.stride(-1) == 1 and x.stride(-2) == x.shape[-1]


@cache
def native() -> Native | None:
    """This process's library, or None with one log line."""
    try:
        return load(cpu_flags(), cache_folders())
    except NativeUnavailable as error:
        log.warning("native_kernels_off", why=str(error), instead="torch")
        return None


def load(flags: frozenset[str], folders: Sequence[Path], compilers: Sequence[str] = COMPILERS) -> Native:
    """Find or build, load and check the library for a processor. Raises NativeUnavailable.

    Where the last folder cannot be written, the library is built for this process alone and said so.
    """
    variant = choose_variant(flags)
    try:
        found = Native(find_or_build(variant, folders, compilers), variant.name)
    except NativeUnavailable as error:
        if "cannot be written" not in str(error):
            raise
        log.warning("native_kernels_not_kept", why=str(error), instead="built again by each process")
        with tempfile.TemporaryDirectory() as scratch:
            found = Native(find_or_build(variant, [Path(scratch)], compilers), variant.name)
    _prove(found)
    return found


def _prove(native: Native) -> None:
    """Compare a product and an attention with torch's: a compiler or a processor may be at fault. Takes 1 ms."""
    generator = torch.Generator().manual_seed(0)
    x_TM, weight_FM, k_TGD = (torch.randn(shape, generator=generator) for shape in ((5, 72), (19, 72), (40, 1, 72)))
    starts, lens = torch.tensor([0, 5], dtype=torch.int32), torch.tensor([40])
    keys = Keys(k_TGD, k_TGD, lens, starts_N=torch.tensor([0]))
    full = native.attention(x_TM[:, None], keys, starts, mask=Mask.FULL, scale=0.1)[:, 0]
    wanted = (x_TM @ k_TGD[:, 0].T * 0.1).softmax(-1) @ k_TGD[:, 0]
    pairs = [
        (native.product(x_TM, weight_FM), x_TM @ weight_FM.T),
        (native.product(x_TM, weight_FM.bfloat16()), x_TM @ weight_FM.bfloat16().float().T),
        (full, wanted),
    ]
    data = native.pack(weight_FM, KINDS[torch.float32])
    if data is not None:
        (packed,) = native.packed_products(x_TM, [Packed(data, KINDS[torch.float32], len(weight_FM))])
        pairs.append((packed, x_TM @ weight_FM.T))
    if not all(torch.allclose(own, right, rtol=CHECK_BOUND, atol=CHECK_BOUND) for own, right in pairs):
        raise NativeUnavailable(f"the {native.variant} library computes wrong numbers on this machine")


def _function(
    library: ctypes.CDLL, name: str, arguments: list[type], result: type | None = None
) -> "ctypes._FuncPointer":
    function = library[f"trefoil_{name}"]
    function.argtypes, function.restype = arguments, result
    return function


def _check(status: int) -> None:
    if status:
        raise MemoryError("no memory for a native kernel's scratch space")
