"""A computation of native calls alone, recorded once and made from C, without Python between its calls.

What it reads and writes keeps its addresses: weights and buffers are their owners', and what the calls make of them
lies in a `Scratch`. Anything that torch itself would compute on the way cannot be made so, hence it is refused.
"""

import ctypes
import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trefoil_kernels.cpu.structures import Asked, Call

ALIGNMENT = 64


class NotRecordable(Exception):
    """The computation has a step that is not native; says which."""


class Scratch:
    """Memory that recorded computations share: what one has let go of is given out again, and never returned.

    Only one of them may run at a time, and what one gives is valid until the next.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray[Any, Any]]] = defaultdict(list)
        self.num_bytes = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor whose memory comes back here when nobody looks at it any more.

        It is given out by powers of two, so that passes of any numbers of rows have room in that of the largest.
        """
        count = math.prod(shape) * dtype.itemsize
        size = 1 << (count - 1).bit_length()
        free = self._free[size]
        if not free:
            free.append(np.empty(size + ALIGNMENT, dtype=np.uint8))
            self.num_bytes += size
        owner = free.pop()
        start = -owner.ctypes.data % ALIGNMENT
        lent = owner[start : start + count]
        weakref.finalize(lent, free.append, owner)
        return torch.from_numpy(lent).view(dtype).view(*shape)


@dataclass(slots=True)
class Recording:
    """Calls as they are made, and what they point to besides tensors."""

    scratch: Scratch
    calls: list[tuple[int, Asked]] = field(default_factory=list)
    held: list[object] = field(default_factory=list)


class Tape:
    """Recorded calls, ready to be made. The memory of weights and buffers must outlive it.

    Where it was recorded as a pass of `rows` rows, it can be played with fewer.
    """

    def __init__(self, recording: Recording, out: Tensor, rows: int | None, play: Callable[[Any, int], None]) -> None:
        self._recording, self._out, self._play = recording, _unheld(out), play
        self._growing = [] if rows is None else _growing(recording, rows)
        self._calls = (Call * len(recording.calls))(
            *(Call(function, ctypes.addressof(asked)) for function, asked in recording.calls)
        )

    def play(self) -> Tensor:
        """What the computation gives now, always in the same place."""
        self._play(self._calls, len(self._calls))
        return self._out

    def play_rows(self, rows: int) -> Tensor:
        """The same of so many rows, which are the first of what was recorded."""
        for asked, field_name, per_row in self._growing:
            setattr(asked, field_name, per_row * rows)
        return self.play()[:rows]


def _growing(recording: Recording, rows: int) -> list[tuple[Asked, str, int]]:
    """What of each call counts rows, and how much a row counts there. Raises NotRecordable where not all rows do."""
    growing = []
    for _, asked in recording.calls:
        if asked.grows is not None:
            per_row, rest = divmod(getattr(asked, asked.grows), rows)
            if not per_row or rest:
                raise NotRecordable(f"{type(asked).__name__} of other rows than the pass's {rows}")
            growing.append((asked, asked.grows, per_row))
    return growing


class OnlyViews(TorchDispatchMode):
    """While it lasts, torch may look at memory in other ways but compute nothing. Raises NotRecordable."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not func.is_view:
            raise NotRecordable(str(func))
        out = func(*args, **(kwargs or {}))
        looked_at = {_memory(arg) for arg in args if isinstance(arg, Tensor)}
        if any(_memory(one) not in looked_at for one in (out if isinstance(out, (list, tuple)) else [out])):
            raise NotRecordable(f"{func}, which copies here")  # what is called a view may be one only at times
        return out


def _unheld(tensor: Tensor) -> Tensor:
    """The same memory, which its scratch may give out again while this looks at it."""
    assert tensor.is_contiguous(), "what a tape gives is read row by row"
    memory = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
