"""Say what each token is part of: cross-entropy over the tags (Devlin et al., arXiv 1810.04805, section 5.3)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from trefoil.training.examples import IGNORED, Reading
from trefoil.training.loop import Loss
from trefoil.training.reading import labels_of, reading_rows
from trefoil_models.checkpoint import Model


def token_classification(model: Model, readings: Sequence[Reading]) -> Loss:
    """The loss of texts with a label a row; IGNORED rows teach nothing."""
    rows, attend = reading_rows(model, readings)
    hidden_TM: Tensor = model(rows, attend)
    labels_T = labels_of(model, readings)
    is_label_T = labels_T != IGNORED
    logits_RC = model.heads["tag"](hidden_TM[is_label_T]).float()
    return Loss(F.cross_entropy(logits_RC, labels_T[is_label_T], reduction="sum"), len(logits_RC))
