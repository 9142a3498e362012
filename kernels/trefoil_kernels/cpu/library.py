"""This process's native library: built and checked at the first question, and asked for what it serves.

`native_for(tensors)` is what the kernels ask: the library where it serves these tensors, else None. Where none can be
had, one log line says why and torch serves everything.
"""

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import structlog
import torch
from torch import Tensor

from trefoil_kernels.cpu.attention import WIDEST_HEAD, Attention, Keys, has_side_by_side_heads
from trefoil_kernels.cpu.build import (
    COMPILERS,
    NativeUnavailable,
    NotKept,
    cache_folders,
    choose_variant,
    cpu_flags,
    find_or_build,
)
from trefoil_kernels.cpu.calls import KINDS, PAGE_KINDS, Calls
from trefoil_kernels.cpu.products import Packed, Products
from trefoil_kernels.cpu.rowwise import Rowwise
from trefoil_kernels.masks import Mask

log = structlog.get_logger()

CHECK_BOUND = 1e-4


class Native:
    """What a loaded library computes: raw pointers of CPU tensors in, tensors out."""

    def __init__(self, path: Path, variant: str) -> None:
        self.variant, self.calls = variant, Calls(path)
        self.products, self.attention, self.rowwise = Products(self.calls), Attention(self.calls), Rowwise(self.calls)


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


@cache
def _say_too_wide(width: int) -> None:
    log.warning("native_attention_off", head_dim=width, widest=WIDEST_HEAD, instead="torch")


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
    full = native.attention.over(x_TM[:, None], keys, starts, mask=Mask.FULL, scale=0.1)[:, 0]
    wanted = (x_TM @ k_TGD[:, 0].T * 0.1).softmax(-1) @ k_TGD[:, 0]
    pairs = [
        (native.products.plain(x_TM, weight_FM), x_TM @ weight_FM.T),
        (native.products.plain(x_TM, weight_FM.bfloat16()), x_TM @ weight_FM.bfloat16().float().T),
        (full, wanted),
    ]
    data = native.products.pack(weight_FM, KINDS[torch.float32])
    if data is not None:
        (packed,) = native.products.packed(x_TM, [Packed(data, KINDS[torch.float32], len(weight_FM))])
        pairs.append((packed, x_TM @ weight_FM.T))
    if not all(torch.allclose(own, right, rtol=CHECK_BOUND, atol=CHECK_BOUND) for own, right in pairs):
        raise NativeUnavailable(f"the {native.variant} library computes wrong numbers on this machine")
