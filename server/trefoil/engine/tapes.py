"""Decode steps on the CPU as tapes: all native calls of a step in one, where Python would stand between hundreds.

A step in which every sequence brings one row is recorded when its number of sequences first comes, over the static
input buffers, and played from then on; with adapters once more, and anew when one has been loaded. What cannot be
recorded is computed as any step is, and said once.
"""

from collections.abc import Sequence as Seq
from typing import NamedTuple

import structlog
import torch
from torch import Tensor

from trefoil.engine.adapters import BASE, Adapters
from trefoil.engine.scheduler import Plan
from trefoil.engine.step import StepInputs
from trefoil_kernels.cpu.library import Native
from trefoil_kernels.cpu.tape import NotRecordable, Scratch, Tape
from trefoil_kernels.page_write import Pages
from trefoil_models.checkpoint import Model

log = structlog.get_logger()

MOST_ROWS = 64
"""With more rows a step's arithmetic takes so long that what stands between its calls does not matter.

All tapes share one scratch, so that what they take is at most four times what the largest makes on its way.
"""


class Key(NamedTuple):
    """A tape's number of sequences, and with which adapters it was recorded; 0: with none."""

    size: int
    num_loads: int


class DecodeTapes:
    """The recorded steps of one model."""

    def __init__(self, native: Native, model: Model, adapters: Adapters, inputs: StepInputs, pages: Seq[Pages]) -> None:
        self._calls, self._model, self._adapters = native.calls, model, adapters
        self._inputs, self._pages = inputs, pages
        self._slots_T = torch.full((MOST_ROWS,), BASE)
        self._scratch = Scratch()
        self._tapes: dict[Key, Tape] = {}
        self._most = MOST_ROWS

    def can_run(self, plan: Plan) -> bool:
        """Does each sequence bring one row and no input to encode, and can that many be recorded?"""
        return (
            not plan.encodes
            and 0 < len(plan.chunks) <= self._most
            and all(chunk.num_rows == 1 and not chunk.sequence.wants_prompt_scores for chunk in plan.chunks)
        )

    def logits(self, plan: Plan) -> Tensor | None:
        """[N, V], one row a chunk, overwritten by the next call; None where the step cannot be recorded."""
        slots = [chunk.sequence.slot for chunk in plan.chunks]
        has_adapters = any(slot != BASE for slot in slots)
        key = Key(len(slots), self._adapters.num_loads if has_adapters else 0)
        self._inputs.send_padded(plan, key.size)
        self._slots_T[: key.size] = torch.tensor(slots)
        if tape := self._tapes.get(key):
            return tape.play()
        try:
            tape = self._recorded(key)
        except NotRecordable as why:
            self._most = key.size - 1
            log.info("no_tape", rows=key.size, why=f"torch computes {why}")
            return None
        self._tapes = {other: old for other, old in self._tapes.items() if other.num_loads in (0, key.num_loads)}
        self._tapes[key] = tape
        return tape.play()

    def _recorded(self, key: Key) -> Tape:
        """The step is first computed as any other, which lays out what its calls will find there."""
        rows, attend = self._inputs.padded(key.size, self._pages)
        before = self._scratch.num_bytes
        with self._adapters.chosen_in(self._slots_T[: key.size] if key.num_loads else None):
            self._model(rows, attend)
            tape = self._calls.record(lambda: self._model.lm_head.logits(self._model(rows, attend)), self._scratch)
        if self._scratch.num_bytes > before:
            log.info("tapes_grew", rows=key.size, scratch_mib=round(self._scratch.num_bytes / 2**20, 1))
        return tape
