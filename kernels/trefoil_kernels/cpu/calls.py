"""The C functions of a loaded library: called at once or, where a thread records, kept for a tape."""

import ctypes
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trefoil_kernels.cpu.build import NativeUnavailable
from trefoil_kernels.cpu.structures import Asked, Int, Long, Pointer
from trefoil_kernels.cpu.tape import OnlyViews, Recording, Scratch, Tape

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float8_e4m3fn: 5}
PAGE_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 4, torch.float8_e4m3fn: 5, torch.float8_e5m2: 6}
"""What pages may be kept in, whichever of the first two a model computes in."""
INT4 = 3
ACTIVATIONS = {"gelu": 1, "relu": 2, "silu": 3, "gelu_tanh": 4}
"""What the library calls those that it knows."""
NO_SUCH_ROW = 2


class Calls:
    """The functions of one library, each known by the structure it is asked with. Raises NativeUnavailable."""

    def __init__(self, path: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(path))
        except OSError as error:
            raise NativeUnavailable(f"{path} cannot be loaded: {error}") from error
        self._functions = {asked: self.declared(asked.function, [Pointer], Int) for asked in Asked.__subclasses__()}
        self._play = self.declared("play", [Pointer, Long], Int)
        self._own = _Own()

    def declared(self, name: str, arguments: list[type], result: type | None = None) -> "ctypes._FuncPointer":
        """A function with its C signature."""
        function = self._library[f"trefoil_{name}"]
        function.argtypes, function.restype = arguments, result
        return function

    def ask(self, asked: Asked, held: object = None) -> None:
        """Call, or where this thread records keep the call, and what it points to besides tensors."""
        function = self._functions[type(asked)]
        if (recording := self._own.recording) is None:
            _check(function(ctypes.byref(asked)))
        else:
            recording.calls.append((ctypes.cast(function, Pointer).value or 0, asked))
            recording.held.append(held)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Room for what a call gives."""
        recording = self._own.recording
        return torch.empty(shape, dtype=dtype) if recording is None else recording.scratch.empty(shape, dtype)

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


def addresses(*tensors: Tensor | None) -> list[int | None]:
    """Where these lie; null for what is not there."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]


class _Own(threading.local):
    """What each thread records."""

    recording: Recording | None = None


def _check(status: int) -> None:
    if status == NO_SUCH_ROW:
        raise IndexError("an id that the table has no row for")
    if status:
        raise MemoryError("no memory for a native kernel's scratch space")
