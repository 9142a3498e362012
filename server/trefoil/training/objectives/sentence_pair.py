"""Hidden tokens, and whether two sentences belong together (Devlin et al., arXiv 1810.04805, 3.1; Lan et al., arXiv
1909.11942, 3.1): the sum of both means. What the wrong pairs are is the examples' to say (`plain_text`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from trefoil.training.examples import SentencePair
from trefoil.training.loop import Loss
from trefoil.training.objectives.masked_lm import MaskedLM
from trefoil.training.reading import first_rows, reading_rows
from trefoil_models.checkpoint import Model


@dataclass(frozen=True, slots=True)
class SentencePairs:
    """The objective over the masks of another."""

    masked: MaskedLM

    def __call__(self, model: Model, pairs: Sequence[SentencePair]) -> Loss:
        rows, attend = reading_rows(model, pairs)
        ids_T, is_chosen_T = self.masked.mask(rows.ids_T)
        hidden_TM: Tensor = model(replace(rows, ids_T=ids_T), attend)
        labels_R = rows.ids_T[is_chosen_T]
        logits_RV = model.heads["mask"](hidden_TM[is_chosen_T]).float()
        logits_N2 = model.heads["pair"](hidden_TM[first_rows(attend.packing)]).float()
        labels_N = torch.tensor([pair.label for pair in pairs], device=logits_N2.device)
        masked = F.cross_entropy(logits_RV, labels_R, reduction="sum")
        # the loop divides by the number of hidden tokens: so weighed, this becomes a mean over pairs
        paired = F.cross_entropy(logits_N2, labels_N) * len(labels_R)
        sums = {"mlm_loss": masked.detach(), "pair_loss": paired.detach()}
        return Loss(masked + paired, len(labels_R), sums)
