"""Decode steps on the CPU as tapes: all native calls of a step in one, where Python would stand between hundreds.

A step in which every sequence brings one row is recorded when its number of sequences first comes, over the static
input buffers, and played from then on. What cannot be recorded is computed as any step is, and said once.
"""

from collections.abc import Sequence as Seq

import structlog
from torch import Tensor

from trefoil.engine.adapters import BASE
from trefoil.engine.scheduler import Plan
from trefoil.engine.step import StepInputs
from trefoil_kernels.cpu.library import Native
from trefoil_kernels.cpu.tape import NotRecordable, Scratch, Tape
from trefoil_kernels.page_write import Pages
from trefoil_models.checkpoint import Model

log = structlog.get_logger()

MOST_ROWS = 16
"""With more rows a step's arithmetic takes so long that what stands between its calls does not matter."""


class DecodeTapes:
    """The recorded steps of one model, by their number of sequences."""

    def __init__(self, native: Native, model: Model, inputs: StepInputs, pages: Seq[Pages]) -> None:
        self._native, self._model, self._inputs, self._pages = native, model, inputs, pages
        self._scratch = Scratch()
        self._tapes: dict[int, Tape] = {}
        self._most = MOST_ROWS

    def can_run(self, plan: Plan) -> bool:
        """Does each sequence bring one row of the base model, and can that many be recorded?"""
        return 0 < len(plan.chunks) <= self._most and all(
            chunk.num_rows == 1 and not chunk.sequence.wants_prompt_scores and chunk.sequence.slot == BASE
            for chunk in plan.chunks
        )

    def logits(self, plan: Plan) -> Tensor | None:
        """[N, V], one row a chunk, overwritten by the next call; None where the step cannot be recorded."""
        size = len(plan.chunks)
        self._inputs.send_padded(plan, size)
        if tape := self._tapes.get(size):
            return tape.play()
        rows, attend = self._inputs.padded(size, self._pages)
        attend.packing.starts_on(rows.ids_T.device)
        try:
            tape = self._native.record(lambda: self._model.lm_head.logits(self._model(rows, attend)), self._scratch)
        except NotRecordable as why:
            self._most = size - 1
            log.info("no_tape", rows=size, why=f"torch computes {why}")
            return None
        self._tapes[size] = tape
        return tape.out
