"""Ranks as threads of the test, which add and gather what they hold without a network."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from trefoil_models.slices import Share

T = TypeVar("T")

LONGEST_WAIT_S = 60.0


class Threads:
    """One rank; all share a barrier and a list of what each holds."""

    def __init__(self, share: Share, barrier: Barrier, held: list[Tensor | None]) -> None:
        self.share, self._barrier, self._held = share, barrier, held

    def meet(self, device: torch.device) -> None:
        self._barrier.wait()

    def least(self, number: int) -> int:
        return int(torch.stack(self._all(torch.tensor(number))).min())

    def sum(self, part_TM: Tensor) -> Tensor:
        return torch.stack(self._all(part_TM)).sum(0)

    def beside(self, part_NV: Tensor) -> Tensor:
        return torch.cat(self._all(part_NV), -1)

    def _all(self, part: Tensor) -> list[Tensor]:
        self._held[self.share.rank] = part.clone()
        self._barrier.wait()
        parts = [part for part in self._held if part is not None]
        self._barrier.wait()
        return parts


def on_ranks(count: int, work: Callable[[Threads], T]) -> list[T]:
    """What each rank's work gives."""
    barrier, held = Barrier(count, timeout=LONGEST_WAIT_S), [None] * count

    def one(rank: int) -> T:
        try:
            with torch.inference_mode():
                return work(Threads(Share(rank, count), barrier, held))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, range(count)))
