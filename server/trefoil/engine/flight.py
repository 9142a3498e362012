"""A decode step that the device still computes while the host goes on: the next one can be laid behind it.

The tokens stay on the device, where the next step takes them from; the host reads them later.
"""

import torch
from torch import Tensor

from trefoil.engine.sampler import Pick
from trefoil.engine.scheduler import Plan


class Flight:
    """A plan of one-row chunks under way, and the token being chosen for each (int64 [N])."""

    def __init__(self, plan: Plan, tokens_N: Tensor) -> None:
        self.plan, self.tokens_N = plan, tokens_N
        self._host_N = torch.empty(tokens_N.shape, dtype=tokens_N.dtype, pin_memory=tokens_N.is_cuda)
        self._host_N.copy_(tokens_N, non_blocking=True)
        self._is_read = torch.cuda.Event() if tokens_N.is_cuda else None  # type: ignore[no-untyped-call]
        if self._is_read is not None:
            self._is_read.record()

    def land(self) -> list[Pick]:
        """Wait for the tokens. Who has given its pages back meanwhile gets none."""
        if self._is_read is not None:
            self._is_read.synchronize()
        pairs = zip(self.plan.chunks, self._host_N.tolist(), strict=True)
        return [Pick(chunk.sequence, token, None) for chunk, token in pairs if chunk.sequence.pages]
