"""Say which class a whole text belongs to: cross-entropy over the labels (Devlin et al., arXiv 1810.04805, 4.1)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from trefoil.training.loop import Loss
from trefoil.training.reading import Reading, first_rows, labels_of, reading_rows
from trefoil_models.checkpoint import Model


def classification(model: Model, readings: Sequence[Reading]) -> Loss:
    """The loss of texts with one label each."""
    rows, attend = reading_rows(model, readings)
    hidden_TM: Tensor = model(rows, attend)
    logits_NC = model.heads["class"](hidden_TM[first_rows(attend.packing)]).float()
    return Loss(F.cross_entropy(logits_NC, labels_of(model, readings), reduction="sum"), len(readings))
