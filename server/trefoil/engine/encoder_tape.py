"""An encoder's pass on the CPU as a tape: recorded once for the most rows that a pass may have, played with any fewer.

Short texts take so little arithmetic that Python between the native calls of a pass would cost a quarter of it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trefoil import wire
from trefoil_kernels.cpu.library import Native
from trefoil_kernels.cpu.tape import Scratch
from trefoil_kernels.packed_attention import Packing
from trefoil_models.attend import PackedAttend, Rows
from trefoil_models.checkpoint import Model


class EncoderTape:
    """The hidden rows of several texts; the recording's inputs lie in buffers of its own."""

    def __init__(self, native: Native, model: Model, max_rows: int) -> None:
        """Raises NotRecordable where torch computes a part of the model."""
        self.max_rows = max_rows
        rows_4T = torch.zeros(4, max_rows, dtype=torch.int64)
        starts_N1 = torch.zeros(max_rows + 1, dtype=torch.int32)
        rows = Rows(*rows_4T)
        attend = PackedAttend(Packing.told((0,) * max_rows, starts_N1))
        self._rows_4T, self._starts_N1 = rows_4T.numpy(), starts_N1.numpy()
        with torch.inference_mode():
            self._tape = native.calls.record(lambda: model(rows, attend), Scratch(), max_rows)

    def hidden(self, texts: Sequence[wire.Once]) -> Tensor:
        """[T, M], overwritten by the next call; the texts have at most `max_rows` rows together."""
        lens = [len(text.ids) for text in texts]
        num_rows = sum(lens)
        ids_T, positions_T, prompt_lens_T, types_T = self._rows_4T[:, :num_rows]
        ids_T[:] = [i for text in texts for i in text.ids]
        positions_T[:] = [at for length in lens for at in range(length)]
        prompt_lens_T[:] = np.repeat(lens, lens)
        types_T[:] = [i for text in texts for i in text.type_ids or [0] * len(text.ids)]
        self._starts_N1[1 : len(lens) + 1] = np.cumsum(lens)
        self._starts_N1[len(lens) + 1 :] = num_rows
        return self._tape.play_rows(num_rows)
