"""The door to the C files: raw pointers of CPU tensors in, tensors out. What it cannot do is left to torch.

`native_for(tensors)` is what the kernels ask: the library where it serves these tensors, else None. It is built and
checked at the first question of a process; where that fails, one log line says why and torch serves everything.
"""

import ctypes
import tempfile
import threading
from collections.abc import Callable, Sequence
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
    NotKept,
    cache_folders,
    choose_variant,
    cpu_flags,
    find_or_build,
)
from trefoil_kernels.cpu.structures import (
    Angles,
    Argmax,
    Asked,
    Attention,
    Gating,
    Int,
    LayerNorm,
    Likeliest,
    Long,
    Lookup,
    Lora,
    PackedProduct,
    PackedWeight,
    PageCopy,
    PageWrite,
    Pointer,
    Product,
    RmsNorm,
    Rotary,
    Scaling,
    Sum,
    Turning,
)
from trefoil_kernels.cpu.tape import OnlyViews, Recording, Scratch, Tape
from trefoil_kernels.masks import Mask

log = structlog.get_logger()

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float8_e4m3fn: 5}
PAGE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 4, torch.float8_e4m3fn: 5, torch.float8_e5m2: 6}
"""What pages may be kept in, whichever of the first two a model computes in."""
ACTIVATIONS = {"gelu": 1, "relu": 2, "silu": 3, "gelu_tanh": 4}
"""What the library calls those that it knows."""
INT4 = 3
NIBBLE_GROUP = 32
"""How many 4-bit values of an output share a scale."""
LORA_PANEL = 32
"""How many outputs of an adapter lie side by side."""
LINE_BYTES, PLACES_BYTES = 64, 4096
"""What a cache takes at once; rows that far apart share its places."""
WIDEST_HEAD = 576
"""What the attention keeps on its stack is sized for this: the latent rows of DeepSeek-V2 and V3."""
CHECK_BOUND = 1e-4
NO_SUCH_ROW = 2


@dataclass(frozen=True, slots=True)
class Keys:
    """Where the keys and values of each sequence lie, [..., G, D]; both at the same strides and of one of PAGE_KINDS.

    In pages, `table_NP` holds page numbers and `lens_N` counts keys, both int64; else the keys of sequence n follow one
    another from starts_N1[n] (int32) to starts_N1[n + 1].
    """

    k: Tensor
    v: Tensor
    lens_N: Tensor | None = None
    table_NP: Tensor | None = None
    page_size: int = 1
    starts_N1: Tensor | None = None


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
        self._told = PackedWeight(*(None if x is None else x.data_ptr() for x in self._tensors), None, outs, 0)

    def told(self, out_TF: Tensor) -> PackedWeight:
        """What C hears of it, and where the product goes."""
        told = PackedWeight.from_buffer_copy(self._told)
        told.out, told.out_stride = out_TF.data_ptr(), out_TF.stride(0)
        return told


