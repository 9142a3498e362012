"""Decode steps as captured graphs: one launch a step, where hundreds of kernels would each wait for the host.

A step in which every sequence brings one row is padded to the next size that was captured and replayed over the static
input buffers. Padding rows lie in a page of their own that no sequence has, so nothing of theirs is seen.
"""

from bisect import bisect_left
from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from trefoil.engine.adapters import BASE
from trefoil.engine.scheduler import Plan
from trefoil.engine.step import StepInputs
from trefoil_kernels.page_write import Pages
from trefoil_models.checkpoint import Model

Run = Callable[[], Tensor]
Capture = Callable[[Run], Run]
"""Makes of a computation one that repeats it over the same addresses, and gives the same output tensor each time."""


def graph_sizes(most: int) -> list[int]:
    """Padded sizes up to `most`: a small step wastes at most as many rows as it has, a large one a quarter."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 32), *range(256, most + 64, 64)]
    return [size for size in sizes if size < most] + [most]


class CudaCapture:
    """Captures into one memory pool; largest first, so that the smaller ones find room in it."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run) -> Run:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()  # compiles kernels and fills caches, neither of which can be captured
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = run()

        def replayed() -> Tensor:
            graph.replay()
            return out

        return replayed


class DecodeGraphs:
    """The captured sizes of one model; all are captured when it is made."""

    def __init__(
        self, model: Model, inputs: StepInputs, pages: Seq[Pages], *, sizes: Seq[int], capture: Capture
    ) -> None:
        self._inputs, self._sizes = inputs, sorted(sizes)
        self._logits_NV = torch.empty(
            self._sizes[-1], model.config.vocab_size, dtype=torch.float32, device=pages[0].k_PSGD.device
        )
        self._graphs = {
            size: capture(_step(model, inputs, pages, self._logits_NV[:size])) for size in reversed(self._sizes)
        }

    def can_run(self, plan: Plan) -> bool:
        """Does each sequence bring one row of the base model, and no more of them than were captured?"""
        return 0 < len(plan.chunks) <= self._sizes[-1] and all(
            chunk.num_rows == 1 and not chunk.sequence.wants_prompt_scores and chunk.sequence.slot == BASE
            for chunk in plan.chunks
        )

    def logits(self, plan: Plan, ids_N: Tensor | None = None) -> Tensor:
        """Float32 [N, V], one row a chunk; overwritten by the next call. `ids_N`: where the host knows them not yet."""
        size = self._sizes[bisect_left(self._sizes, len(plan.chunks))]
        self._inputs.send_padded(plan, size, ids_N)
        return self._graphs[size]()[: len(plan.chunks)]


def _step(model: Model, inputs: StepInputs, pages: Seq[Pages], logits_NV: Tensor) -> Run:
    """All sizes write to one place: outputs of their own would be kept for each."""
    rows, attend = inputs.padded(len(logits_NV), pages)
    return lambda: logits_NV.copy_(model.lm_head.logits(model(rows, attend)))
