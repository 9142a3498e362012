"""When Triton's kernels run and how each is launched: on its tensors' device, with sizes from tables, never autotuned.

A length is never a compile-time constant: only head widths, groups and tile sizes are, so that serving compiles once.
Nor is a number of rows looked at (`do_not_specialize`): being 1 or a multiple of 16 would make another kernel of it.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

ROW_TILE = 2048
"""Numbers that one program of a row-wise kernel aims to hold at a time."""
MOST_WARPS = 16
WIDEST_ROW = 8192
"""Wider rows would not stay in registers through a norm's backward pass; torch takes them."""


def runs_triton(x: Tensor) -> bool:
    """Is this tensor on a GPU, or does Triton's interpreter take any (TRITON_INTERPRET=1, in tests)?"""
    return x.is_cuda or triton.knobs.runtime.interpret


def chip() -> str:
    """The current device as the tables name it: sm_80, sm_90, gfx942, or `interpreter`."""
    if triton.knobs.runtime.interpret:
        return "interpreter"
    target = triton.runtime.driver.active.get_current_target()
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


def num_processors(device: torch.device) -> int:
    """How many programs the device runs side by side."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **constants: Any) -> None:
    """Run a kernel on the device of its first argument; nothing where the grid is empty."""
    if all(grid):
        with _device_of(args[0]):
            # fused multiply-adds are asked for by name: the compiler's default differs between releases
            kernel[grid](*args, **constants, enable_fp_fusion=True)


def with_whole_rows(x: Tensor) -> Tensor:
    """The same numbers, those of a row side by side, as kernels read them; rows may lie apart."""
    return x if x.stride(-1) == 1 else x.contiguous()


@dataclass(frozen=True, slots=True)
class RowTile:
    """What one program of a row-wise kernel holds: `rows` rows, `width` padded to the power of two `block`."""

    rows: int
    block: int
    warps: int


def row_tile(width: int) -> RowTile:
    """Whole rows, several where they are short."""
    block = triton.next_power_of_2(width)
    rows = max(1, ROW_TILE // block)
    return RowTile(rows, block, min(max(rows * block // 512, 1), MOST_WARPS))


def _device_of(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