class Native:
    """The functions of a loaded library. Arguments must be as `native_for` and each method say."""

    def __init__(self, path: Path, variant: str) -> None:
        self.variant = variant
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeUnavailable(f"{path} cannot be loaded: {error}") from error
        self._product = _Function(library, "product")
        self._packed_product = _Function(library, "packed_product")
        self._add_lora = _Function(library, "add_lora")
        self._attention = _Function(library, "attention")
        self._rms_norm = _Function(library, "rms_norm")
        self._layer_norm = _Function(library, "layer_norm")
        self._add = _Function(library, "add")
        self._angles = _Function(library, "angles")
        self._rotary = _Function(library, "rotary")
        self._rotary_page_write = _Function(library, "rotary_page_write")
        self._gate = _Function(library, "gate")
        self._scale = _Function(library, "scale")
        self._page_write = _Function(library, "page_write")
        self._page_copy = _Function(library, "page_copy")
        self._lookup = _Function(library, "lookup")
        self._argmax = _Function(library, "argmax")
        self._likeliest = _Function(library, "likeliest")
        self._packed_bytes = _declared(library, "packed_bytes", [Int, Long, Long], Long)
        self._pack = _declared(library, "pack", [Int, Pointer, Pointer, Pointer, Long, Long])
        self._play = _declared(library, "play", [Pointer, Long], Int)
        self._own = _Own()

    def record(self, run: Callable[[], Tensor], scratch: Scratch, rows: int | None = None) -> Tape:
        """Keep the calls that it makes, none of which is done yet: all must be this library's. Raises NotRecordable.

        A pass of `rows` rows may be played with fewer.
        """
        recording = self._own.recording = Recording(scratch)
        try:
            recording.held.append(run)  # and with it the tensors that it reads
            with OnlyViews():
                out = run()
        finally:
            self._own.recording = None
        return Tape(recording, out, rows, lambda calls, count: _check(self._play(calls, count)))

    def _ask(self, function: "_Function", asked: Asked, held: object = None) -> None:
        """Call, or where this thread records keep the call, and what it points to besides tensors."""
        if (recording := self._own.recording) is None:
            _check(function.call(ctypes.byref(asked)))
        else:
            recording.calls.append((function.address, asked))
            recording.held.append(held)

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        recording = self._own.recording
        return torch.empty(shape, dtype=dtype) if recording is None else recording.scratch.empty(shape, dtype)

    def _rows_apart(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Rows that a product reads many of at once: in a first-level cache not all may have the same few places."""
        rows, width = shape
        apart = width + LINE_BYTES // dtype.itemsize if width * dtype.itemsize % PLACES_BYTES == 0 else width
        return self._empty((rows, apart), dtype)[:, :width]

    def product(
        self, x_TM: Tensor, weight_FM: Tensor, bias_F: Tensor | None = None, scales_F: Tensor | None = None
    ) -> Tensor:
        """x @ weight.T * scales + bias, [T, F] of x's dtype; the weight is contiguous, x's rows are.

        Weights are float32, bfloat16, or int8 or float8_e4m3fn with float32 `scales_F`; the bias has x's dtype.
        """
        rows, width = x_TM.shape
        outs = weight_FM.shape[0]
        out_TF = self._empty((rows, outs), x_TM.dtype)
        asked = Product(
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
        self._ask(self._product, asked)
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

    def packed_products(
        self, x_TM: Tensor, weights: Sequence[Packed], *, activation: str | None = None
    ) -> list[Tensor]:
        """x @ weight.T * scales + bias for each of these weights, which are of one kind and width.

        Or its `activation`, one of ACTIVATIONS, whose rows, which are for the next product, may lie further apart than
        they are wide.
        """
        rows, width = x_TM.shape
        new = self._empty if activation is None else self._rows_apart
        outs = [new((rows, weight.outs), x_TM.dtype) for weight in weights]
        told = (PackedWeight * len(weights))(*[w.told(out) for w, out in zip(weights, outs, strict=True)])
        kinds = KINDS[x_TM.dtype], weights[0].kind, 0 if activation is None else ACTIVATIONS[activation]
        asked = PackedProduct(x_TM.data_ptr(), ctypes.addressof(told), len(told), rows, x_TM.stride(0), width, *kinds)
        self._ask(self._packed_product, asked, told)
        return outs

    def add_lora(self, out_TO: Tensor, x_TM: Tensor, down_SRM: Tensor, up_SPRB: Tensor, slots_T: Tensor) -> None:
        """out += (x @ down.T) @ up of each row's slot (int64); all of one dtype and contiguous, but for x's rows.

        `up_SPRB` lies in panels of LORA_PANEL outputs.
        """
        num_slots, rank, width = down_SRM.shape
        tensors = (tensor.data_ptr() for tensor in (x_TM, down_SRM, up_SPRB, out_TO, slots_T))
        rows, outs = out_TO.shape
        asked = Lora(*tensors, rows, x_TM.stride(0), width, outs, num_slots, rank, KINDS[x_TM.dtype])
        self._ask(self._add_lora, asked)

    def attention(
        self, q_THD: Tensor, keys: Keys, starts_N1: Tensor, *, mask: Mask, scale: float, bias: Biases | None = None
    ) -> Tensor:
        """[T, H, D]; sequence n has the query rows from starts_N1[n] (int32) to starts_N1[n + 1].

        Under a causal mask its last row stands at its last key. Tensors as `attention_for` says.
        """
        _, heads, width = q_THD.shape
        out_THD = self._empty(q_THD.shape, q_THD.dtype)
        table = keys.table_NP
        asked = Attention(
            q_THD.data_ptr(),
            keys.k.data_ptr(),
            keys.v.data_ptr(),
            out_THD.data_ptr(),
            starts_N1.data_ptr(),
            None if keys.lens_N is None else keys.lens_N.data_ptr(),
            None if table is None else table.data_ptr(),
            None if keys.starts_N1 is None else keys.starts_N1.data_ptr(),
            None if bias is None else bias.by_distance_HS.data_ptr(),
            len(starts_N1) - 1,
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
            PAGE_KINDS[keys.k.dtype],
            mask.is_causal,
        )
        self._ask(self._attention, asked)
        return out_THD

    def rms_norm(self, x_TM: Tensor, weight_M: Tensor, eps: float) -> Tensor:
        """Of rows that are contiguous each, at one stride."""
        rows, width = x_TM.shape
        out_TM = self._empty((rows, width), x_TM.dtype)
        to = weight_M.data_ptr(), None, out_TM.data_ptr()
        sizes = rows, x_TM.stride(0), width
        self._ask(self._rms_norm, RmsNorm(x_TM.data_ptr(), None, *to, *sizes, eps, KINDS[x_TM.dtype]))
        return out_TM

    def add_rms_norm(self, x_TM: Tensor, other_TM: Tensor, weight_M: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """The norm of their sum and the sum; both contiguous."""
        rows, width = x_TM.shape
        out_TM, sum_TM = (self._empty((rows, width), x_TM.dtype) for _ in range(2))
        tensors = (tensor.data_ptr() for tensor in (x_TM, other_TM, weight_M, sum_TM, out_TM))
        self._ask(self._rms_norm, RmsNorm(*tensors, rows, width, width, eps, KINDS[x_TM.dtype]))
        return out_TM, sum_TM

    def layer_norm(
        self, x_TM: Tensor, weight_M: Tensor, bias_M: Tensor, eps: float, y_TM: Tensor | None = None
    ) -> Tensor:
        """The norm of x or of x + y, all of one dtype and contiguous; y may be one row for all of x (a stride of 0)."""
        out_TM = self._empty(x_TM.shape, x_TM.dtype)
        y, y_stride = (None, 0) if y_TM is None else (y_TM.data_ptr(), y_TM.stride(0))
        others = (tensor.data_ptr() for tensor in (weight_M, bias_M, out_TM))
        asked = LayerNorm(x_TM.data_ptr(), y, *others, *x_TM.shape, y_stride, eps, KINDS[x_TM.dtype])
        self._ask(self._layer_norm, asked)
        return out_TM

    def add(self, x_TM: Tensor, y_TM: Tensor) -> Tensor:
        """x + y, both contiguous and of one dtype and shape."""
        out_TM = self._empty(x_TM.shape, x_TM.dtype)
        tensors = (tensor.data_ptr() for tensor in (x_TM, y_TM, out_TM))
        self._ask(self._add, Sum(*tensors, x_TM.numel(), KINDS[x_TM.dtype]))
        return out_TM

    def angles(self, positions_T: Tensor, frequencies_R: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        """Cosines and sines of each position times each frequency, times a factor; float32 [T, R]."""
        shape = len(positions_T), len(frequencies_R)
        cos_TR, sin_TR = (self._empty(shape, torch.float32) for _ in range(2))
        tensors = (tensor.data_ptr() for tensor in (positions_T, frequencies_R, cos_TR, sin_TR))
        self._ask(self._angles, Angles(*tensors, *shape, factor))
        return cos_TR, sin_TR

    def rotary(self, x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor, run: int) -> Tensor:
        """Heads lie side by side in each row; the tables are float32 and contiguous."""
        rows, heads, width = x_THD.shape
        out_THD = self._empty((rows, heads, width), x_THD.dtype)
        tensors = (tensor.data_ptr() for tensor in (x_THD, out_THD, cos_TR, sin_TR))
        sizes = rows, x_THD.stride(0), heads, width, cos_TR.shape[1], run
        self._ask(self._rotary, Rotary(*tensors, *sizes, KINDS[x_THD.dtype]))
        return out_THD

    def rotary_page_write(
        self,
        rows: tuple[Tensor, Tensor, Tensor],
        pages: tuple[Tensor, Tensor],
        angles: tuple[Tensor, Tensor],
        run: int,
        slots_T: Tensor,
    ) -> Tensor:
        """The queries turned; keys, turned too, and values to their slots. Heads lie side by side in each row."""
        q_THD, k_TGD, _ = rows
        num_rows, heads, width = q_THD.shape
        out_THD = self._empty((num_rows, heads, width), q_THD.dtype)
        asked = Turning(
            *(x.data_ptr() for x in (*rows, out_THD, *pages, *angles, slots_T)),
            num_rows,
            heads,
            k_TGD.shape[1],
            width,
            angles[0].shape[1],
            run,
            *(x.stride(0) for x in rows),
            KINDS[q_THD.dtype],
            PAGE_KINDS[pages[0].dtype],
        )
        self._ask(self._rotary_page_write, asked)
        return out_THD

    def gated(self, gate_TF: Tensor, up_TF: Tensor, activation: str) -> Tensor:
        """act(gate) * up of rows that may be slices of wider ones; `activation` is one of ACTIVATIONS."""
        out_TF = self._empty(gate_TF.shape, gate_TF.dtype)
        tensors = (tensor.data_ptr() for tensor in (gate_TF, up_TF, out_TF))
        sizes = *gate_TF.shape, gate_TF.stride(0), up_TF.stride(0)
        self._ask(self._gate, Gating(*tensors, *sizes, KINDS[gate_TF.dtype], ACTIVATIONS[activation]))
        return out_TF

    def scaled(self, x_TM: Tensor, factor: float) -> Tensor:
        """factor * x, contiguous."""
        out_TM = self._empty(x_TM.shape, x_TM.dtype)
        self._ask(self._scale, Scaling(x_TM.data_ptr(), out_TM.data_ptr(), x_TM.numel(), factor, KINDS[x_TM.dtype]))
        return out_TM

    def page_write(self, rows_TGD: Tensor, pages_PSGD: Tensor, slots_T: Tensor) -> None:
        """Put each row's heads, which lie side by side, into its slot (int64, contiguous), in the pages' dtype."""
        sizes = len(rows_TGD), rows_TGD.stride(0), rows_TGD.shape[1] * rows_TGD.shape[2]
        kinds = KINDS[rows_TGD.dtype], PAGE_KINDS[pages_PSGD.dtype]
        tensors = (tensor.data_ptr() for tensor in (rows_TGD, pages_PSGD, slots_T))
        self._ask(self._page_write, PageWrite(*tensors, *sizes, *kinds))

    def page_copy(self, pages_PSGD: Tensor, sources_C: Tensor, targets_C: Tensor) -> None:
        """Copy pages to others (int64, contiguous); no target may be a source, or another's target."""
        tensors = (tensor.data_ptr() for tensor in (pages_PSGD, sources_C, targets_C))
        self._ask(self._page_copy, PageCopy(*tensors, len(sources_C), pages_PSGD[0].nbytes))

    def lookup(self, ids_T: Tensor, table_VM: Tensor) -> Tensor:
        """The table's rows of these ids (int64), both contiguous. Raises IndexError."""
        length, width = table_VM.shape
        out_TM = self._empty((len(ids_T), width), table_VM.dtype)
        tensors = (tensor.data_ptr() for tensor in (ids_T, table_VM, out_TM))
        self._ask(self._lookup, Lookup(*tensors, len(ids_T), length, width * table_VM.dtype.itemsize))
        return out_TM

    def argmax(self, x_TV: Tensor) -> Tensor:
        """Where each row of a contiguous tensor has its greatest number, int64 [T]."""
        rows, width = x_TV.shape
        out_T = self._empty((rows,), torch.int64)
        self._ask(self._argmax, Argmax(x_TV.data_ptr(), out_T.data_ptr(), rows, width, KINDS[x_TV.dtype]))
        return out_T

    def likeliest(self, x_TV: Tensor, count: int, never: Tensor) -> tuple[Tensor, Tensor]:
        """log p of the likeliest ids of each row of logits, float32, and these ids, int64, [T, count] each.

        Likeliest first, of equals the lower id, and none of `never` (int64, in order); x is contiguous. Where there are
        fewer, log p of the others is minus infinity.
        """
        rows, width = x_TV.shape
        logprobs_TC, ids_TC = (self._empty((rows, count), dtype) for dtype in (torch.float32, torch.int64))
        tensors = (tensor.data_ptr() for tensor in (x_TV, never, logprobs_TC, ids_TC))
        self._ask(self._likeliest, Likeliest(*tensors, rows, width, len(never), count, KINDS[x_TV.dtype]))
        return logprobs_TC, ids_TC


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
    native = native_for(q_THD, *(x for x in (k, v) if x.dtype in KINDS))
    if native is None or k.dtype != v.dtype or k.dtype not in PAGE_KINDS:
        return None
    if q_THD.shape[2] > WIDEST_HEAD:
        _say_too_wide(q_THD.shape[2])
        return None
    is_plain = all(has_side_by_side_heads(x) for x in (q_THD, k, v)) and k.stride(-3) == v.stride(-3)
    return native if is_plain else None


def biases(bias: Bias, longest: int) -> Biases:
    """A bias by distance, for sequences up to this length; laid out for few lengths, as it may be kept."""
    enough = 1 << (longest - 1).bit_length()
    return Biases(bias.within(enough), enough - 1)


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
    except NotKept as error:
        log.warning("native_kernels_not_kept", why=str(error), instead="built again by each process")
        with tempfile.TemporaryDirectory() as scratch:
            found = Native(find_or_build(variant, [Path(scratch)], compilers), variant.name)
    _prove(found)
    return found


def _prove(native: Native) -> None:
    """Compare a product and an attention with torch's: a compiler or a processor may be at fault. Takes 1 ms."""
    generator = torch.Generator().manual_seed(0)
    x_TM, weight_FM, k_TGD = (torch.randn(shape, generator=generator) for shape in ((5, 72), (19, 72), (40, 1, 72)))
    starts, key_starts = (torch.tensor([0, count], dtype=torch.int32) for count in (5, 40))
    keys = Keys(k_TGD, k_TGD, starts_N1=key_starts)
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


def _declared(
    library: ctypes.CDLL, name: str, arguments: list[type], result: type | None = None
) -> "ctypes._FuncPointer":
    function = library[f"trefoil_{name}"]
    function.argtypes, function.restype = arguments, result
    return function


class _Function:
    """One that is asked by a structure; its address is for tapes."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.call = _declared(library, name, [Pointer], Int)
        self.address = ctypes.cast(self.call, Pointer).value or 0


class _Own(threading.local):
    """What each thread records."""

    recording: Recording | None = None


def _check(status: int) -> None:
    if status == NO_SUCH_ROW:
        raise IndexError("an id that the table has no row for")
    if status:
        raise MemoryError("no memory for a native kernel's scratch space")
