"""How texts that are read whole become one packed pass, and which rows of it speak for a text."""

from collections.abc import Sequence

import torch

from trefoil.training.examples import Reading, SentencePair
from trefoil_kernels.packed_attention import Packing
from trefoil_models.attend import PackedAttend, Rows, packed_rows
from trefoil_models.checkpoint import Model


def reading_rows(model: Model, readings: Sequence[Reading | SentencePair]) -> tuple[Rows, PackedAttend]:
    """Texts as one pass on the model's device."""
    device = next(model.parameters()).device
    return packed_rows([one.ids for one in readings], device, types=[one.types for one in readings])


def first_rows(packing: Packing) -> torch.Tensor:
    """The row at which each text begins, int64 [N]."""
    return torch.tensor(packing.starts[:-1])


def text_rows(model: Model, packing: Packing) -> torch.Tensor:
    """The row that speaks for each text: an encoder's first, a decoder's last, which alone has seen all."""
    return first_rows(packing) if model.kind == "encoder" else torch.tensor(packing.starts[1:]) - 1


def labels_of(model: Model, readings: Sequence[Reading]) -> torch.Tensor:
    """All labels end to end, int64."""
    labels = [int(label) for one in readings for label in one.labels]
    return torch.tensor(labels, device=next(model.parameters()).device)
