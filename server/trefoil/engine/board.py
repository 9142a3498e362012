"""Sums in memory that the ranks of one host share: each writes its part, waits for the others', and reads them all.

Parts are written to one of two places by turns: who comes to the first again has seen all others write to the second,
hence read the first. A flag follows the bytes it speaks of, which x86 keeps in order for all who look.
"""

import mmap
import os
import time

import torch
from torch import Tensor

from trefoil_models.slices import Share

PLACE_BYTES = 4 << 20
FLAG_BYTES = 64
"""A cache line each."""
NUM_SPINS, NUM_YIELDS = 300, 3000
"""Looks before the processor is offered to others, some 50 us, and before this process sleeps between looks."""
SLEEP_S = 0.0002
LONGEST_WAIT_S = 300.0
"""For the others: a rank that hangs becomes one that is lost."""


class Board:
    """Made before ranks are forked; each then has its own view of the same memory."""

    def __init__(self, count: int) -> None:
        memory = mmap.mmap(-1, count * (FLAG_BYTES + 2 * PLACE_BYTES))
        self._flags = memoryview(memory)[: count * FLAG_BYTES].cast("q")
        places = torch.frombuffer(memory, dtype=torch.uint8, offset=count * FLAG_BYTES)
        self._places = places.view(2, count, PLACE_BYTES)
        self._turn = 0

    def exchanged(self, part: Tensor, share: Share) -> Tensor:
        """Every rank's part, [ranks, ...], until the next but one is exchanged."""
        self._turn += 1
        place = self._places[self._turn % 2, :, : part.nbytes].view(part.dtype)
        place[share.rank].copy_(part.reshape(-1))
        self._flags[share.rank * FLAG_BYTES // 8] = self._turn
        self._wait()
        return place.view(share.count, *part.shape)

    def _wait(self) -> None:
        flags, turn = self._flags[:: FLAG_BYTES // 8], self._turn
        started, looks = 0.0, 0
        while min(flags) < turn:
            looks += 1
            if looks <= NUM_SPINS:
                continue
            if looks <= NUM_YIELDS:
                os.sched_yield()
                continue
            started = started or time.monotonic()
            if time.monotonic() - started > LONGEST_WAIT_S:
                raise TimeoutError(f"a rank did not come within {LONGEST_WAIT_S} s")
            time.sleep(SLEEP_S)


class SharedMemory:
    """What ranks ask of a board."""

    def __init__(self, board: Board, share: Share) -> None:
        self._board, self._share = board, share

    def sum(self, part_TM: Tensor) -> Tensor:
        """In place, and in the order of ranks, so that all have the same to the bit."""
        part_TM = part_TM.contiguous()
        for piece in torch.split(part_TM.view(-1), PLACE_BYTES // part_TM.itemsize):
            first, second, *others = self._board.exchanged(piece, self._share)
            torch.add(first, second, out=piece)
            for other in others:
                piece += other
        return part_TM

    def beside(self, part_NV: Tensor) -> Tensor:
        rows, columns = part_NV.shape
        all_NV = part_NV.new_empty(rows, self._share.count, columns)
        at_once = max(PLACE_BYTES // (columns * part_NV.itemsize), 1)
        for start in range(0, rows, at_once):
            piece = part_NV[start : start + at_once].contiguous()
            all_NV[start : start + at_once] = self._board.exchanged(piece, self._share).transpose(0, 1)
        return all_NV.flatten(1)

    def least(self, number: int) -> int:
        return int(self._board.exchanged(torch.tensor([number]), self._share).min())
