"""The processes that hold one model together, each a slice of it: the first is the engine, the others follow it.

Every rank is an engine of its own. What the first hears the others hear, so all make the same plans; sums of their
parts and rows of logits are the same on all, so all choose the same tokens; the first alone tells them. They count
alike, which is compared each turn: who strays ends, and the loss of one is the loss of all.
"""

import ctypes
import os
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

from trefoil_models import slices
from trefoil_models.config_keys import CheckpointError
from trefoil_models.slices import WHOLE, Share

log = structlog.get_logger()

PR_SET_PDEATHSIG = 1
EXIT_ALONE = 6
LONGEST_WAIT = timedelta(minutes=5)
"""For the others in one sum: a rank that hangs becomes one that is lost."""


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


class Together:
    """One of several: sums by gloo between processes of the host, by NCCL between GPUs.

    `pipes`: the first rank's to each other, or another's to the first. `meeting` is a path where no file is yet.
    """

    def __init__(self, share: Share, pipes: list["Connection[bytes, bytes]"], meeting: Path) -> None:
        self.share, self.pipes, self._meeting = share, pipes, meeting

    def meet(self, device: torch.device) -> None:
        if self.share.rank:
            self.pipes[0].send_bytes(b"")
        else:
            refusals = [pipe.recv_bytes().decode() for pipe in self.pipes]
            for why in filter(None, refusals):
                raise CheckpointError(why)
        is_cuda = device.type == "cuda"
        dist.init_process_group(
            "nccl" if is_cuda else "gloo",
            store=dist.FileStore(str(self._meeting), self.share.count),  # type: ignore[attr-defined]
            rank=self.share.rank,
            world_size=self.share.count,
            timeout=LONGEST_WAIT,
            device_id=torch.device("cuda", torch.cuda.current_device()) if is_cuda else None,
        )
        self._device = device

    def refuse(self, why: str) -> None:
        """Tell the first rank, which waits to meet, that there is no model here."""
        self.pipes[0].send_bytes(why.encode())

    def least(self, number: int) -> int:
        least = torch.tensor(number, device=self._device)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return int(least)

    def sum(self, part_TM: Tensor) -> Tensor:
        dist.all_reduce(part_TM)
        return part_TM

    def beside(self, part_NV: Tensor) -> Tensor:
        (rows, columns), count = part_NV.shape, self.share.count
        all_NV = part_NV.new_empty(count * rows, columns)
        dist.all_gather_single(all_NV, part_NV)
        return all_NV.view(count, rows, columns).transpose(0, 1).reshape(rows, count * columns)


def muster(name: str, count: int, meeting: Path) -> Together:
    """Fork the other ranks off this process, which may have no thread yet; returns in each of them."""
    leader, others = os.getpid(), []
    pipes: list[Connection[bytes, bytes]] = []
    for rank in range(1, count):
        ours, theirs = Pipe()
        pid = os.fork()
        if pid == 0:
            for pipe in (*pipes, ours):
                pipe.close()
            _follow(leader, name, rank)
            return Together(Share(rank, count), [theirs], meeting)
        theirs.close()
        pipes.append(ours)
        others.append(pid)
    threading.Thread(target=_end_with, args=(others,), name="ranks", daemon=True).start()
    return Together(Share(0, count), pipes, meeting)


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
