"""Examples for encoders: a text or a pair with what a head should say of it, and how they become one packed pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trefoil_kernels.packed_attention import Packing
from trefoil_models.attend import PackedAttend, Rows, packed_rows
from trefoil_models.checkpoint import Model

IGNORED = -100
"""The label of a row that teaches nothing."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One text: its ids and types, and its labels as the objective wants them (none where the text is its own)."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    labels: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


def reading_rows(model: Model, readings: Sequence[Reading]) -> tuple[Rows, PackedAttend]:
    """Texts as one pass on the model's device."""
    device = next(model.parameters()).device
    return packed_rows([one.ids for one in readings], device, types=[one.types for one in readings])


def first_rows(packing: Packing) -> torch.Tensor:
    """The row at which each text begins, int64 [N]."""
    return torch.tensor(packing.starts[:-1])


def labels_of(model: Model, readings: Sequence[Reading]) -> torch.Tensor:
    """All labels end to end, int64."""
    return torch.tensor([label for one in readings for label in one.labels], device=next(model.parameters()).device)
