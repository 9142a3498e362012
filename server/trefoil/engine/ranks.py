"""The processes that hold one model together, each a slice of it: the first is the engine, the others follow it.

Every rank is an engine of its own. What the first hears the others hear, so all make the same plans; sums of their
parts and rows of logits are the same on all, so all choose the same tokens; the first alone tells them. They count
alike, which is compared each turn: who strays ends, and the loss of one is the loss of all.
"""

import ctypes
import os
import platform
import select
import signal
import threading
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import structlog
import torch
import torch.distributed as dist
from setproctitle import setproctitle
from torch import Tensor

from trefoil.engine.board import LONGEST_WAIT_S, Board, SharedMemory
from trefoil_models import slices
from trefoil_models.config_keys import CheckpointError
from trefoil_models.slices import WHOLE, Share

log = structlog.get_logger()

PR_SET_PDEATHSIG = 1
EXIT_ALONE = 6


class Ranks(slices.Ranks, Protocol):
    """What an engine asks of them besides."""

    def meet(self, device: torch.device) -> None:
        """Wait until every rank has read its slices. Raises CheckpointError where one cannot."""
        ...

    def least(self, number: int) -> int:
        """The least of every rank's number."""
        ...


class Alone:
    """One process has the whole model."""

    share = WHOLE

    def meet(self, device: torch.device) -> None:
        pass

    def least(self, number: int) -> int:
        return number

    def sum(self, part_TM: Tensor) -> Tensor:
        return part_TM

    def beside(self, part_NV: Tensor) -> Tensor:
        return part_NV


ALONE = Alone()


class Sums(Protocol):
    """How ranks add and gather what they hold."""

    def sum(self, part_TM: Tensor) -> Tensor: ...
    def beside(self, part_NV: Tensor) -> Tensor: ...
    def least(self, number: int) -> int: ...


class Collectives:
    """By torch.distributed: NCCL between GPUs, gloo between processes. `meeting` is a path where no file is yet."""

    def __init__(self, share: Share, device: torch.device, meeting: Path) -> None:
        is_cuda = device.type == "cuda"
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=dist.FileStore(str(meeting), share.count),  # type: ignore[attr-defined]
            rank=share.rank,
            world_size=share.count,
            timeout=timedelta(seconds=LONGEST_WAIT_S),
            device_id=torch.device("cuda", torch.cuda.current_device()) if is_cuda else None,
        )
        self._count, self._device = share.count, device

    def sum(self, part_TM: Tensor) -> Tensor:
        dist.all_reduce(part_TM)
        return part_TM

    def beside(self, part_NV: Tensor) -> Tensor:
        (rows, columns), count = part_NV.shape, self._count
        all_NV = part_NV.new_empty(count * rows, columns)
        dist.all_gather_single(all_NV, part_NV)
        return all_NV.view(count, rows, columns).transpose(0, 1).reshape(rows, count * columns)

    def least(self, number: int) -> int:
        least = torch.tensor(number, device=self._device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)


class Together:
    """One of several ranks. `pipes`: the first rank's to each other, or another's to the first.

    On x86 processors they meet at the `board`, else by `Collectives` at the path `meeting`.
    """

    def __init__(self, share: Share, pipes: list["Connection[bytes, bytes]"], board: Board, meeting: Path) -> None:
        self.share, self.pipes = share, pipes
        self._board, self._meeting = board, meeting
        self._sums: Sums = Alone()

    def meet(self, device: torch.device) -> None:
        if self.share.rank:
            self.pipes[0].send_bytes(b"")
        else:
            refusals = [pipe.recv_bytes().decode() for pipe in self.pipes]
            for why in filter(None, refusals):
                raise CheckpointError(why)
        if device.type == "cpu" and platform.machine() == "x86_64":
            self._sums = SharedMemory(self._board, self.share)
        else:
            self._sums = Collectives(self.share, device, self._meeting)

    def refuse(self, why: str) -> None:
        """Tell the first rank, which waits to meet, that there is no model here."""
        self.pipes[0].send_bytes(why.encode())

    def sum(self, part_TM: Tensor) -> Tensor:
        return self._sums.sum(part_TM)

    def beside(self, part_NV: Tensor) -> Tensor:
        return self._sums.beside(part_NV)

    def least(self, number: int) -> int:
        return self._sums.least(number)


def muster(name: str, count: int, meeting: Path) -> Together:
    """Fork the other ranks off this process, which may have no thread yet; returns in each of them."""
    leader, others, board = os.getpid(), [], Board(count)
    pipes: list[Connection[bytes, bytes]] = []
    for rank in range(1, count):
        ours, theirs = Pipe()
        pid = os.fork()
        if pid == 0:
            for pipe in (*pipes, ours):
                pipe.close()
            _follow(leader, name, rank)
            return Together(Share(rank, count), [theirs], board, meeting)
        theirs.close()
        pipes.append(ours)
        others.append(pid)
    threading.Thread(target=_end_with, args=(others,), name="ranks", daemon=True).start()
    return Together(Share(0, count), pipes, board, meeting)


def _follow(leader: int, name: str, rank: int) -> None:
    """Be a rank of its own, which ends with the first."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != leader:
        os._exit(EXIT_ALONE)
    setproctitle(f"trefoil engine {name} rank {rank}")
    structlog.contextvars.bind_contextvars(rank=rank)


def _end_with(others: list[int]) -> None:
    """End this process at once when another rank ends, whatever it waits for: NCCL would wait for minutes."""
    poll = select.poll()
    for pid in others:
        poll.register(os.pidfd_open(pid), select.POLLIN)
    poll.poll()
    log.error("rank_lost", others=others)
    os._exit(EXIT_ALONE)
