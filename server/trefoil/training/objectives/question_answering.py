"""Find where an answer begins and ends: cross-entropy over a text's rows (Devlin et al., arXiv 1810.04805, 4.2)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil.training.examples import Reading
from trefoil.training.loop import Loss
from trefoil.training.reading import reading_rows
from trefoil_models.checkpoint import Model


def question_answering(model: Model, readings: Sequence[Reading]) -> Loss:
    """The loss of pairs labelled with the first and last row of their answer; row 0 twice where there is none."""
    rows, attend = reading_rows(model, readings)
    hidden_TM: Tensor = model(rows, attend)
    spans = torch.split(model.heads["span"](hidden_TM).float(), list(attend.packing.lens))
    losses = [
        F.cross_entropy(span_Q2.T, torch.tensor(one.labels, device=span_Q2.device), reduction="sum") / 2
        for span_Q2, one in zip(spans, readings, strict=True)
    ]
    return Loss(torch.stack(losses).sum(), len(readings))
